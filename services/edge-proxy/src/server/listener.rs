//! Client connections: accept, TLS, HTTP/1.1 or HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Limits};
use crate::server::endpoint::Endpoints;

/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Requests at one time on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// HTTP/2 flow-control windows in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often a silent HTTP/2 client is asked whether it is still there, and how
/// long it may think about it.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const H2: &[u8] = b"h2";

/// A bound socket and what it takes to serve on it.
pub struct Listener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    limits: Limits,
}

impl Listener {
    /// Binds and loads the endpoints' certificate; serves nothing yet.
    ///
    /// # Errors
    /// When the address or the certificate cannot be used.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let tls = tls_config(config)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| anyhow::anyhow!("listen: cannot bind {}: {error}", config.listen))?;
        let builder = http_builder(&config.limits);
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            http1: builder.clone().http1_only(),
            http2: builder.http2_only(),
            limits: config.limits.clone(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then lets requests in flight end, within the
    /// drain time.
    pub async fn serve(self, endpoints: Arc<Endpoints>, shutdown: CancellationToken) {
        let Self {
            listener,
            acceptor,
            http1,
            http2,
            limits,
        } = self;
        let drain = Duration::from_millis(limits.drain_ms);
        let handshake = Duration::from_millis(limits.handshake_ms);
        let server = Arc::new(Connections {
            acceptor,
            http1,
            http2,
            handshake,
            endpoints,
        });
        let permits = Arc::new(Semaphore::new(limits.connections));
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
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
        drop(listener);
        if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
            tracing::warn!(drain_ms = drain.as_millis(), "requests were still in flight");
        }
    }
}

struct Connections {
    acceptor: TlsAcceptor,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    handshake: Duration,
    endpoints: Arc<Endpoints>,
}

impl Connections {
    async fn connection(&self, stream: TcpStream, client: SocketAddr, watcher: Watcher) {
        let metrics = self.endpoints.metrics.clone();
        metrics.connections.inc();
        let _ = stream.set_nodelay(true);
        match tokio::time::timeout(self.handshake, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let server_name: Option<Arc<str>> = stream.get_ref().1.server_name().map(Arc::from);
                let builder = if stream.get_ref().1.alpn_protocol() == Some(H2) {
                    &self.http2
                } else {
                    &self.http1
                };
                let endpoints = self.endpoints.clone();
                let service = service_fn(move |request| {
                    endpoints
                        .clone()
                        .handle(client.ip(), server_name.clone(), request)
                });
                let connection = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned();
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(%client, %error, "a client connection broke");
                }
            }
            Ok(Err(error)) => tracing::debug!(%client, %error, "no TLS"),
            Err(_) => tracing::debug!(%client, "no TLS in time"),
        }
        metrics.connections.dec();
    }
}

fn http_builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_read_ms))
        .max_buf_size(limits.header_bytes)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

fn tls_config(config: &Config) -> anyhow::Result<ServerConfig> {
    rpc::install_crypto_provider();
    let (cert, key) = (&config.endpoint_cert, &config.endpoint_key);
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| anyhow::anyhow!("endpoint_cert: {}: {error}", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| anyhow::anyhow!("endpoint_key: {}: {error}", key.display()))?;
    let mut tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| anyhow::anyhow!("endpoint_cert and endpoint_key: {error}"))?;
    tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    tls.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(tls)
}
