//! Client connections: accept, TLS, HTTP/1.1 or HTTP/2. What is served on them is a [`Handler`]'s business.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use prometheus_client::metrics::gauge::Gauge;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{Bounds, Socket};

/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How often a silent HTTP/2 client is asked whether it is still there, and how long it may think about it.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const H2: &[u8] = b"h2";

/// Answers the requests of one listener.
pub trait Handler: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static;

    /// Answers one request; every failure has an answer.
    fn handle(
        self: Arc<Self>,
        client: Client,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    fn open(&self) -> &Gauge;
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: SocketAddr,
    /// The name it gave in the TLS handshake.
    pub server_name: Option<Arc<str>>,
}

/// Bound sockets and what it takes to serve on them. The bounds are for all of them together.
pub struct Listener {
    /// At least one.
    sockets: Vec<TcpListener>,
    acceptor: TlsAcceptor,
    bounds: Bounds,
}

impl Listener {
    /// Binds and loads the certificate; serves nothing yet.
    pub async fn bind(socket: Socket<'_>, bounds: Bounds) -> anyhow::Result<Self> {
        let tls = tls_config(socket)?;
        let [listen, ..] = socket.names;
        let mut sockets = Vec::with_capacity(socket.addresses.len());
        for address in socket.addresses {
            let bound = TcpListener::bind(address).await;
            sockets.push(bound.map_err(|error| anyhow::anyhow!("{listen}: cannot bind {address}: {error}"))?);
        }
        Ok(Self { sockets, acceptor: TlsAcceptor::from(Arc::new(tls)), bounds })
    }

    /// The addresses, in the order of the setting.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until `shutdown`, then lets requests in flight end, within the drain time.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, shutdown: CancellationToken) {
        let Self { mut sockets, acceptor, bounds } = self;
        let builder = http_builder(&bounds);
        let server = Arc::new(Connections {
            acceptor,
            http1: builder.clone().http1_only(),
            http2: builder.http2_only(),
            handshake: bounds.handshake,
            handler,
        });
        let permits = Arc::new(Semaphore::new(bounds.connections));
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&mut sockets) => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                tracing::warn!(%client, "too many connections");
                continue;
            };
            let (server, watcher) = (server.clone(), graceful.watcher());
            tokio::spawn(async move {
                server.connection(stream, client, watcher).await;
                drop(permit);
            });
        }
        drop(sockets);
        if tokio::time::timeout(bounds.drain, graceful.shutdown()).await.is_err() {
            tracing::warn!(drain_ms = bounds.drain.as_millis(), "requests were still in flight");
        }
    }
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

struct Connections<H> {
    acceptor: TlsAcceptor,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    handshake: Duration,
    handler: Arc<H>,
}

impl<H: Handler> Connections<H> {
    async fn connection(&self, stream: TcpStream, address: SocketAddr, watcher: Watcher) {
        self.handler.open().inc();
        let _ = stream.set_nodelay(true);
        match tokio::time::timeout(self.handshake, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let client = Client { address, server_name: stream.get_ref().1.server_name().map(Arc::from) };
                let builder =
                    if stream.get_ref().1.alpn_protocol() == Some(H2) { &self.http2 } else { &self.http1 };
                let handler = self.handler.clone();
                let service = service_fn(move |request| {
                    // Boxed: hyper keeps room for it in every connection, idle ones too.
                    let answered = Box::pin(handler.clone().handle(client.clone(), request));
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let connection =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(client = %address, %error, "a client connection broke");
                }
            }
            Ok(Err(error)) => tracing::debug!(client = %address, %error, "no TLS"),
            Err(_) => tracing::debug!(client = %address, "no TLS in time"),
        }
        self.handler.open().dec();
    }
}

fn http_builder(bounds: &Bounds) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_read)
        .max_buf_size(bounds.header_bytes)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        // WebSockets over HTTP/2 (RFC 8441).
        .enable_connect_protocol()
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(u32::try_from(bounds.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.connection_window)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

fn tls_config(socket: Socket<'_>) -> anyhow::Result<ServerConfig> {
    rpc::install_crypto_provider();
    let [_, cert_name, key_name] = socket.names;
    let chain = CertificateDer::pem_file_iter(socket.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| anyhow::anyhow!("{cert_name}: {}: {error}", socket.certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(socket.key)
        .map_err(|error| anyhow::anyhow!("{key_name}: {}: {error}", socket.key.display()))?;
    let mut tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| anyhow::anyhow!("{cert_name} and {key_name}: {error}"))?;
    tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    tls.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(tls)
}
