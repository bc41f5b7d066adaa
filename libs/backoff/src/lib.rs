//! Pauses between attempts: the first is short, each further one twice as long, up to a bound.

#![warn(missing_docs)]

use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// The pauses of one series of attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses that begin with `first` and grow to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause, for a caller that waits for something else as well.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next.min(self.longest);
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// Waits for the next pause.
    pub fn pause(&mut self) -> Sleep {
        sleep(self.next_pause())
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(50), ms(300));
        let pauses: Vec<Duration> = (0..5).map(|_| backoff.next_pause()).collect();
        assert_eq!(pauses, [50, 100, 200, 300, 300].map(ms));
        backoff.reset();
        assert_eq!(backoff.next_pause(), ms(50));
        assert_eq!(Backoff::new(ms(50), ms(10)).next_pause(), ms(10));
    }
}
