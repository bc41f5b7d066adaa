//! What background work and the guest-agent tell the driver.

use std::ops::ControlFlow;

use super::{Driver, Ended};
use crate::microvm::EndOrder;
use crate::microvm::core::Notice;

impl Driver {
    pub(super) async fn notice(&mut self, notice: Notice) -> ControlFlow<Ended> {
        match notice {
            Notice::Uploaded { copy, difference_bytes } => {
                self.core.uploaded(copy, difference_bytes);
                ControlFlow::Continue(())
            }
            Notice::Recorded { generation, named } => {
                self.core.recorded(generation, named);
                ControlFlow::Continue(())
            }
            Notice::Removed(copies) => {
                self.core.removed(&copies);
                ControlFlow::Continue(())
            }
            // Of a guest that has been put to sleep or has ended since: no news.
            Notice::AppExited(_) | Notice::KeepAwake(_) if self.core.live.is_none() => {
                ControlFlow::Continue(())
            }
            Notice::KeepAwake(duration) => {
                if let Err(error) = self.core.keep_awake(duration) {
                    tracing::warn!(microvm = %self.core.id, %error, "the app's keep-awake lease is not recorded");
                }
                ControlFlow::Continue(())
            }
            Notice::AppExited(end) => {
                let reason = end.sentence(self.core.spec.snapshot.memory_mib);
                self.end(&EndOrder::because(reason), false, None).await
            }
        }
    }
}
