//! The gRPC services behind the API: a few multiplexed connections to each
//! replica, kept for good.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::connector::v1::network_connector_service_client::NetworkConnectorServiceClient;
use api::errors::{self, reason};
use api::image::v1::image_service_client::ImageServiceClient;
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use rpc::{Role, TlsIdentity};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Connections to each replica. A connection carries many calls at once, but
/// its bytes pass through one task.
const CONNECTIONS: usize = 2;
/// Largest answer in bytes: a page of fifty versions with all the environment
/// that the model allows has some twenty million.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One call of [`Services`] under the id of a request.
macro_rules! ask {
    ($services:expr, $request_id:expr, $service:ident.$method:ident, $message:expr) => {
        $services.$service($request_id, $message, |mut client, request| async move {
            client.$method(request).await
        })
    };
}

pub(crate) use ask;

/// Calls to the fleet's services.
#[derive(Debug)]
pub struct Services {
    schedulers: Replicas,
    image_builders: Replicas,
    wait: Duration,
}

/// The replicas of one service.
#[derive(Debug)]
struct Replicas {
    connections: Vec<[Channel; CONNECTIONS]>,
    /// The replica that answered last.
    current: AtomicUsize,
    /// Calls so far, to share them out among connections.
    calls: AtomicUsize,
}

impl Services {
    /// Prepares connections; none is made before it is used. `wait` bounds each
    /// call.
    pub fn new(
        identity: &TlsIdentity,
        schedulers: &[String],
        image_builders: &[String],
        wait: Duration,
    ) -> Result<Self, Status> {
        Ok(Self {
            schedulers: Replicas::new(identity, schedulers, Role::Scheduler)?,
            image_builders: Replicas::new(identity, image_builders, Role::ImageBuilder)?,
            wait,
        })
    }

    /// A call of the microVM service.
    pub async fn microvms<T, R, F, A>(&self, request_id: &str, message: T, call: F) -> Result<R, Status>
    where
        T: Clone,
        F: Fn(MicrovmServiceClient<Channel>, Request<T>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let call = |channel, request| {
            let client = MicrovmServiceClient::new(channel);
            call(client.max_decoding_message_size(ANSWER_BYTES_MAX), request)
        };
        self.call(&self.schedulers, request_id, message, call).await
    }

    /// A call of the connector service.
    pub async fn connectors<T, R, F, A>(&self, request_id: &str, message: T, call: F) -> Result<R, Status>
    where
        T: Clone,
        F: Fn(NetworkConnectorServiceClient<Channel>, Request<T>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let call = |channel, request| {
            let client = NetworkConnectorServiceClient::new(channel);
            call(client.max_decoding_message_size(ANSWER_BYTES_MAX), request)
        };
        self.call(&self.schedulers, request_id, message, call).await
    }

    /// A call of the image service.
    pub async fn images<T, R, F, A>(&self, request_id: &str, message: T, call: F) -> Result<R, Status>
    where
        T: Clone,
        F: Fn(ImageServiceClient<Channel>, Request<T>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let call = |channel, request| {
            let client = ImageServiceClient::new(channel);
            call(client.max_decoding_message_size(ANSWER_BYTES_MAX), request)
        };
        self.call(&self.image_builders, request_id, message, call).await
    }

    /// Asks one replica after the other until one answers, each at most once.
    /// What changes something carries a client token or may be repeated, so that
    /// a second try does no harm.
    async fn call<T, R, F, A>(
        &self,
        replicas: &Replicas,
        request_id: &str,
        message: T,
        call: F,
    ) -> Result<R, Status>
    where
        T: Clone,
        F: Fn(Channel, Request<T>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let tries = async {
            let mut left = replicas.connections.len();
            loop {
                left -= 1;
                let mut request = rpc::request(message.clone());
                if let Ok(id) = MetadataValue::try_from(request_id) {
                    request.metadata_mut().insert(rpc::REQUEST_ID, id);
                }
                let (replica, channel) = replicas.pick();
                match call(channel, request).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if is_elsewhere(&status) => {
                        replicas.leave(replica);
                        if left == 0 {
                            return Err(status);
                        }
                    }
                    Err(status) => return Err(status),
                }
            }
        };
        let answered = tokio::time::timeout(self.wait, tries).await;
        answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
    }
}

/// Whether another replica may have what this one has not.
fn is_elsewhere(status: &Status) -> bool {
    let moves = |reason: String| reason == reason::NOT_LEADER;
    status.code() == Code::Unavailable && errors::reason_of(status).is_none_or(moves)
}

impl Replicas {
    fn new(identity: &TlsIdentity, addresses: &[String], role: Role) -> Result<Self, Status> {
        let connections = |address: &String| -> Result<_, Status> {
            let one = || rpc::channel(identity, address, role);
            Ok([one()?, one()?])
        };
        Ok(Self {
            connections: addresses.iter().map(connections).collect::<Result<_, _>>()?,
            current: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        })
    }

    fn pick(&self) -> (usize, Channel) {
        let replica = self.current.load(Ordering::Relaxed);
        let connection = self.calls.fetch_add(1, Ordering::Relaxed) % CONNECTIONS;
        let channels = &self.connections[replica % self.connections.len()];
        (replica, channels[connection].clone())
    }

    /// Moves on from a replica, unless another call did so already.
    fn leave(&self, replica: usize) {
        let next = replica.wrapping_add(1);
        let _ = self.current.compare_exchange(replica, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}
