//! How long each step of a launch, suspend or wake took.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Most steps one transition records.
const STEPS_MAX: usize = 32;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name, for example "restore".
    pub name: String,
    /// Start, counted from the start of the transition.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// A finished transition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    /// "launch", "suspend" or "wake".
    pub kind: String,
    /// Its steps in the order they ended.
    pub steps: Vec<Step>,
}

/// Times the steps of one transition. Clones share the record.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    began: Instant,
    kind: &'static str,
    steps: std::sync::Arc<std::sync::Mutex<Vec<Step>>>,
}

impl Stopwatch {
    /// Starts timing a transition of this kind.
    #[must_use]
    pub fn start(kind: &'static str) -> Self {
        Self { began: Instant::now(), kind, steps: std::sync::Arc::default() }
    }

    /// Runs `work` as the step `name`; failed steps are recorded too.
    pub async fn step<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let start = self.began.elapsed();
        let out = work.await;
        self.record(name, start, self.began.elapsed().saturating_sub(start));
        out
    }

    /// Records a step that something else has timed, `start` counted from the
    /// start of the transition.
    pub fn record(&self, name: &str, start: Duration, duration: Duration) {
        tracing::debug!(transition = self.kind, step = name, ms = duration.as_secs_f64() * 1000.0, "step");
        let mut steps = self.steps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if steps.len() < STEPS_MAX {
            steps.push(Step { name: name.to_owned(), start, duration });
        }
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends it: its steps in the order they ended, then "total".
    #[must_use]
    pub fn finish(&self) -> Transition {
        let total = self.began.elapsed();
        let mut steps = self.steps.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        steps.push(Step { name: "total".to_owned(), start: Duration::ZERO, duration: total });
        Transition { kind: self.kind.to_owned(), steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_are_kept_in_order_and_bounded() {
        let watch = Stopwatch::start("wake");
        assert_eq!(watch.step("restore", async { 7 }).await, 7);
        for _ in 0..100 {
            watch.record("again", Duration::ZERO, Duration::from_millis(1));
        }
        let transition = watch.finish();
        assert_eq!(transition.kind, "wake");
        assert_eq!(transition.steps.len(), STEPS_MAX + 1);
        assert_eq!(transition.steps[0].name, "restore");
        assert_eq!(transition.steps.last().unwrap().name, "total");
    }
}
