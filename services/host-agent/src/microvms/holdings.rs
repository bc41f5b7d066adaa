//! What the reporter tells of the microVMs, and what it hears.

use std::sync::Arc;

use api::host::v1::{HostUsage, ObservedMicrovm, RecordedMicrovm};
use futures::future::BoxFuture;

use super::Microvms;
use crate::reporter::Holdings;

impl Holdings for Microvms {
    fn unreported(&self) -> Vec<ObservedMicrovm> {
        self.unreported()
    }

    fn usage(&self) -> HostUsage {
        self.usage()
    }

    fn answered(&self, observed: &[ObservedMicrovm], recorded: &[RecordedMicrovm]) {
        self.answered(observed, recorded);
    }

    fn set_draining(&self, draining: bool) {
        self.set_draining(draining);
    }

    fn close_stale(&self, id: &str, generation: u64) {
        self.close_stale(id, generation);
    }

    fn drop_stale(self: Arc<Self>, id: String, generation: u64, ended: bool) -> BoxFuture<'static, ()> {
        Box::pin(Microvms::drop_stale(self, id, generation, ended))
    }
}
