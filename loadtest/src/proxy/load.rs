//! The load: connections that are opened before anything is measured, each in slots that hold one request at a
//! time, driven in a closed loop (every slot as fast as it is answered) or in the open loop of [`pace`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::websocket;
use crate::pace::{self, Plan};
use crate::report::Latencies;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Uncounted load after the connections are open: the proxies open theirs to what is behind them.
const WARM_UP: Duration = Duration::from_millis(500);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Failed requests of one closed loop, with which a measurement is given up.
const FAILURES_MAX: u64 = 100;
/// HTTP/2 flow-control windows in bytes: the proxies' send buffers are the limit, not the load's.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    WebSocket,
}

/// Where requests go, and as whom.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    /// Name in the certificate and in the Host header.
    pub host: String,
    /// Without it the connection is plain TCP.
    pub tls: Option<Arc<ClientConfig>>,
    /// Shown with every request.
    pub token: Option<String>,
}

/// What is asked, again and again.
#[derive(Clone)]
pub struct Question {
    pub protocol: Protocol,
    pub path: String,
    /// Length of a right answer in bytes, where that is known.
    pub length: Option<usize>,
}

/// How many connections there are, and how many requests at a time on each.
#[derive(Clone, Copy)]
pub struct Shape {
    pub connections: usize,
    pub streams: usize,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

enum Connection {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
    WebSocket(Box<dyn Stream>),
}

/// One request at a time.
pub struct Slot {
    target: Arc<Target>,
    question: Arc<Question>,
    request: Request<()>,
    connection: Option<Connection>,
}

/// What a closed loop did.
#[derive(Default)]
pub struct Closed {
    pub latencies: Latencies,
    pub bytes: u64,
    pub failed: u64,
    pub elapsed: Duration,
}

/// A client's TLS that trusts the CA in the PEM file `ca`.
pub fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    rpc::install_crypto_provider();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).context("the fleet's CA")? {
        roots.add(certificate.context("the fleet's CA")?)?;
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// Opens every connection and asks on all of them, so that no measured request pays for a connection.
pub async fn open(target: &Target, question: &Question, shape: Shape) -> anyhow::Result<Vec<Slot>> {
    let (target, question) = (Arc::new(target.clone()), Arc::new(question.clone()));
    let mut slots = Vec::new();
    for _ in 0..shape.connections {
        let mut first = Slot::new(target.clone(), question.clone())?;
        first.exchange().await?;
        let shared = match &first.connection {
            Some(Connection::Http2(sender)) => Some(sender.clone()),
            _ => None,
        };
        slots.push(first);
        if let Some(sender) = shared {
            for _ in 1..shape.streams {
                let mut slot = Slot::new(target.clone(), question.clone())?;
                slot.connection = Some(Connection::Http2(sender.clone()));
                slots.push(slot);
            }
        }
    }
    closed(&mut slots, WARM_UP).await?;
    Ok(slots)
}

/// Every slot asks as soon as it is answered, for `duration`.
pub async fn closed(slots: &mut Vec<Slot>, duration: Duration) -> anyhow::Result<Closed> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for slot in slots.drain(..) {
        tasks.spawn(slot.repeat(began + duration));
    }
    let mut all = Closed::default();
    let mut last = None;
    while let Some(ended) = tasks.join_next().await {
        let (slot, one, error) = ended?;
        slots.push(slot);
        all.latencies.add(&one.latencies);
        all.bytes += one.bytes;
        all.failed += one.failed;
        last = error.or(last);
    }
    all.elapsed = began.elapsed();
    match last {
        Some(error) if all.failed >= FAILURES_MAX || all.latencies.count() == 0 => {
            Err(error.context(format!("{} requests failed", all.failed)))
        }
        _ => Ok(all),
    }
}

/// Requests become due at the plan's rate and go to the first slot that is free.
pub async fn paced(slots: Vec<Slot>, plan: &Plan) -> anyhow::Result<pace::Outcome> {
    let permits = Arc::new(Semaphore::new(slots.len()));
    let free = Arc::new(Mutex::new(slots));
    pace::run(plan, 1, |_| {
        let (permits, free) = (permits.clone(), free.clone());
        async move {
            let _permit = permits.acquire().await?;
            let slot = free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut slot = slot.context("a permit without a slot")?;
            let asked = slot.exchange().await;
            free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
            asked.map(drop)
        }
    })
    .await
}

