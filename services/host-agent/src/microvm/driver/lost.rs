//! An engine that ended by itself: the microVM's end, or the way back to its recovery point.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Driver, Ended};
use crate::microvm::EndOrder;
use crate::microvm::end::exit_sentence;

/// After the app's end is known by the engine's end alone: how long the guest's
/// own word for it may still take.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Driver {
    /// The engine and the guest-agent tell of the same end by two ways, and the guest-agent knows more: an app that exits
    /// takes its guest down. When the engine's word comes first, the guest-agent's gets a moment to arrive.
    pub(super) async fn engine_ended(&mut self, reason: &vmm::ExitReason) -> ControlFlow<Ended> {
        let mut sentence = exit_sentence(reason);
        if matches!(reason, vmm::ExitReason::GuestShutdown | vmm::ExitReason::GuestReset)
            && let Ok(Some(app)) = tokio::time::timeout(LAST_WORDS, self.inbox.app_end()).await
        {
            sentence = app.sentence(self.core.spec.snapshot.memory_mib);
        }
        let engines_own = matches!(reason, vmm::ExitReason::Killed(_) | vmm::ExitReason::Failed { .. });
        if engines_own && self.core.can_go_back() {
            self.core.go_back(&sentence).await;
            self.to_wake = true;
            return ControlFlow::Continue(());
        }
        self.end(&EndOrder::because(sentence), false, None).await
    }

    /// Wakes what has gone back to its recovery point, unless the answer that opened the host says that it was placed elsewhere:
    /// then its end is on its way.
    pub(super) async fn wake_gone_back(&mut self) -> ControlFlow<Ended> {
        self.to_wake = false;
        if self.stale.load(Ordering::Relaxed) >= self.core.journal.generation {
            return ControlFlow::Continue(());
        }
        self.wake(None, None, None).await
    }
}
