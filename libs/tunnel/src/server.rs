//! The host's side.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::common::v1::Phase;
use api::tunnel::v1::{OpenRequest, OpenResponse, OpenStatus};
use futures::future::BoxFuture;
use rpc::{Identity, Role, TlsIdentity};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::Channel;
use crate::frame::{FrameError, read_frame, write_frame};

/// The host's end of a tunnel.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Longest write of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Tickets given per connection: clients open many at once.
const TICKETS: usize = 2;

/// Bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at one time; more are closed unanswered.
    pub connections: usize,
    /// Longest TLS handshake and OpenRequest together.
    pub opening: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16_384, opening: Duration::from_secs(5) }
    }
}

type Handler = Arc<dyn Fn(OpenRequest, Responder) -> BoxFuture<'static, ()> + Send + Sync>;

/// Takes tunnels from edge-proxies and admins.
pub struct Server {
    listener: TcpListener,
    acceptors: Acceptors,
    limits: Limits,
}

/// What accepts TLS connections. Sessions live in tickets, so that a busy edge does not push another's out of a table; the
/// tickets' key ends with the certificate or the CAs that were there when it was made.
struct Acceptors {
    identity: Arc<TlsIdentity>,
    base: Arc<ServerConfig>,
    acceptor: TlsAcceptor,
}

impl Acceptors {
    fn new(identity: Arc<TlsIdentity>) -> io::Result<Self> {
        let base = identity.server_config();
        Ok(Self { acceptor: with_tickets(&base)?, identity, base })
    }

    /// For one connection, with the files as they are by now.
    fn current(&mut self) -> io::Result<TlsAcceptor> {
        let base = self.identity.server_config();
        if !Arc::ptr_eq(&base, &self.base) {
            self.acceptor = with_tickets(&base)?;
            self.base = base;
        }
        Ok(self.acceptor.clone())
    }
}

fn with_tickets(base: &ServerConfig) -> io::Result<TlsAcceptor> {
    let mut config = base.clone();
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    config.send_tls13_tickets = TICKETS;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds and serves nothing yet.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        identity: &Arc<TlsIdentity>,
        limits: Limits,
    ) -> BoxFuture<'static, io::Result<Self>> {
        let acceptors = Acceptors::new(Arc::clone(identity));
        Box::pin(async move {
            let listener = rpc::listen(address).await?;
            Ok(Self { listener, acceptors: acceptors?, limits })
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Calls `handler` for every OpenRequest, in a task of its own, until
    /// `shutdown`; then accepts no more and waits for the handlers to end.
    pub fn serve<H, F>(self, handler: H, shutdown: CancellationToken) -> BoxFuture<'static, ()>
    where
        H: Fn(OpenRequest, Responder) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request, responder| Box::pin(handler(request, responder)));
        Box::pin(self.accept(handler, shutdown))
    }

    async fn accept(mut self, handler: Handler, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let accepted = accepted.and_then(|accepted| Ok((accepted, self.acceptors.current()?)));
            let ((stream, peer), acceptor) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a tunnel");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "too many tunnels");
                continue;
            };
            let (handler, limit) = (Arc::clone(&handler), self.limits.opening);
            tasks.spawn(async move {
                match tokio::time::timeout(limit, opening(acceptor, stream, peer)).await {
                    Ok(Ok((request, responder))) => handler(request, responder).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%peer, error = &error as &dyn std::error::Error, "no tunnel")
                    }
                    Err(_) => tracing::debug!(%peer, "no tunnel: too slow"),
                }
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

async fn opening(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<(OpenRequest, Responder), FrameError> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let caller = stream.get_ref().1.peer_certificates().and_then(Identity::in_chain);
    let role = caller.map(|caller| caller.role());
    let Some(role @ (Role::EdgeProxy | Role::Admin)) = role else {
        return Err(
            io::Error::new(io::ErrorKind::PermissionDenied, "the peer's role may not open tunnels").into()
        );
    };
    let request = read_frame(&mut stream).await?;
    Ok((request, Responder { stream, peer, role }))
}

/// Answers one OpenRequest, once. Dropped, it closes the connection unanswered.
#[derive(Debug)]
pub struct Responder {
    stream: ServerStream,
    peer: SocketAddr,
    role: Role,
}

impl Responder {
    /// Who asks.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The role in the peer's certificate: edge-proxy or admin.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns when the peer hangs up (or breaks the protocol by speaking
    /// before it is answered). To be raced against a wait; cancel-safe.
    pub async fn abandoned(&mut self) {
        // Any outcome means that nobody waits for an answer any more.
        let _ = self.stream.read(&mut [0; 1]).await;
    }

    /// Says CONNECTED, with the phases of a launch or wake that was waited for,
    /// and gives the channel for a [`Session`](crate::Session).
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn connect(
        mut self,
        phases: Vec<Phase>,
    ) -> BoxFuture<'static, Result<Channel<ServerStream>, FrameError>> {
        Box::pin(async move {
            let response =
                OpenResponse { status: OpenStatus::Connected.into(), phases, ..Default::default() };
            self.send(&response).await?;
            Ok(Channel::new(self.stream))
        })
    }

    /// Says no and closes. `retry_after` goes with BUSY.
    pub fn refuse(
        mut self,
        status: OpenStatus,
        message: impl Into<String>,
        retry_after: Option<Duration>,
    ) -> BoxFuture<'static, ()> {
        let retry_after = retry_after.map(api::duration_proto);
        let response = OpenResponse {
            status: status.into(),
            message: message.into(),
            retry_after,
            ..Default::default()
        };
        Box::pin(async move {
            if self.send(&response).await.is_ok() {
                // A peer that does not take the close in time is dropped.
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.stream.shutdown()).await;
            }
        })
    }

    async fn send(&mut self, response: &OpenResponse) -> Result<(), FrameError> {
        tokio::time::timeout(ANSWER_TIMEOUT, write_frame(&mut self.stream, response))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
