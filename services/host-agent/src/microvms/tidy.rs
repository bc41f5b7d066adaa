//! Forgetting the ended: what S3 has of them first, when the record has ended, then their reports and logs.

use std::sync::Arc;
use std::time::Duration;

use super::Microvms;
use super::ended::{EndReport, Remote};
use crate::adapters::{files, remote_snapshots};

/// How often the ended are looked through.
const INTERVAL: Duration = Duration::from_secs(5);

impl Microvms {
    /// Removes what S3 still has of the ended, and forgets the oldest of them. Runs until it is dropped.
    pub async fn keep_tidy(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.clean_remote().await;
            self.forget_old();
        }
    }

    async fn clean_remote(&self) {
        let is_due = |entry: &EndReport| entry.remote == Remote::Due;
        let due: Vec<String> =
            self.ended().iter().filter(|(_, entry)| is_due(entry)).map(|(id, _)| id.clone()).collect();
        for id in due {
            let prefix = remote_snapshots::prefix(&id);
            match self.host.store.delete_prefix(self.host.bucket(), &prefix).await {
                Ok(_) => {
                    if let Some(entry) = self.ended().get_mut(&id) {
                        entry.remote = Remote::Removed;
                    }
                }
                Err(error) => {
                    tracing::warn!(microvm = id, %error, "its snapshots stay in S3 for now");
                    return;
                }
            }
        }
    }

    fn forget_old(&self) {
        let (timeouts, limits) = (&self.host.config.timeouts, &self.host.config.limits);
        let keep_ms = timeouts.tombstone_retention_ms.max(timeouts.log_retention_ms);
        let now = self.host.now_ms();
        let mut ended = self.ended();
        let ages = ended.iter().map(|(id, entry)| Age {
            id: id.clone(),
            ended_ms: entry.tombstone.ended_ms,
            settled: entry.is_settled(),
        });
        let old = |one: &Age| now.saturating_sub(one.ended_ms) > keep_ms;
        for Age { id, settled, .. } in forgettable(ages.collect(), limits.tombstones, old) {
            if !settled {
                tracing::warn!(
                    microvm = id,
                    limit = limits.tombstones,
                    "an end is forgotten before it is known or cleared from S3, because limits.tombstones is \
                     reached; the scheduler misses the microVM, and its sweep removes what is left of it"
                );
            }
            ended.remove(&id);
            files::discard(&self.end_place(&id));
        }
    }
}

/// An ended microVM as [`forgettable`] looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Age {
    id: String,
    ended_ms: u64,
    settled: bool,
}

/// Which to forget: settled ones that are `old`, and what is over the limit, settled ones first, oldest first.
fn forgettable(mut all: Vec<Age>, limit: usize, old: impl Fn(&Age) -> bool) -> Vec<Age> {
    let excess = all.len().saturating_sub(limit);
    all.sort_by_key(|one| (!one.settled, one.ended_ms));
    let positions = all.into_iter().enumerate();
    let going = positions.filter(|(position, one)| *position < excess || (one.settled && old(one)));
    going.map(|(_, one)| one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unsettled_are_forgotten_last() {
        let age = |ended_ms: u64, settled| Age { id: ended_ms.to_string(), ended_ms, settled };
        let all = vec![age(1, false), age(2, true), age(3, true), age(4, false)];
        let ids = |limit, old_ms: u64| {
            let forgotten = forgettable(all.clone(), limit, |one: &Age| one.ended_ms <= old_ms);
            forgotten.into_iter().map(|one| one.ended_ms).collect::<Vec<_>>()
        };
        for (limit, old_ms, expected) in [
            (9, 0, &[][..]),
            (9, 2, &[2]),
            (9, 9, &[2, 3]),
            (3, 0, &[2]),
            (2, 0, &[2, 3]),
            (1, 0, &[2, 3, 1]),
        ] {
            assert_eq!(ids(limit, old_ms), expected, "limit {limit}, old to {old_ms}");
        }
    }
}
