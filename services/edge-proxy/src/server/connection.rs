//! One client connection from its handshake to its end: TLS, HTTP/1.1 or HTTP/2, and what ends it when nothing is under way.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::http1::{self, Parts};
use hyper::server::conn::http2;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config::Bounds;
use crate::metrics::Counted;
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
/// How long a client that is connected when the edge stops may take for one more request: it may be on its way, and whoever closes
/// under it loses it.
const LAST_CALL: Duration = Duration::from_secs(2);
/// The same, as a part of the drain time: a connection may have three such waits one after the other.
const LAST_CALL_PART: u32 = 4;
/// Longest pause between two looks at what is under way.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How long an HTTP/1.1 connection is quiet before it gives its buffers back.
const REST_AFTER: Duration = Duration::from_secs(2);
/// Most bytes that are read of a connection that begins to speak again, before it has its buffers.
const AHEAD: usize = 512;
/// Streams that a client may have reset before the edge has looked at them; beyond that the connection ends.
const RESET_STREAMS: usize = 32;
/// Streams that the edge may have reset because of a client's errors; beyond that the connection ends.
const ERROR_RESET_STREAMS: usize = 256;
/// Bytes of a response that wait in the edge for one HTTP/2 stream's turn.
const SEND_BUFFER: usize = 128 * 1024;

/// Its TLS is boxed: it is moved about between what serves it.
type ClientStream = Patient<Box<TlsStream<TcpStream>>, Held>;

