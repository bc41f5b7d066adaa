//! The user's app: HTTP/1.1 and HTTP/2, without TLS or with nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub struct AppServer {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    /// Bytes that "/endless" has written, and how many answers of it and of "/silent" are at work.
    pub produced: Arc<AtomicUsize>,
    pub writers: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for AppServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AppServer {
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// The same app over TLS. To a client that does not begin with a handshake it says `to_plain`, if that is anything else than
    /// what TLS says itself.
    pub async fn start_tls(config: ServerConfig, to_plain: Option<&'static str>) -> Self {
        Self::serve(Some((TlsAcceptor::from(Arc::new(config)), to_plain))).await
    }

    async fn serve(tls: Option<(TlsAcceptor, Option<&'static str>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let [requests, produced, writers] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let seen = Seen { produced: produced.clone(), writers: writers.clone() };
        let counter = requests.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (counter, seen, tls) = (counter.clone(), seen.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve_one(stream, counter, seen).await,
                        Some((acceptor, to_plain)) => {
                            if let Some(stream) = accept(&acceptor, to_plain, stream).await {
                                serve_one(stream, counter, seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, requests, produced, writers, task }
    }
}

/// Shakes hands with a client that begins with it.
async fn accept(
    acceptor: &TlsAcceptor,
    to_plain: Option<&'static str>,
    mut stream: TcpStream,
) -> Option<TlsStream<TcpStream>> {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    stream.peek(&mut first).await.ok()?;
    match to_plain {
        Some(text) if first != [HANDSHAKE] => {
            let _ = stream.write_all(text.as_bytes()).await;
            None
        }
        _ => acceptor.accept(stream).await.ok(),
    }
}

async fn serve_one<S>(stream: S, counter: Arc<AtomicUsize>, seen: Seen)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        answer(request, served.fetch_add(1, Ordering::SeqCst), seen.clone())
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

type AppBody = BoxBody<Bytes, BoxError>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Result<Response<AppBody>, &'static str>;

/// What the app tells the test.
#[derive(Clone)]
struct Seen {
    produced: Arc<AtomicUsize>,
    writers: Arc<AtomicUsize>,
}

/// Counts for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn text(text: impl Into<Bytes>) -> AppBody {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// Writes as fast as it is read.
fn endless(seen: Seen) -> AppBody {
    seen.writers.fetch_add(1, Ordering::SeqCst);
    let (produced, counted) = (seen.produced, Counted(seen.writers));
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let frames = futures::stream::repeat_with(move || {
        let _ = &counted;
        produced.fetch_add(chunk.len(), Ordering::SeqCst);
        Ok(Frame::data(chunk.clone()))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

async fn message_with_trailers(request: Request<Incoming>) -> AppBody {
    let seen = request.into_body().collect().await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    if let Some(checksum) = seen.trailers().and_then(|trailers| trailers.get("x-checksum")) {
        trailers.insert("x-seen", checksum.clone());
    }
    let body = Full::new(Bytes::from("message")).with_trailers(async move { Some(Ok(trailers)) });
    body.map_err(|never: Infallible| match never {}).boxed()
}

fn socket(mut request: Request<Incoming>) -> Response<AppBody> {
    let value =
        |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    let seen = ["upgrade", "sec-websocket-protocol", "sec-websocket-version", "x-aws-proxy-auth"]
        .map(value)
        .join(" ");
    let selected = value("x-select");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        stream.write_all(format!("{seen}\n").as_bytes()).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    let mut response = Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", "from the app");
    if selected != "-" {
        response = response.header("sec-websocket-protocol", selected);
    }
    response.body(text("")).unwrap()
}

/// `served` counts the requests of this connection before this one.
async fn answer(request: Request<Incoming>, served: usize, seen: Seen) -> Answer {
    match request.uri().path() {
        // What arrived: version, target and headers, one per line.
        "/seen" => {
            let mut lines = vec![format!("{:?} {}", request.version(), request.uri())];
            let header = |(name, value): (&http::HeaderName, &HeaderValue)| {
                format!("{name}: {}", value.to_str().unwrap())
            };
            let mut headers: Vec<String> = request.headers().iter().map(header).collect();
            headers.sort();
            lines.extend(headers);
            let response = Response::builder()
                .header("x-aws-proxy-error", "SPOOFED")
                .header("x-app", "yes")
                .header("server-timing", "own;dur=1")
                .header("set-cookie", "__Host-torpor=evil; Path=/; Secure")
                .header("set-cookie", "app=1")
                .header("keep-alive", "timeout=5");
            Ok(response.body(text(lines.join("\n"))).unwrap())
        }
        // Switches protocols and sends back what comes, after the headers of the handshake that it saw.
        "/socket" => Ok(socket(request)),
        "/echo" => Ok(Response::new(request.into_body().map_err(BoxError::from).boxed())),
        // Reads nothing and says nothing.
        "/stall" => {
            std::future::pending::<()>().await;
            drop(request);
            Err("not reached")
        }
        // Is at work and says nothing.
        "/silent" => {
            seen.writers.fetch_add(1, Ordering::SeqCst);
            let _counted = Counted(seen.writers);
            std::future::pending::<()>().await;
            Err("not reached")
        }
        "/endless" => Ok(Response::new(endless(seen))),
        // Sends back the first piece of the request and falls over at the second.
        "/reset" => {
            let pieces =
                request.into_body().into_data_stream().enumerate().map(|(number, piece)| match number {
                    0 => piece.map(Frame::data).map_err(BoxError::from),
                    _ => Err("the app falls over".into()),
                });
            Ok(Response::new(BodyExt::boxed(StreamBody::new(pieces))))
        }
        // Dies on a connection that has been used, before it answers.
        "/flaky" if served > 0 => Err("the app falls over"),
        "/flaky" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok(Response::new(text(body)))
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Ok(Response::new(text("slow")))
        }
        "/trailers" => Ok(Response::new(message_with_trailers(request).await)),
        _ => Ok(Response::new(text("hello"))),
    }
}
