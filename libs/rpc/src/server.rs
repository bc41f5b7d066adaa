//! The server side: bind first, so that a service knows its address and fails early, then serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::TlsIdentity;
use crate::incoming::incoming;
use crate::layer::CallLayer;

const CALLS_PER_CONNECTION_MAX: usize = 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const PREDECESSOR_WAIT: Duration = Duration::from_secs(2);
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(20);
/// How long running calls may take to end after shutdown began; watches never end by themselves.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}")]
    Bind { address: String, source: std::io::Error },
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors for reflection are broken: a bug.
    #[error("the reflection service cannot start: {0}")]
    Reflection(String),
}

/// Binds an address. One that a killed predecessor held is free a moment later: a child that it was just starting keeps
/// its sockets until it has become another program.
///
/// # Errors
/// When it is not free within two seconds, or cannot be bound at all.
pub async fn listen(address: impl tokio::net::ToSocketAddrs) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + PREDECESSOR_WAIT;
    loop {
        match TcpListener::bind(&address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PREDECESSOR_PAUSE).await;
            }
            bound => return bound,
        }
    }
}

pub struct ServerBuilder;

impl ServerBuilder {
    /// Binds `address` ("127.0.0.1:0" for any port) and serves nothing yet.
    pub fn bind<'a>(
        address: &'a str,
        identity: &'a Arc<TlsIdentity>,
    ) -> BoxFuture<'a, Result<BoundServer, ServeError>> {
        Box::pin(async move {
            let failed = |source| ServeError::Bind { address: address.to_owned(), source };
            let listener = listen(address).await.map_err(failed)?;
            let local_addr = listener.local_addr().map_err(failed)?;
            Ok(BoundServer { listener, local_addr, identity: Arc::clone(identity) })
        })
    }
}

/// A server that holds its address.
#[derive(Debug)]
pub struct BoundServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    identity: Arc<TlsIdentity>,
}

impl BoundServer {
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `routes`, health and reflection until `shutdown`, then gives running calls a moment to end.
    pub fn serve(
        self,
        routes: Routes,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), ServeError>> {
        Box::pin(async move {
            let (_, health) = tonic_health::server::health_reporter();
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(api::FILE_DESCRIPTOR_SET)
                .build_v1()
                .map_err(|error| ServeError::Reflection(error.to_string()))?;
            let stopped = shutdown.clone();
            let incoming = incoming(self.listener, self.identity, shutdown.clone());
            let serving = Server::builder()
                .layer(CallLayer)
                .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
                .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
                .add_routes(routes)
                .add_service(health)
                .add_service(reflection)
                .serve_with_incoming_shutdown(incoming, async move {
                    stopped.cancelled().await;
                });
            tokio::pin!(serving);
            tokio::select! {
                served = &mut serving => Ok(served?),
                () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN_TIMEOUT).await } => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_becomes_free_is_waited_for() {
        let held = listen("127.0.0.1:0").await.unwrap();
        let address = held.local_addr().unwrap();
        let next = tokio::spawn(listen(address));
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(next.await.unwrap().unwrap().local_addr().unwrap(), address);
    }
}
