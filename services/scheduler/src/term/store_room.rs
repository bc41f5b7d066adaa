//! Watching how full etcd is. Beyond its own bound it takes no write at all: then nothing can be suspended, woken or ended
//! any more, and only a person can help. So the leader has old revisions dropped early, and refuses launches before that point.

use std::sync::{Mutex, MutexGuard, PoisonError};

use api::host::v1::Alarm;
use records::StoreSize;

use super::Term;
use crate::domain::store_room::{FULL_PERCENT, StoreRoom, judge};
use crate::refusal::Refusal;

const MIB: u64 = 1024 * 1024;

/// What etcd said of its size last.
#[derive(Debug, Default)]
pub(crate) struct RoomSeen {
    size: Mutex<StoreSize>,
}

impl RoomSeen {
    fn size(&self) -> MutexGuard<'_, StoreSize> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Term {
    fn store_room(&self, size: &StoreSize) -> StoreRoom {
        judge(size.used_bytes, self.config().etcd_bytes_max)
    }

    /// Asks etcd how full it is. When it fills, what was overwritten before the last look goes: a watcher that has not read it
    /// by then lists anew.
    pub(crate) async fn look_at_store(&self) {
        let size = match self.context.store.size().await {
            Ok(size) => size,
            Err(error) => return tracing::debug!(%error, "etcd does not say how full it is"),
        };
        let room = self.store_room(&size);
        let before = std::mem::replace(&mut *self.room.size(), size.clone());
        if room >= StoreRoom::Filling && self.store_room(&before) < StoreRoom::Filling {
            tracing::error!(used_mib = size.used_bytes / MIB, ?room, "etcd fills up");
        }
        if room >= StoreRoom::Compact && before.revision > 0 {
            // Twice the same revision, or one that etcd's own compaction has passed, is refused, and nothing is lost.
            if let Err(error) = self.context.store.compact(before.revision).await {
                tracing::debug!(%error, revision = before.revision, "etcd did not compact");
            }
        }
    }

    /// Why nothing may be launched, if that is so.
    pub(crate) fn refuse_when_full(&self) -> Result<(), Refusal> {
        let size = self.room.size();
        if self.store_room(&size) < StoreRoom::Full {
            return Ok(());
        }
        Err(Refusal::StoreFull {
            used_mib: size.used_bytes.div_ceil(MIB),
            bound_mib: self.config().etcd_bytes_max / MIB,
            percent: FULL_PERCENT,
        })
    }

    /// What is wrong with etcd.
    pub(crate) fn store_alarms(&self) -> Vec<Alarm> {
        let size = self.room.size().clone();
        let alarm = |code: &str, message: String| Alarm { code: code.to_owned(), message };
        let use_of = format!(
            "etcd holds {} MiB of the {} MiB of etcd_bytes_max",
            size.used_bytes.div_ceil(MIB),
            self.config().etcd_bytes_max / MIB
        );
        let next = "Lower the scheduler's retention_seconds or retained_max, or raise etcd's --quota-backend-bytes and the \
                    scheduler's etcd_bytes_max.";
        let room = match self.store_room(&size) {
            StoreRoom::Full => Some(alarm(
                "STORE_FULL",
                format!("{use_of}; launches are refused from {FULL_PERCENT} % on. {next}"),
            )),
            StoreRoom::Filling => Some(alarm(
                "STORE_FILLING",
                format!("{use_of}; launches will be refused from {FULL_PERCENT} % on. {next}"),
            )),
            StoreRoom::Plenty | StoreRoom::Compact => None,
        };
        let own = size.alarms.iter().map(|said| {
            let text = format!(
                "etcd says: {said}. Beyond its quota it takes no write: compact it, defragment every member and disarm the \
                 alarm (etcdctl compact, defrag, alarm disarm)."
            );
            alarm("STORE_ALARM", text)
        });
        room.into_iter().chain(own).collect()
    }
}
