//! A client of endpoints: TLS with the test's CA, HTTP/1.1 or HTTP/2.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Builder;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{World, host_name};

pub type ClientBody = BoxBody<Bytes, std::convert::Infallible>;

/// A connection to the edge under one endpoint's name.
pub enum Connection {
    Http1(http1::SendRequest<ClientBody>),
    Http2(http2::SendRequest<ClientBody>),
}

/// A response that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub fn body(text: impl Into<Bytes>) -> ClientBody {
    Full::new(text.into()).boxed()
}

impl World {
    /// A connection without HTTP.
    pub async fn tls(&self, number: u128, protocol: &str) -> TlsStream<TcpStream> {
        let ca = CertificateDer::from_pem_file(self.directory.path().join("ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.into()];
        let stream = TcpStream::connect(self.edge).await.unwrap();
        let name = ServerName::try_from(host_name(number)).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    pub async fn connect(&self, number: u128, http2: bool) -> Connection {
        let stream = TokioIo::new(self.tls(number, if http2 { "h2" } else { "http/1.1" }).await);
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            Connection::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            Connection::Http1(sender)
        }
    }

    /// A request with a good token, on a connection of its own.
    pub async fn get(&self, number: u128, path: &str) -> Answer {
        let request = self.authorized(number, path);
        self.connect(number, false).await.send(number, request, body("")).await
    }

    pub fn authorized(&self, number: u128, path: &str) -> Builder {
        Request::get(path).header("x-aws-proxy-auth", self.token(number))
    }
}

impl Connection {
    pub async fn open(&mut self, number: u128, request: Builder, body: ClientBody) -> Response<Incoming> {
        let mut request = request.body(body).unwrap();
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", host_name(number).parse().unwrap());
                }
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
            Self::Http2(sender) => {
                let path = request.uri().path().to_owned();
                *request.uri_mut() = format!("https://{}{path}", host_name(number)).parse().unwrap();
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
        }
    }

    pub async fn send(&mut self, number: u128, request: Builder, body: ClientBody) -> Answer {
        let (parts, body) = self.open(number, request, body).await.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers }
    }
}
