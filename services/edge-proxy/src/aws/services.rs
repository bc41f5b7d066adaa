//! The gRPC services behind the API.

use std::sync::Arc;
use std::time::Duration;

pub(crate) use api::connector::v1::network_connector_service_client::NetworkConnectorServiceClient;
pub(crate) use api::image::v1::image_service_client::ImageServiceClient;
pub(crate) use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use rpc::{CallBounds, Replicas, Role, TlsIdentity};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

/// Connections to each replica. A connection carries many calls at once, but its bytes pass through one task.
const CONNECTIONS: usize = 2;
/// Largest answer in bytes: a page of fifty versions with all the environment that the model allows has some twenty million.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One call of [`Services`] under the id of a request, `microvms.get_microvm`.
macro_rules! ask {
    ($services:expr, $request_id:expr, microvms.$method:ident, $message:expr) => {
        ask!($services, $request_id, schedulers, MicrovmServiceClient, $method, $message)
    };
    ($services:expr, $request_id:expr, connectors.$method:ident, $message:expr) => {
        ask!($services, $request_id, schedulers, NetworkConnectorServiceClient, $method, $message)
    };
    ($services:expr, $request_id:expr, images.$method:ident, $message:expr) => {
        ask!($services, $request_id, image_builders, ImageServiceClient, $method, $message)
    };
    ($services:expr, $request_id:expr, $replicas:ident, $client:ident, $method:ident, $message:expr) => {
        $services.call(&$services.$replicas, $request_id, $message, |channel, request| {
            let client = $crate::aws::services::$client::new(channel);
            let mut client = client.max_decoding_message_size($crate::aws::services::ANSWER_BYTES_MAX);
            async move { client.$method(request).await }
        })
    };
}
pub(crate) use ask;

#[derive(Debug)]
pub(crate) struct Services {
    pub schedulers: Replicas,
    pub image_builders: Replicas,
    bounds: CallBounds,
}

impl Services {
    /// Prepares connections; none is made before it is used. `wait` bounds each call.
    pub fn new(
        identity: &Arc<TlsIdentity>,
        schedulers: &[String],
        image_builders: &[String],
        wait: Duration,
    ) -> Result<Self, Status> {
        let replicas = |addresses, role| Replicas::with_connections(identity, addresses, role, CONNECTIONS);
        Ok(Self {
            schedulers: replicas(schedulers, Role::Scheduler)?,
            image_builders: replicas(image_builders, Role::ImageBuilder)?,
            bounds: CallBounds::once(wait),
        })
    }

    /// A call of one of them; [`ask!`] says which. What changes something carries a client token or may be repeated, so that
    /// a second try at another replica does no harm.
    pub async fn call<T, R, F, A>(
        &self,
        replicas: &Replicas,
        request_id: &str,
        message: T,
        call: F,
    ) -> Result<R, Status>
    where
        T: Clone,
        F: Fn(rpc::Transport, Request<T>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let id = MetadataValue::try_from(request_id).ok();
        let call = |channel, mut request: Request<T>| {
            if let Some(id) = &id {
                request.metadata_mut().insert(rpc::REQUEST_ID, id.clone());
            }
            call(channel, request)
        };
        replicas.call(self.bounds, message, call).await
    }
}
