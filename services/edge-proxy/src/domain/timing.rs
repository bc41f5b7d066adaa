//! What the time of a request went to: the `Server-Timing` header, and the same for spans and metrics.

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

/// What the time of a request that has a microVM went to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Token and route; absent while no microVM is known.
    pub edge: Option<Duration>,
    /// Until a connection to the app stood.
    pub tunnel: Duration,
    /// The host's phases of the launch or wake that was waited for; empty when none was.
    pub phases: Vec<Phase>,
    /// Until the app's response headers came.
    pub app: Option<Duration>,
}

impl Timing {
    /// True when the request had to wait for a launch or a wake.
    pub fn woke(&self) -> bool {
        !self.phases.is_empty()
    }

    /// What the edge added to the app's own time.
    pub fn added(&self) -> Option<Duration> {
        self.edge.map(|edge| edge + self.tunnel)
    }

    /// The header's value, all in milliseconds; the host's phases have their start.
    pub fn header(&self) -> Option<String> {
        let mut text = format!("edge;dur={}, tunnel;dur={}", millis(self.edge?), millis(self.tunnel));
        for phase in self.phases.iter().take(PHASES_MAX) {
            // A name that is no token would break the header for its reader.
            let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let name: String = phase.name.chars().map(|c| if valid(c) { c } else { '_' }).collect();
            if !name.is_empty() {
                let (duration, start) = (millis(phase.duration), millis(phase.start));
                let _ = write!(text, ", {name};dur={duration};start={start}");
            }
        }
        if let Some(app) = self.app {
            let _ = write!(text, ", app;dur={}", millis(app));
        }
        Some(text)
    }
}

fn millis(duration: Duration) -> String {
    let micros = duration.as_micros();
    format!("{}.{:03}", micros / 1000, micros % 1000)
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
        let mut timing = Timing { tunnel: Duration::from_millis(2), ..Timing::default() };
        assert_eq!(timing.header(), None, "a response without a microVM says nothing");
        timing.edge = Some(Duration::from_micros(40));
        assert_eq!(timing.header().unwrap(), "edge;dur=0.040, tunnel;dur=2.000");
        timing.phases = vec![phase("restore", 0, 1500), phase("run hook", 1500, 250), phase("", 0, 0)];
        timing.app = Some(Duration::from_millis(7));
        assert_eq!(
            timing.header().unwrap(),
            "edge;dur=0.040, tunnel;dur=2.000, restore;dur=1.500;start=0.000, run_hook;dur=0.250;start=1.500, \
             app;dur=7.000"
        );
        assert_eq!((timing.woke(), timing.added()), (true, Some(Duration::from_micros(2040))));
    }
}
