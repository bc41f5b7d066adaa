//! Apps that speak TLS on their port: which they are, and the handshake with one.
//!
//! An app's certificate is its own affair and is not verified. It could prove nothing that the edge does not know: the
//! tunnel, mutual TLS with a host that answers for this microVM and no other, ends at the app's port. So whoever answers
//! there is the app, and nobody is between it and the edge but the host that runs it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::adapters::app_stream::{AppStream, Turn};
use crate::adapters::tunnels::PortKey;
use crate::domain::port::Door;
use crate::domain::speech::Heard;

/// Longest handshake with an app.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Most ports of which it is remembered how they are spoken to. Past that all are found out anew, which costs a TLS app's next
/// request one connection more.
const PORTS_MAX: usize = 16_384;
/// The name that an app is asked for: the one that it has where it runs. Endpoint names are not the app's to know.
const NAME: &str = "localhost";
/// The beginning of a plain request that is none yet. A server that speaks TLS ends the connection over its first bytes, one that
/// speaks HTTP waits for the rest.
const BEGINNING: &[u8] = b"GET / HT";
/// How long an app may take to end a connection over [`BEGINNING`].
const BEGINNING_WAIT: Duration = Duration::from_secs(1);

/// Opens another stream to the same port.
pub type Redial<S> = Box<dyn Fn() -> BoxFuture<'static, io::Result<S>> + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    Plain,
    Tls,
}

/// How ports of microVMs are spoken to, as far as it has been found out.
pub struct TlsApps {
    found: Mutex<HashMap<PortKey, Speech>>,
    http1: TlsConnector,
    http2: TlsConnector,
}

impl TlsApps {
    pub fn new() -> Self {
        let connector = |protocol: &[u8]| {
            let mut config = ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate::new()))
                .with_no_client_auth();
            // What one microVM's app hands out is not shown to another's.
            config.resumption = Resumption::disabled();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        rpc::install_crypto_provider();
        Self { found: Mutex::default(), http1: connector(b"http/1.1"), http2: connector(b"h2") }
    }

    fn found(&self) -> MutexGuard<'_, HashMap<PortKey, Speech>> {
        // Any state between two calls is a good one.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the port is known to be spoken to in plain, as the guest-agent's shell always is.
    pub fn is_plain(&self, key: &PortKey) -> bool {
        key.door == Door::Shell || self.found().get(key) == Some(&Speech::Plain)
    }

    pub fn remember(&self, key: &PortKey, speech: Speech) {
        let mut found = self.found();
        if found.len() >= PORTS_MAX && !found.contains_key(key) {
            found.clear();
        }
        found.insert(key.clone(), speech);
    }

    /// A plain app behaves as if another had taken its place: it is no longer known to be plain.
    pub fn doubt(&self, key: &PortKey) {
        let mut found = self.found();
        if found.get(key) == Some(&Speech::Plain) {
            found.remove(key);
        }
    }

    /// A stream on which HTTP can be spoken, over TLS if the app is known to want it; otherwise one that finds out.
    pub async fn open<S>(
        self: &Arc<Self>,
        key: &PortKey,
        mut stream: S,
        redial: Redial<S>,
        http2: bool,
    ) -> io::Result<AppStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if self.found().get(key) == Some(&Speech::Tls) {
            match self.shake_hands(key, stream, http2).await {
                Ok(stream) => return Ok(AppStream::tls(stream)),
                Err(error) if is_refused(&error) => return Err(error),
                // It was another app that spoke TLS, before this one was started.
                Err(_) => {
                    self.found().remove(key);
                    stream = redial().await?;
                }
            }
        }
        let (apps, of) = (self.clone(), key.clone());
        let turn: Turn<S> = Box::new(move |said, heard| {
            Box::pin(async move { apps.say_again(&of, &redial, http2, &said, heard).await })
        });
        let (apps, of) = (self.clone(), key.clone());
        let is_plain = Box::new(move || apps.remember(&of, Speech::Plain));
        Ok(AppStream::unsure(stream, http2, turn, is_plain))
    }

    /// Says over TLS what an app would not take in plain. An app that closed without a word is asked first whether it would
    /// rather have a whole request: then it was no TLS server that closed, and the request may have been carried out.
    async fn say_again<S>(
        &self,
        key: &PortKey,
        redial: &Redial<S>,
        http2: bool,
        said: &[u8],
        heard: Heard,
    ) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if heard == Heard::Nothing && !ends_over_a_beginning(redial().await?).await {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut stream = self.shake_hands(key, redial().await?, http2).await?;
        stream.write_all(said).await?;
        stream.flush().await?;
        Ok(stream)
    }

    async fn shake_hands<S>(&self, key: &PortKey, stream: S, http2: bool) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(NAME).expect("a valid name");
        let connector = if http2 { &self.http2 } else { &self.http1 };
        let shaken = tokio::time::timeout(HANDSHAKE_MAX, connector.connect(name, stream)).await;
        let shaken = shaken.unwrap_or_else(|late| Err(late.into()));
        if shaken.as_ref().err().is_none_or(is_refused) {
            self.remember(key, Speech::Tls);
        }
        shaken
    }
}

async fn ends_over_a_beginning(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> bool {
    let ended = async {
        stream.write_all(BEGINNING).await?;
        stream.flush().await?;
        stream.read(&mut [0; 1]).await
    };
    // It says something, as Go's servers do, closes or resets: all are the end of it.
    tokio::time::timeout(BEGINNING_WAIT, ended).await.is_ok()
}

/// True when the app speaks TLS, and does not want to with the edge.
pub fn is_refused(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_)))
}

/// Takes any certificate; see above.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl AnyCertificate {
    fn new() -> Self {
        let provider = CryptoProvider::get_default().expect("installed before the first is made");
        Self(provider.signature_verification_algorithms.supported_schemes())
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
