//! Going on elsewhere from a recovery point when the host of a running microVM is lost (RFD 0013).

use std::sync::Arc;

use model::HostId;
use model::state::MicrovmState;

use super::Term;
use super::commit::go_back;
use super::memory::Handle;
use crate::domain::microvm::{Intent, Microvm};
use crate::domain::observation::RecordChange;

impl Term {
    /// Has what ran on a lost host go back to its recovery point, and wakes it elsewhere.
    ///
    /// When the scheduler dies between the two, the record says SUSPENDED with its reason: the next request wakes it, as
    /// does a caller.
    pub(crate) async fn recover(self: &Arc<Self>, host: &HostId, handle: &Arc<Handle>, lost: &str) {
        let now = self.now();
        let change = |record: &mut Microvm| {
            let running = matches!(record.state, MicrovmState::Running | MicrovmState::Suspending);
            let here = record.placement.host == *host && record.intent == Intent::Live;
            if !(running && here && record.has_recovery_point()) {
                return Ok(RecordChange::None);
            }
            go_back(record, lost, now)
        };
        match self.update_without(Some(host), handle, change).await {
            Ok((_, false)) => {}
            Ok((microvm, true)) => {
                tracing::warn!(microvm = %handle.id, reason = microvm.state_reason, "a host was lost");
                self.wake_recovered(handle);
            }
            // The next sweep tries again.
            Err(refusal) => {
                tracing::warn!(microvm = %handle.id, %refusal, "not back at its recovery point yet")
            }
        }
    }

    /// It ran, and goes on running.
    pub(crate) fn wake_recovered(self: &Arc<Self>, handle: &Arc<Handle>) {
        let (term, id) = (Arc::clone(self), handle.id.clone());
        self.spawn(async move {
            if let Err(refusal) = term.resume(&id).await {
                tracing::warn!(microvm = %id, %refusal, "it sleeps at its recovery point until somebody wakes it");
            }
        });
    }
}
