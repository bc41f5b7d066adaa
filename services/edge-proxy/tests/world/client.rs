//! A client of endpoints: TLS with the test's CA, HTTP/1.1 or HTTP/2.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Builder;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
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
    pub async fn connect(&self, number: u128, http2: bool) -> Connection {
        Connection::over(self.tls(number, http2, |_| ()).await.unwrap(), http2).await
    }

    /// A connection to the edge without TLS.
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        socket.connect(self.edge).await
    }

    /// A connection with TLS under one endpoint's name, if the client's settings show it.
    pub async fn tls(
        &self,
        number: u128,
        http2: bool,
        change: impl FnOnce(&mut ClientConfig),
    ) -> io::Result<TlsStream<TcpStream>> {
        self.tls_for(host_name(number), http2, change).await
    }

    /// The same under any name.
    pub async fn tls_for(
        &self,
        name: String,
        http2: bool,
        change: impl FnOnce(&mut ClientConfig),
    ) -> io::Result<TlsStream<TcpStream>> {
        self.tls_over(self.tcp().await?, name, http2, change).await
    }

    /// The same over a connection that stands.
    pub async fn tls_over(
        &self,
        stream: TcpStream,
        name: String,
        http2: bool,
        change: impl FnOnce(&mut ClientConfig),
    ) -> io::Result<TlsStream<TcpStream>> {
        let ca = CertificateDer::from_pem_file(self.directory.path().join("ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        change(&mut config);
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
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
    pub async fn over(stream: TlsStream<TcpStream>, http2: bool) -> Self {
        let stream = TokioIo::new(stream);
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            Self::Http1(sender)
        }
    }

    pub async fn open(&mut self, number: u128, request: Builder, body: ClientBody) -> Response<Incoming> {
        self.try_open(&host_name(number), request, body).await.unwrap()
    }

    /// The same where the exchange may break before its answer begins.
    pub async fn open_or_break(
        &mut self,
        number: u128,
        request: Builder,
        body: ClientBody,
    ) -> hyper::Result<Response<Incoming>> {
        self.try_open(&host_name(number), request, body).await
    }

    /// Sends a request for a host: in the Host header, unless the request has one, or the target of HTTP/2.
    async fn try_open(
        &mut self,
        host: &str,
        request: Builder,
        body: ClientBody,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = request.body(body).unwrap();
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", host.parse().unwrap());
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let path = request.uri().path().to_owned();
                *request.uri_mut() = format!("https://{host}{path}").parse().unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    pub async fn send(&mut self, number: u128, request: Builder, body: ClientBody) -> Answer {
        self.send_for(&host_name(number), request, body).await
    }

    /// The same for any host.
    pub async fn send_for(&mut self, host: &str, request: Builder, body: ClientBody) -> Answer {
        let (parts, body) = self.try_open(host, request, body).await.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers }
    }
}
