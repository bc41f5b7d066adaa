//! One client connection from its handshake to its end: TLS, HTTP/1.1 or HTTP/2, and what ends it when nothing is under way.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config::Bounds;
use crate::server::activity::{Activity, Watched};
use crate::server::certificates::H2;
use crate::server::limits::Place;
use crate::server::listener::{Client, Handler};
use crate::server::stream::Patient;

/// How often a silent HTTP/2 client is asked whether it is still there, and how long it may think about it.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client that was told to go may take.
const GOING: Duration = Duration::from_secs(5);
/// Longest pause between two looks at what is under way.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Streams that a client may have reset before the edge has looked at them; beyond that the connection ends.
const RESET_STREAMS: usize = 32;
/// Streams that the edge may have reset because of a client's errors; beyond that the connection ends.
const ERROR_RESET_STREAMS: usize = 256;
/// Bytes of a response that wait in the edge for one HTTP/2 stream's turn.
const SEND_BUFFER: usize = 128 * 1024;

/// What it takes to serve connections.
pub struct Connections<H> {
    acceptor: TlsAcceptor,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    bounds: Bounds,
    handshakes: Semaphore,
    handler: Arc<H>,
    /// No new requests.
    stopping: CancellationToken,
    /// No requests at all.
    cut: CancellationToken,
}

/// What a connection holds of its listener until its socket closes: also a WebSocket's, which outlives HTTP.
#[derive(Debug)]
pub struct Held {
    open: Gauge,
    place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    pub fn new(open: &Gauge, place: Place, permit: OwnedSemaphorePermit) -> Self {
        open.inc();
        Self { open: open.clone(), place, _permit: permit }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl<H: Handler> Connections<H> {
    pub fn new(
        acceptor: TlsAcceptor,
        bounds: Bounds,
        handler: Arc<H>,
        stopping: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        let builder = http_builder(&bounds);
        Self {
            acceptor,
            http1: builder.clone().http1_only(),
            http2: builder.http2_only(),
            handshakes: Semaphore::new(bounds.handshakes.min(Semaphore::MAX_PERMITS)),
            bounds,
            handler,
            stopping,
            cut,
        }
    }

    /// Serves one client until it goes, or is told to.
    pub async fn serve(&self, stream: TcpStream, address: SocketAddr, held: Held) {
        let _ = stream.set_nodelay(true);
        let share = held.place.address().clone();
        let handshake = async {
            // Its own address's turn comes first, so that a crowd waits behind itself.
            let _own = share.handshake().await;
            let _turn = self.handshakes.acquire().await;
            self.acceptor.accept(stream).await
        };
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(self.bounds.handshake, handshake) => accepted,
            () = self.stopping.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let server_name = stream.get_ref().1.server_name().map(Arc::from);
                let client = Client { address, server_name, share, activity: Activity::new() };
                self.http(stream, client, held).await;
            }
            Ok(Err(error)) => tracing::debug!(client = %address, %error, "no TLS"),
            Err(_) => tracing::debug!(client = %address, "no TLS in time"),
        }
    }

    async fn http(&self, stream: TlsStream<TcpStream>, client: Client, held: Held) {
        let builder = if stream.get_ref().1.alpn_protocol() == Some(H2) { &self.http2 } else { &self.http1 };
        let (address, activity) = (client.address, client.activity.clone());
        let handler = self.handler.clone();
        let service = service_fn(move |request| answer(handler.clone(), client.clone(), request));
        let stream = TokioIo::new(Patient::new(stream, self.bounds.unread, held));
        let mut connection = pin!(builder.serve_connection_with_upgrades(stream, service));
        let every = self.bounds.idle.min(self.bounds.unread).min(LOOK_EVERY) / 2;
        let (mut going, mut stopping) = (false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(client = %address, %error, "a client connection broke");
                    }
                    return;
                }
                () = self.cut.cancelled() => return,
                () = self.stopping.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep(if going { every.min(GOING) } else { every }) => {
                    activity.give_up_unread(self.bounds.unread);
                    match activity.idle_for() {
                        Some(idle) if going && idle >= self.bounds.idle + GOING => return,
                        Some(idle) if !going && idle >= self.bounds.idle => {
                            going = true;
                            connection.as_mut().graceful_shutdown();
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Answers one request, and keeps an eye on what becomes of the answer.
async fn answer<H: Handler>(
    handler: Arc<H>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Response<Watched<H::Body>>, Infallible> {
    let in_flight = client.activity.begin();
    // Boxed: hyper keeps room for it in every connection, idle ones too.
    let response = Box::pin(handler.handle(client, request)).await;
    Ok(response.map(|body| Watched::new(body, in_flight)))
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
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(ERROR_RESET_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(bounds.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.connection_window)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
