//! Client connections: accept, and who may have one. What is served on them is a [`Handler`]'s business.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapters::domains::Domains;
use crate::adapters::token_keys::LastToken;
use crate::config::{Bounds, Socket};
use crate::metrics::{ConnectionMetrics, RefusedConnection};
use crate::server::activity::Activity;
use crate::server::certificates::Certificate;
use crate::server::connection::{Connections, Held};
use crate::server::limits::{Address, Addresses};

/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Answers the requests of one listener.
pub trait Handler: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: std::error::Error + Send + Sync>
        + Unpin
        + Send
        + std::fmt::Debug
        + 'static;

    /// Answers one request; every failure has an answer.
    fn handle(
        self: Arc<Self>,
        client: Client,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    fn connections(&self) -> &ConnectionMetrics;
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: SocketAddr,
    /// The name it gave in the TLS handshake.
    pub server_name: Option<Arc<str>>,
    /// What it shares with the other connections of its address.
    pub share: Arc<Address>,
    /// What is under way on its connection.
    pub activity: Arc<Activity>,
    /// The token that it showed last.
    pub last_token: Arc<LastToken>,
}

/// Bound sockets and what it takes to serve on them. The bounds are for all of them together.
pub struct Listener {
    /// At least one.
    sockets: Vec<TcpListener>,
    acceptor: TlsAcceptor,
    bounds: Bounds,
}

impl Listener {
    /// Binds and loads the certificate; serves nothing yet. `own` are names for which another certificate is shown.
    pub async fn bind(socket: Socket<'_>, own: Option<Domains>, bounds: Bounds) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Certificate::load(socket, own)?.server()?);
        let [listen, ..] = socket.names;
        let mut sockets = Vec::with_capacity(socket.addresses.len());
        for address in socket.addresses {
            let bound = rpc::listen(address).await;
            sockets.push(bound.map_err(|error| anyhow::anyhow!("{listen}: cannot bind {address}: {error}"))?);
        }
        Ok(Self { sockets, acceptor, bounds })
    }

    /// The addresses, in the order of the setting.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until `shutdown`, then lets requests in flight end, within the drain time.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, shutdown: CancellationToken) {
        let Self { mut sockets, acceptor, bounds } = self;
        let (cut, serving) = (CancellationToken::new(), TaskTracker::new());
        let server = Connections::new(acceptor, bounds, handler.clone(), shutdown.clone(), cut.clone());
        let (server, metrics) = (Arc::new(server), handler.connections());
        let permits = Arc::new(Semaphore::new(bounds.connections.min(Semaphore::MAX_PERMITS)));
        let addresses = Addresses::new(bounds.per_address, bounds.handshakes);
        let admit = |stream, client: SocketAddr| {
            // Before TLS: who has too many already costs no more than this.
            let refused = |bound| {
                metrics.refused.get_or_create(&RefusedConnection { bound }).inc();
                tracing::debug!(%client, bound, "too many connections");
            };
            let Some(place) = addresses.enter(client.ip(), Instant::now()) else { return refused("address") };
            let Ok(permit) = permits.clone().try_acquire_owned() else { return refused("listener") };
            let (server, held) = (server.clone(), Held::new(&metrics.open, place, permit));
            serving.spawn(async move { server.serve(stream, client, held).await });
        };
        loop {
            let accepted = tokio::select! {
                accepted = accept(&mut sockets) => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, client)) => admit(stream, client),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        for (stream, client) in waiting(sockets) {
            admit(stream, client);
        }
        serving.close();
        if tokio::time::timeout(bounds.drain, serving.wait()).await.is_err() {
            tracing::warn!(drain_ms = bounds.drain.as_millis(), "requests were still in flight");
        }
        cut.cancel();
        serving.wait().await;
    }
}

/// Closes the sockets, and gives the connections that the kernel had made for them: to their clients these stand.
fn waiting(sockets: Vec<TcpListener>) -> Vec<(TcpStream, SocketAddr)> {
    let mut waiting = Vec::new();
    for socket in sockets.into_iter().filter_map(|socket| socket.into_std().ok()) {
        // It does not block, so this ends with the last of them.
        while let Ok((stream, client)) = socket.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            waiting.extend(stream.ok().map(|stream| (stream, client)));
        }
    }
    waiting
}

/// The next connection of any of the sockets. Each is asked first in its turn, so that a busy one does not keep the others
/// waiting.
async fn accept(sockets: &mut [TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    sockets.rotate_left(1);
    poll_fn(|context| {
        let ready = sockets.iter().map(|socket| socket.poll_accept(context)).find(Poll::is_ready);
        ready.unwrap_or(Poll::Pending)
    })
    .await
}
