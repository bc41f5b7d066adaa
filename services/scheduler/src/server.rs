//! The gRPC services: decode, one call, encode. Who may call what is said at
//! the top of each handler; nothing here logs or retries.

mod access;
mod connectors;
mod errors;
mod hosts;
mod microvms;
mod validation;
mod wire;

use std::sync::Arc;

use api::access::v1::access_key_service_server::AccessKeyServiceServer;
use api::connector::v1::network_connector_service_server::NetworkConnectorServiceServer;
use api::host::v1::host_service_server::HostServiceServer;
use api::microvm::v1::microvm_service_server::MicrovmServiceServer;
use tonic::Status;
use tonic::service::Routes;

use crate::app::Leader;
use crate::config::Settings;
use crate::term::{Context, Term};

/// Most bytes of one page: clients take messages of 4 MiB, and what callers
/// named and tagged may be long.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// As many messages from the front as fit into a page, at least one.
fn fitting<M: prost::Message>(mut page: Vec<M>) -> Vec<M> {
    let mut bytes = 0;
    let fits = page.iter().take_while(|message| {
        bytes += message.encoded_len();
        bytes <= PAGE_BYTES
    });
    let count = fits.count().max(1);
    page.truncate(count);
    page
}

/// What every handler has.
#[derive(Debug, Clone)]
struct Shared {
    leader: Arc<Leader>,
    settings: Arc<Settings>,
}

impl Shared {
    /// The running term, or UNAVAILABLE naming the leader.
    fn term(&self) -> Result<Arc<Term>, Status> {
        self.leader.term().ok_or_else(|| errors::not_leader(&self.leader.address()))
    }

    /// A refusal on the wire.
    fn refuse(&self, refusal: crate::refusal::Refusal) -> Status {
        errors::status(refusal, &self.leader.address())
    }
}

/// The services of a scheduler.
#[must_use]
pub fn routes(leader: &Arc<Leader>, context: &Context) -> Routes {
    let shared = Shared { leader: Arc::clone(leader), settings: Arc::clone(&context.settings) };
    let mut routes = Routes::builder();
    routes
        .add_service(MicrovmServiceServer::new(microvms::Microvms::new(shared.clone())))
        .add_service(NetworkConnectorServiceServer::new(connectors::NetworkConnectors::new(shared.clone())))
        .add_service(AccessKeyServiceServer::new(access::AccessKeys::new(shared.clone())))
        .add_service(HostServiceServer::new(hosts::Hosts::new(shared)));
    routes.routes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_to_their_bytes() {
        for (lengths, count) in [
            (&[][..], 0),
            (&[1, 2, 3], 3),
            (&[PAGE_BYTES * 2, 1], 1),
            (&[PAGE_BYTES / 2, PAGE_BYTES / 4, PAGE_BYTES / 2, 1], 2),
        ] {
            let page: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            assert_eq!(fitting(page).len(), count, "{lengths:?}");
        }
    }
}
