//! A microVM that is about to be placed elsewhere: its copy here goes before there is another one.

use std::ops::ControlFlow;

use api::microvm::v1::SnapshotCopies;
use tokio::sync::oneshot;

use super::{Driver, Ended, answered};
use crate::domain::HostError;
use crate::domain::fence::is_spare;
use crate::microvm::{EndOrder, Outcome};

impl Driver {
    /// Drops what sleeps here when S3 has the same. A host wakes what it holds without asking anybody, so the copy must not be
    /// here any more when another host may begin with the one in S3. When either side dies after this, the record still names
    /// this host, which fetches the snapshot with the next wake.
    pub(super) async fn give_up(
        &mut self,
        named: &SnapshotCopies,
        reply: oneshot::Sender<Outcome>,
    ) -> ControlFlow<Ended> {
        if !is_spare(self.core.observed().snapshot.as_ref(), named) {
            let why = "it does not sleep with the snapshot that S3 has";
            return answered(reply, Err(HostError::Conflict(why.to_owned())));
        }
        self.end(&EndOrder::discarding("It is placed elsewhere."), false, Some(reply)).await
    }
}
