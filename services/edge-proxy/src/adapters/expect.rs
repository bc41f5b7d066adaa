//! `Expect: 100-continue`: the client holds its body back until the app has seen the head and agrees.
//!
//! The app decides, so the edge takes the body from the client (which is what makes hyper send the client its 100) only when the
//! app has said 100, or nothing for a while: apps that do not know of the matter say nothing.

use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;

/// How long an app may say nothing before it gets the body all the same (RFC 9110, section 10.1.1, wants that of a client).
const SILENCE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Unsaid,
    Yes,
    No,
}

/// The app's side: what it says of the body. The last clone's end is the end of the response.
#[derive(Debug, Clone)]
pub struct Consent(watch::Sender<Word>);

/// The body's side.
#[derive(Debug)]
pub struct Waiting(watch::Receiver<Word>);

impl Consent {
    /// Nothing said yet.
    pub fn unsaid() -> (Self, Waiting) {
        let (sender, receiver) = watch::channel(Word::Unsaid);
        (Self(sender), Waiting(receiver))
    }

    /// The app has said 100, or begun with an answer that does not turn the body away.
    pub fn hear(&self, status: StatusCode) {
        let word = match status {
            StatusCode::CONTINUE => Word::Yes,
            other if other.is_informational() => return,
            other if other.is_client_error() || other.is_server_error() => Word::No,
            _ => Word::Yes,
        };
        self.0.send_if_modified(|said| {
            let first = *said == Word::Unsaid;
            if first {
                *said = word;
            }
            first
        });
    }
}

impl Waiting {
    /// True when the body may go; false when it may not, once the response has been passed on: the connection to the app, which
    /// still waits for the body, ends with this answer.
    pub async fn verdict(mut self) -> bool {
        let said = tokio::time::timeout(SILENCE_MAX, self.0.wait_for(|word| *word != Word::Unsaid));
        let agreed = match said.await {
            Err(_) => true,
            Ok(Ok(word)) => *word == Word::Yes,
            Ok(Err(_)) => false,
        };
        if !agreed {
            while self.0.changed().await.is_ok() {}
        }
        agreed
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_word_counts() {
        let cases: [(&[u16], bool, Duration); 6] = [
            (&[100], true, Duration::ZERO),
            (&[103, 100, 413], true, Duration::ZERO),
            (&[200], true, Duration::ZERO),
            (&[417, 100], false, Duration::ZERO),
            (&[], true, SILENCE_MAX),
            (&[103], true, SILENCE_MAX),
        ];
        for (statuses, expected, after) in cases {
            let (consent, waiting) = Consent::unsaid();
            let started = Instant::now();
            for status in statuses {
                consent.hear(StatusCode::from_u16(*status).unwrap());
            }
            let held = expected.then_some(consent);
            assert_eq!(waiting.verdict().await, expected, "{statuses:?}");
            assert!((after..after + Duration::from_millis(2)).contains(&started.elapsed()), "{statuses:?}");
            drop(held);
        }
    }
}
