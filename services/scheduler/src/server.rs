//! The gRPC services: decode, one call, encode. Who may call what is said at
//! the top of each handler; nothing here logs or retries.

mod access_keys;
mod connectors;
mod domains;
mod errors;
mod hosts;
mod microvms;
mod validation;
mod wire;

use std::sync::Arc;

use api::access::v1::access_key_service_server::AccessKeyServiceServer;
use api::connector::v1::network_connector_service_server::NetworkConnectorServiceServer;
use api::domain::v1::domain_service_server::DomainServiceServer;
use api::host::v1::host_service_server::HostServiceServer;
use api::microvm::v1::microvm_service_server::MicrovmServiceServer;
use rpc::{Role, authorize};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::leader::Leader;
use crate::refusal::Refusal;
use crate::term::{Context, Term};
use crate::vouches::Vouches;

/// Most bytes of one page: clients take messages of 4 MiB, and what callers named and tagged may be long.
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

/// Every handler: one value serves all services.
#[derive(Debug, Clone)]
struct Handlers {
    leader: Arc<Leader>,
    config: Arc<Config>,
    vouches: Arc<Vouches>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Handlers {
    /// Answers a call: who may make it, the running term, then the call itself.
    async fn answer<Q, A, F>(
        &self,
        request: Request<Q>,
        callers: &[Role],
        call: impl FnOnce(Arc<Term>, Q) -> F,
    ) -> Answer<A>
    where
        F: Future<Output = Result<A, Refusal>>,
    {
        authorize(&request, callers)?;
        let leader = &self.leader;
        let term = leader.term().ok_or_else(|| errors::not_leading(leader))?;
        let answer = call(term, request.into_inner()).await;
        answer.map(Response::new).map_err(|refusal| errors::status(refusal, leader))
    }
}

pub fn routes(leader: &Arc<Leader>, context: &Context) -> Routes {
    let handlers = Handlers {
        leader: Arc::clone(leader),
        config: Arc::clone(&context.config),
        vouches: Arc::clone(&context.vouches),
    };
    let mut routes = Routes::builder();
    routes
        .add_service(MicrovmServiceServer::new(handlers.clone()))
        .add_service(NetworkConnectorServiceServer::new(handlers.clone()))
        .add_service(AccessKeyServiceServer::new(handlers.clone()))
        .add_service(DomainServiceServer::new(handlers.clone()))
        .add_service(HostServiceServer::new(handlers));
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