/// What it takes to serve connections.
pub struct Connections<H> {
    acceptor: TlsAcceptor,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
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
    _open: Counted,
    place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    pub fn new(open: &Gauge, place: Place, permit: OwnedSemaphorePermit) -> Self {
        Self { _open: Counted::new(open), place, _permit: permit }
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
        Self {
            acceptor,
            http1: http1_builder(&bounds),
            http2: http2_builder(&bounds),
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
            self.acceptor.accept(stream).await.map(Box::new)
        };
        let accepted = tokio::select! {
            // Boxed, so that the connection's task does not keep its room.
            accepted = tokio::time::timeout(self.bounds.handshake, Box::pin(handshake)) => accepted,
            () = self.last_call() => return,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let server_name = stream.get_ref().1.server_name().map(Arc::from);
                let client = Client {
                    address,
                    server_name,
                    share,
                    activity: Activity::new(),
                    last_token: Arc::default(),
                };
                let http2 = stream.get_ref().1.alpn_protocol() == Some(H2);
                let stream = Patient::new(stream, self.bounds.unread, Some(client.activity.clone()), held);
                // Boxed: neither version pays for the other.
                match http2 {
                    true => Box::pin(self.http2(stream, client)).await,
                    false => Box::pin(self.http1(stream, client)).await,
                }
            }
            Ok(Err(error)) => tracing::debug!(client = %address, %error, "no TLS"),
            Err(_) => tracing::debug!(client = %address, "no TLS in time"),
        }
    }

    /// HTTP/1.1. A connection that is quiet for a while keeps its TLS session and nothing else: the buffers of HTTP are most
    /// of what it takes.
    async fn http1(&self, mut stream: ClientStream, client: Client) {
        loop {
            let Some((quiet, read)) = self.requests(stream, &client).await else { return };
            stream = quiet;
            let ahead = match read {
                None => self.rest(&mut stream, &client).await,
                read => read,
            };
            match ahead {
                Some(ahead) => stream = stream.rewound(ahead),
                None => {
                    let _ = tokio::time::timeout(GOING, stream.shutdown()).await;
                    return;
                }
            }
        }
    }

    /// Serves HTTP/1.1 requests until the connection is quiet; then gives its stream, and what was read of a next request. `None`
    /// when it has ended. Nothing of HTTP outlives this call.
    async fn requests(&self, stream: ClientStream, client: &Client) -> Option<(ClientStream, Option<Bytes>)> {
        let connection = self.http1.serve_connection(TokioIo::new(stream), self.service(client));
        let mut connection = Box::new(connection.with_upgrades());
        let outcome = self.converse(Pin::new(&mut *connection), client, Some(REST_AFTER)).await;
        let Parts { io, read_buf, .. } =
            if outcome == Outcome::Quiet { connection.into_parts()? } else { return None };
        Some((io.into_inner(), (!read_buf.is_empty()).then_some(read_buf)))
    }

    async fn http2(&self, stream: ClientStream, client: Client) {
        let connection = pin!(self.http2.serve_connection(TokioIo::new(stream), self.service(&client)));
        self.converse(connection, &client, None).await;
    }

    /// Waits for the next bytes of a quiet connection. `None` when it is over.
    async fn rest<S: AsyncRead + Unpin>(&self, stream: &mut S, client: &Client) -> Option<Bytes> {
        let next = poll_fn(|cx| {
            let mut space = [0; AHEAD];
            let mut space = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut space));
            Poll::Ready(read.map(|()| Bytes::copy_from_slice(space.filled())))
        });
        client.last_token.forget();
        let _quiet = Counted::new(&self.handler.connections().quiet);
        let left = self.bounds.idle.saturating_sub(client.activity.idle_for().unwrap_or_default());
        tokio::select! {
            // What has come comes before an end.
            biased;
            next = next => next.ok().filter(|bytes| !bytes.is_empty()),
            () = tokio::time::sleep(left) => None,
            () = self.last_call() => None,
        }
    }

    /// Returns when the edge has been told to stop, and clients have had the time for one more request.
    async fn last_call(&self) {
        self.stopping.cancelled().await;
        tokio::time::sleep(LAST_CALL.min(self.bounds.drain / LAST_CALL_PART)).await;
    }

    fn service(
        &self,
        client: &Client,
    ) -> impl HttpService<Incoming, ResBody = Watched<H::Body>, Error = Infallible, Future: Send> + use<H>
    {
        let (handler, client) = (self.handler.clone(), client.clone());
        let stopping = self.stopping.clone();
        service_fn(move |request| answer(handler.clone(), client.clone(), stopping.clone(), request))
    }

    /// Serves requests until the connection ends, or until it has been quiet for `rest_after` since its last request.
    async fn converse<C: Conversation>(
        &self,
        mut connection: Pin<&mut C>,
        client: &Client,
        rest_after: Option<Duration>,
    ) -> Outcome {
        let activity = &client.activity;
        let begun = activity.begun();
        let every = self.bounds.idle.min(self.bounds.unread).min(LOOK_EVERY) / 2;
        let every = rest_after.map_or(every, |rest_after| every.min(rest_after));
        let (mut going, mut stopping, mut told) = (false, false, false);
        let mut last_call = pin!(self.last_call());
        loop {
            tokio::select! {
                // A request that has come is begun before the connection may be closed.
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(client = %client.address, %error, "a client connection broke");
                    }
                    return Outcome::Ended;
                }
                () = self.cut.cancelled() => return Outcome::Ended,
                () = self.stopping.cancelled(), if !stopping => {
                    stopping = true;
                    // HTTP/2 tells its client which requests it still takes. Over HTTP/1.1 the next answer is the last, and a client
                    // that has asked nothing may be about to.
                    told = rest_after.is_none() || activity.idle_for().is_none();
                    if told {
                        connection.as_mut().graceful_shutdown();
                    }
                }
                () = &mut last_call, if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep(if going { every.min(GOING) } else { every }) => {
                    activity.give_up_unread(self.bounds.unread);
                    let Some(idle) = activity.idle_for() else { continue };
                    if going && idle >= self.bounds.idle + GOING {
                        return Outcome::Ended;
                    } else if !going && idle >= self.bounds.idle {
                        going = true;
                        connection.as_mut().graceful_shutdown();
                    } else if !going && !stopping
                        && rest_after.is_some_and(|rest_after| idle >= rest_after)
                        // Else whoever sends a head byte by byte would have its time anew with each rest.
                        && activity.begun() > begun
                    {
                        return Outcome::Quiet;
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ended,
    Quiet,
}

/// A connection of either version.
trait Conversation: Future<Output = hyper::Result<()>> {
    /// Has it take no new requests.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S> Conversation for http1::UpgradeableConnection<I, S>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, B, S> Conversation for http2::Connection<I, S, TokioExecutor>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
    TokioExecutor: Http2ServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Answers one request, and keeps an eye on what becomes of the answer.
async fn answer<H: Handler>(
    handler: Arc<H>,
    client: Client,
    stopping: CancellationToken,
    request: Request<Incoming>,
) -> Result<Response<Watched<H::Body>>, Infallible> {
    let in_flight = client.activity.begin();
    let http1 = request.version() < Version::HTTP_2;
    // Boxed: hyper keeps room for it in every connection, idle ones too.
    let mut response = Box::pin(handler.handle(client, request)).await;
    // A connection that stood idle when the edge was told to stop: its client goes elsewhere with the next request.
    if http1 && stopping.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Watched::new(body, in_flight)))
}

fn http1_builder(bounds: &Bounds) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_read)
        .max_buf_size(bounds.header_bytes)
        .half_close(false);
    builder
}

fn http2_builder(bounds: &Bounds) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
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
