//! Connections to the API: HTTP/1.1 over TLS, kept alive, one request at a time
//! on each, which is how AWS's SDKs speak.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A bounded number of connections to one address.
pub struct Connections {
    tls: TlsConnector,
    server_name: ServerName<'static>,
    authority: String,
    permits: Semaphore,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Connections {
    /// Prepares `connections` to the API at `url`, whose certificate is checked
    /// against the CA in the PEM file `ca`.
    pub fn new(url: &str, ca: &Path, connections: u16) -> anyhow::Result<Self> {
        rpc::install_crypto_provider();
        let uri: Uri = url.parse().with_context(|| format!("the API's URL {url}"))?;
        let authority = uri.authority().with_context(|| format!("no host in {url}"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).context("the fleet's CA")? {
            roots.add(certificate.context("the fleet's CA")?)?;
        }
        let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let port = authority.port_u16().unwrap_or(443);
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            server_name: ServerName::try_from(authority.host().to_owned())?,
            authority: format!("{}:{port}", authority.host()),
            permits: Semaphore::new(usize::from(connections)),
            idle: Mutex::default(),
        })
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Opens every connection, so that no request pays for it.
    pub async fn open(&self) -> anyhow::Result<()> {
        let missing = self.permits.available_permits().saturating_sub(self.lock().len());
        for _ in 0..missing {
            let opened = self.connect().await?;
            self.lock().push(opened);
        }
        Ok(())
    }

    /// Sends a request, whose Host header is the caller's matter, on the first
    /// connection that is free, and reads the whole answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(request)).await.context("no answer in time")?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let _permit = self.permits.acquire().await?;
        let idle = self.lock().pop();
        let mut sender = match idle {
            Some(sender) if !sender.is_closed() => sender,
            // The server may close a connection whenever it is idle.
            Some(_) | None => self.connect().await?,
        };
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        // Ready again at once, unless the server is closing it.
        if sender.ready().await.is_ok() {
            self.lock().push(sender);
        }
        Ok((status, body))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let connecting = async {
            let stream = TcpStream::connect(&self.authority).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(self.server_name.clone(), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .context("no connection in time")?
            .with_context(|| format!("connect to the API at {}", self.authority))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends when its sender is dropped; what broke it the sender says.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
