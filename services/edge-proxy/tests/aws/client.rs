//! A client of the API: signatures by the SDK's own code, TLS, HTTP/1.1 or HTTP/2.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Debug, Clone)]
pub struct Signer {
    pub id: String,
    pub secret: String,
    pub region: &'static str,
    pub service: &'static str,
    pub time: SystemTime,
    /// For presigned requests: how long they are good.
    pub presigned: Option<Duration>,
    pub token: Option<String>,
    /// What is not signed of the body.
    pub unsigned_payload: bool,
}

impl Signer {
    pub fn new(id: &str, secret: &str) -> Self {
        Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            region: "us-east-1",
            service: "lambda",
            time: SystemTime::now(),
            presigned: None,
            token: None,
            unsigned_payload: false,
        }
    }

    /// A signed request; `target` is path and query as they are sent.
    pub fn request(&self, method: &str, target: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        let body: Bytes = body.into();
        let credentials = Credentials::new(&self.id, &self.secret, self.token.clone(), None, "test");
        let identity = credentials.into();
        let mut settings = SigningSettings::default();
        if let Some(expires) = self.presigned {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(expires);
        }
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(self.time)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let uri = format!("https://{HOST}{target}");
        let payload =
            if self.unsigned_payload { SignableBody::UnsignedPayload } else { SignableBody::Bytes(&body) };
        let mut headers = vec![("host", HOST)];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        if self.unsigned_payload {
            headers.push(("x-amz-content-sha256", "UNSIGNED-PAYLOAD"));
        }
        let signable = SignableRequest::new(method, &uri, headers.iter().copied(), payload).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let mut request = Request::builder().method(method).uri(&uri);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Full::new(body)).unwrap();
        instructions.apply_to_request_http1x(&mut request);
        // Path and query only, as clients send it over HTTP/1.1.
        let target = request.uri().path_and_query().unwrap().as_str().to_owned();
        *request.uri_mut() = target.parse().unwrap();
        request
    }
}

/// The name under which the API is asked.
pub const HOST: &str = "localhost:8444";

/// An answer that was read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn class(&self) -> &str {
        self.header("x-amzn-errortype").unwrap_or("none")
    }

    /// The message of an error, however it is spelt.
    pub fn message(&self) -> String {
        let json = self.json();
        let message = json.get("message").or_else(|| json.get("Message"));
        message.and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A connection, made again when the edge closes it.
pub struct Connection {
    address: SocketAddr,
    /// The address that it comes from.
    pub from: Ipv4Addr,
    ca: CertificateDer<'static>,
    http2: bool,
    sender: Option<Sender>,
}

impl Connection {
    pub fn new(address: SocketAddr, directory: &Path, http2: bool) -> Self {
        Self {
            address,
            from: Ipv4Addr::LOCALHOST,
            ca: CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap(),
            http2,
            sender: None,
        }
    }

    pub async fn stream(&self) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let protocol: &[u8] = if self.http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    async fn open(&mut self) -> &mut Sender {
        let closed = match &self.sender {
            None => true,
            Some(Sender::Http1(sender)) => sender.is_closed(),
            Some(Sender::Http2(sender)) => sender.is_closed(),
        };
        if closed {
            let stream = TokioIo::new(self.stream().await);
            self.sender = Some(if self.http2 {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                tokio::spawn(connection);
                Sender::Http2(sender)
            } else {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                Sender::Http1(sender)
            });
        }
        self.sender.as_mut().unwrap()
    }

    /// Sends a request; an answer that did not come is an error.
    pub async fn try_send(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let response = match self.open().await {
            Sender::Http1(sender) => {
                if sender.ready().await.is_err() {
                    self.sender = None;
                    return Box::pin(self.try_send(request)).await;
                }
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                let uri = format!("https://{HOST}{}", request.uri());
                *request.uri_mut() = uri.parse().unwrap();
                request.headers_mut().remove("host");
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (parts, body) = response.into_parts();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes().to_vec(),
        })
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let answer = self.try_send(request).await.unwrap();
        let id = answer.header("x-amzn-requestid").unwrap();
        assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}");
        answer
    }
}