impl Slot {
    fn new(target: Arc<Target>, question: Arc<Question>) -> anyhow::Result<Self> {
        let scheme = if target.tls.is_some() { "https" } else { "http" };
        let uri = match question.protocol {
            Protocol::Http2 => format!("{scheme}://{}{}", target.host, question.path),
            Protocol::Http1 | Protocol::WebSocket => question.path.clone(),
        };
        let mut request = Request::get(uri.parse::<Uri>()?);
        if question.protocol != Protocol::Http2 {
            request = request.header(http::header::HOST, HeaderValue::try_from(&target.host)?);
        }
        if let Some(token) = &target.token {
            request = request.header(client::AUTH_HEADER, HeaderValue::try_from(token)?);
        }
        Ok(Self { request: request.body(())?, target, question, connection: None })
    }

    /// A slot that connects with its first request.
    pub fn connected_to(target: &Target, question: &Question) -> anyhow::Result<Self> {
        Self::new(Arc::new(target.clone()), Arc::new(question.clone()))
    }

    /// False when the server has closed the connection, or there was none.
    pub fn is_open(&self) -> bool {
        match &self.connection {
            Some(Connection::Http1(sender)) => !sender.is_closed(),
            Some(Connection::Http2(sender)) => !sender.is_closed(),
            Some(Connection::WebSocket(_)) => true,
            None => false,
        }
    }

    /// Asks once and reads the whole answer; its length in bytes. After a failure the next one connects anew.
    pub async fn exchange(&mut self) -> anyhow::Result<usize> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let asked = tokio::time::timeout(EXCHANGE_TIMEOUT, connection.ask(&self.request)).await;
        let length = asked.context("no answer in time")??;
        let right = self.question.length.is_none_or(|right| right == length);
        ensure!(right, "an answer of {length} bytes to {}", self.question.path);
        self.connection = Some(connection);
        Ok(length)
    }

    async fn repeat(mut self, until: Instant) -> (Self, Closed, Option<anyhow::Error>) {
        let mut one = Closed::default();
        let mut error = None;
        while Instant::now() < until && one.failed < FAILURES_MAX {
            let began = Instant::now();
            match self.exchange().await {
                Ok(length) => {
                    one.latencies.record(began.elapsed());
                    one.bytes += length as u64;
                }
                Err(failure) => {
                    one.failed += 1;
                    error = Some(failure);
                }
            }
        }
        (self, one, error)
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.dial()).await;
        connecting.with_context(|| format!("{}: no connection in time", self.target.address))?
    }

    async fn dial(&self) -> anyhow::Result<Connection> {
        let target = &self.target;
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &target.tls else {
            return self.speak(stream).await;
        };
        let mut tls = ClientConfig::clone(tls);
        tls.alpn_protocols = match self.question.protocol {
            Protocol::Http2 => vec![b"h2".to_vec()],
            Protocol::Http1 | Protocol::WebSocket => vec![b"http/1.1".to_vec()],
        };
        let name = ServerName::try_from(target.host.clone())?;
        self.speak(TlsConnector::from(Arc::new(tls)).connect(name, stream).await?).await
    }

    async fn speak<S: Stream + 'static>(&self, mut stream: S) -> anyhow::Result<Connection> {
        Ok(match self.question.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                // It ends when its sender is dropped; what broke it the sender says.
                tokio::spawn(connection);
                Connection::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .handshake(TokioIo::new(stream))
                    .await?;
                tokio::spawn(connection);
                Connection::Http2(sender)
            }
            Protocol::WebSocket => {
                let token = self.target.token.as_ref();
                let header =
                    token.map_or(String::new(), |token| format!("{}: {token}\r\n", client::AUTH_HEADER));
                websocket::handshake(&mut stream, &self.target.host, &self.question.path, &header).await?;
                Connection::WebSocket(Box::new(stream))
            }
        })
    }
}

impl Connection {
    async fn ask(&mut self, request: &Request<()>) -> anyhow::Result<usize> {
        let request = request.clone().map(|()| Empty::new());
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::WebSocket(stream) => return websocket::exchange(stream).await,
        };
        let status = response.status();
        ensure!(status.is_success(), "answered {status}");
        length(response.into_body()).await
    }
}

async fn length(mut body: Incoming) -> anyhow::Result<usize> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(length)
}
