//! Forgetting the ended: what S3 has of them first, then their reports and logs.

use std::sync::Arc;
use std::time::Duration;

use super::Microvms;
use crate::adapters::files;

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
        let due: Vec<(String, String)> = self
            .ended()
            .iter()
            .filter(|(_, entry)| !entry.remote_done)
            .map(|(id, entry)| (id.clone(), entry.tombstone.remote_prefix.clone()))
            .collect();
        for (id, prefix) in due {
            match self.host.store.delete_prefix(self.host.bucket(), &prefix).await {
                Ok(_) => {
                    if let Some(entry) = self.ended().get_mut(&id) {
                        entry.remote_done = true;
                        entry.tombstone.remote_prefix.clear();
                        let _ = entry.tombstone.write(&self.host.data.ended().join(&id));
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
        let mut by_age: Vec<(u64, String, bool)> = ended
            .iter()
            .map(|(id, entry)| (entry.tombstone.ended_ms, id.clone(), entry.known && entry.remote_done))
            .collect();
        by_age.sort();
        let excess = by_age.len().saturating_sub(limits.tombstones);
        for (position, (ended_ms, id, settled)) in by_age.into_iter().enumerate() {
            let old = now.saturating_sub(ended_ms) > keep_ms;
            if position < excess || (old && settled) {
                ended.remove(&id);
                files::discard(&self.host.data.ended().join(&id));
            }
        }
    }
}
