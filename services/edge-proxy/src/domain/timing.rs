//! The `Server-Timing` header of a response that waited for a launch or a wake.

use std::fmt::Write as _;
use std::time::Duration;

/// One step: name, when it began, how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Name, for example "restore".
    pub name: String,
    /// Counted from the start of the whole operation.
    pub start: Duration,
    /// Its length.
    pub duration: Duration,
}

/// Steps shown at most.
const STEPS_MAX: usize = 32;

/// The header's value: the edge's own steps ("token", "open"), then the host's
/// with their start, all in milliseconds.
#[must_use]
pub fn header(token: Duration, open: Duration, steps: &[Step]) -> String {
    let mut text = format!("token;dur={}, open;dur={}", millis(token), millis(open));
    for step in steps.iter().take(STEPS_MAX) {
        // A name that is no token would break the header for its reader.
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = step.name.chars().map(|c| if valid(c) { c } else { '_' }).collect();
        if !name.is_empty() {
            let _ = write!(text, ", {name};dur={};start={}", millis(step.duration), millis(step.start));
        }
    }
    text
}

fn millis(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_become_metrics() {
        let step = |name: &str, start, duration| Step {
            name: name.to_owned(),
            start: Duration::from_micros(start),
            duration: Duration::from_micros(duration),
        };
        let steps = [step("restore", 0, 1500), step("run hook", 1500, 250), step("", 0, 0)];
        let text = header(Duration::from_micros(40), Duration::from_millis(2), &steps);
        assert_eq!(
            text,
            "token;dur=0.040, open;dur=2.000, restore;dur=1.500;start=0.000, run_hook;dur=0.250;start=1.500"
        );
    }
}
