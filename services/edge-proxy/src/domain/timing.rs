//! The `Server-Timing` header of a response that waited for a launch or a wake.

use std::fmt::Write as _;
use std::time::Duration;

/// One phase: name, when it began, how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    pub name: String,
    /// Counted from the start of the whole operation.
    pub start: Duration,
    pub duration: Duration,
}

const PHASES_MAX: usize = 32;

/// The header's value: the edge's own phases ("token", "open"), then the host's
/// with their start, all in milliseconds.
pub fn header(token: Duration, open: Duration, phases: &[Phase]) -> String {
    let mut text = format!("token;dur={}, open;dur={}", millis(token), millis(open));
    for phase in phases.iter().take(PHASES_MAX) {
        // A name that is no token would break the header for its reader.
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = phase.name.chars().map(|c| if valid(c) { c } else { '_' }).collect();
        if !name.is_empty() {
            let _ = write!(text, ", {name};dur={};start={}", millis(phase.duration), millis(phase.start));
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
    fn phases_become_metrics() {
        let phase = |name: &str, start, duration| Phase {
            name: name.to_owned(),
            start: Duration::from_micros(start),
            duration: Duration::from_micros(duration),
        };
        let phases = [phase("restore", 0, 1500), phase("run hook", 1500, 250), phase("", 0, 0)];
        let text = header(Duration::from_micros(40), Duration::from_millis(2), &phases);
        assert_eq!(
            text,
            "token;dur=0.040, open;dur=2.000, restore;dur=1.500;start=0.000, run_hook;dur=0.250;start=1.500"
        );
    }
}
