//! Timing the phases of a launch, suspend, wake or bake while it runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::transition::{Cause, Phase, Transition};

const PHASES_MAX: usize = 32;

/// Times the phases of one transition. Clones share the record.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    began: Instant,
    kind: &'static str,
    cause: Arc<Cause>,
    phases: Arc<Mutex<Vec<Phase>>>,
}

impl Stopwatch {
    /// Starts timing a transition of this kind.
    pub fn start(kind: &'static str, cause: Cause) -> Self {
        Self { began: Instant::now(), kind, cause: Arc::new(cause), phases: Arc::default() }
    }

    /// Counts from `asked`, when it could not be begun yet; the time until now is the phase "queue".
    pub fn after_queue(kind: &'static str, cause: Cause, asked: Instant) -> Self {
        let watch = Self { began: asked, ..Self::start(kind, cause) };
        watch.record("queue", Duration::ZERO, asked.elapsed());
        watch
    }

    /// Runs `work` as the phase `name`; failed phases are recorded too.
    pub async fn phase<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let start = self.began.elapsed();
        let out = work.await;
        self.record(name, start, self.began.elapsed().saturating_sub(start));
        out
    }

    /// Records a phase that something else has timed, `start` counted from the start of the transition.
    pub fn record(&self, name: &str, start: Duration, duration: Duration) {
        tracing::debug!(transition = self.kind, phase = name, ms = duration.as_secs_f64() * 1000.0, "phase");
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if phases.len() < PHASES_MAX {
            phases.push(Phase { name: name.to_owned(), start, duration });
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What it is made of so far: its phases in the order they ended, then "total".
    pub fn finish(&self) -> Transition {
        let total = self.began.elapsed();
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner).clone();
        phases.push(Phase { name: "total".to_owned(), start: Duration::ZERO, duration: total });
        Transition { kind: self.kind.to_owned(), phases, cause: (*self.cause).clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_are_kept_in_order_and_bounded() {
        let watch = Stopwatch::start("wake", Cause::traffic());
        assert_eq!(watch.phase("restore", async { 7 }).await, 7);
        for _ in 0..100 {
            watch.record("again", Duration::ZERO, Duration::from_millis(1));
        }
        let transition = watch.finish();
        assert_eq!(transition.kind, "wake");
        assert_eq!(transition.phases.len(), PHASES_MAX + 1);
        assert_eq!(transition.phases[0].name, "restore");
        assert_eq!(transition.phases.last().unwrap().name, "total");
    }
}
