//! HTTPS to a microVM's endpoint. The name is resolved to the edge's address
//! here, so that it works without DNS; the certificate is checked against the
//! fleet's CA and the endpoint's own name all the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Header that carries the token.
pub const AUTH_HEADER: &str = "x-aws-proxy-auth";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for an edge while another is left to ask.
const CONNECT_TIMEOUT_ELSE: Duration = Duration::from_secs(1);

/// Protocol spoken to the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersion {
    #[default]
    Http1,
    /// HTTP/2, agreed by ALPN.
    Http2,
}

/// Why a request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("cannot use the CA certificate {path}")]
    Ca { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("'{0}' is not a host name")]
    Name(String),
    #[error("cannot connect to the edge at {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("the request failed")]
    Http(#[from] hyper::Error),
}

/// A TLS connection to the edge, for one endpoint.
pub type EndpointStream = TlsStream<TcpStream>;

/// Makes connections to endpoints.
#[derive(Clone)]
pub struct EndpointClient {
    tls: Arc<ClientConfig>,
}

impl EndpointClient {
    /// Trusts the CA in the PEM file `ca`.
    pub fn new(ca: &Path) -> Result<Self, EndpointError> {
        rpc::install_crypto_provider();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| EndpointError::Ca {
            path: ca.to_owned(),
            source,
        };
        let pem = std::fs::read(ca).map_err(|error| failed(error.into()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.into()))?;
            roots.add(certificate).map_err(|error| failed(error.into()))?;
        }
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Opens a TLS connection to the edge at `address` for the endpoint `host`; `version` is what it will carry. Of several
    /// addresses, separated by commas, the first that answers is taken.
    ///
    /// # Errors
    /// When no edge can be reached or the last one's certificate does not fit.
    pub fn open<'a>(
        &'a self,
        address: &'a str,
        host: &'a str,
        version: HttpVersion,
    ) -> BoxFuture<'a, Result<EndpointStream, EndpointError>> {
        Box::pin(async move {
            let name =
                ServerName::try_from(host.to_owned()).map_err(|_| EndpointError::Name(host.to_owned()))?;
            let mut tls = ClientConfig::clone(&self.tls);
            tls.alpn_protocols = match version {
                HttpVersion::Http1 => vec![b"http/1.1".to_vec()],
                HttpVersion::Http2 => vec![b"h2".to_vec()],
            };
            let connector = TlsConnector::from(Arc::new(tls));
            let mut left = address;
            while let Some((first, rest)) = left.split_once(',') {
                if let Ok(stream) = reach(&connector, first, &name, CONNECT_TIMEOUT_ELSE).await {
                    return Ok(stream);
                }
                left = rest;
            }
            reach(&connector, left, &name, CONNECT_TIMEOUT)
                .await
                .map_err(|source| EndpointError::Connect { address: left.to_owned(), source })
        })
    }

    /// Connects to the edge at `address` for requests to the endpoint `host`.
    ///
    /// # Errors
    /// As [`EndpointClient::open`].
    pub fn connect<'a>(
        &'a self,
        address: &'a str,
        host: &'a str,
        version: HttpVersion,
    ) -> BoxFuture<'a, Result<EndpointConnection, EndpointError>> {
        Box::pin(async move {
            let stream = self.open(address, host, version).await?;
            let sender = match version {
                HttpVersion::Http1 => {
                    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                    tokio::spawn(connection);
                    Sender::Http1(sender)
                }
                HttpVersion::Http2 => {
                    let (sender, connection) =
                        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                    tokio::spawn(connection);
                    Sender::Http2(sender)
                }
            };
            Ok(EndpointConnection { sender, host: host.to_owned() })
        })
    }
}

async fn reach(
    connector: &TlsConnector,
    address: &str,
    name: &ServerName<'static>,
    timeout: Duration,
) -> std::io::Result<EndpointStream> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        connector.connect(name.clone(), stream).await
    };
    tokio::time::timeout(timeout, connecting).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

pub struct EndpointConnection {
    sender: Sender,
    host: String,
}

impl EndpointConnection {
    /// False once the edge has ended it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Sends a request whose URI is a path; answers when the response's head is
    /// there. The caller bounds the wait.
    pub fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
    ) -> BoxFuture<'_, Result<Response<Incoming>, EndpointError>> {
        Box::pin(async move {
            let host = http::HeaderValue::from_str(&self.host)
                .map_err(|_| EndpointError::Name(self.host.clone()))?;
            match &mut self.sender {
                Sender::Http1(sender) => {
                    request.headers_mut().insert(http::header::HOST, host);
                    sender.ready().await?;
                    Ok(sender.send_request(request).await?)
                }
                Sender::Http2(sender) => {
                    let mut parts = request.uri().clone().into_parts();
                    parts.scheme = Some(http::uri::Scheme::HTTPS);
                    parts.authority = self.host.parse().ok();
                    *request.uri_mut() =
                        Uri::from_parts(parts).map_err(|_| EndpointError::Name(self.host.clone()))?;
                    sender.ready().await?;
                    Ok(sender.send_request(request).await?)
                }
            }
        })
    }
}
