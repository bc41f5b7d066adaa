//! The certificate of a listener, read again when its files change. A pair that is broken, or half written, changes nothing:
//! the last good one stays, and the log says why. A listener of endpoints shows the certificates of own domains, too.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::adapters::domains::Domains;
use crate::config::Socket;

/// How often it is checked that the files are the ones that were read.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Largest of the files, in bytes.
const FILE_MAX: u64 = 1 << 20;
pub const H2: &[u8] = b"h2";

/// A certificate chain and its key in two files.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    /// Names of the two settings.
    names: [&'static str; 2],
    current: ArcSwap<CertifiedKey>,
    /// Names for which another certificate is shown.
    own: Option<Domains>,
}

/// What a file looked like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    modified: Option<SystemTime>,
    length: u64,
}

impl Certificate {
    /// Reads the files for the first time.
    pub fn load(socket: Socket<'_>, own: Option<Domains>) -> anyhow::Result<Arc<Self>> {
        rpc::install_crypto_provider();
        let [_, chain, key] = socket.names;
        let current = read(socket.certificate, socket.key, [chain, key])?;
        Ok(Arc::new(Self {
            chain: socket.certificate.to_owned(),
            key: socket.key.to_owned(),
            names: [chain, key],
            current: ArcSwap::from_pointee(current),
            own,
        }))
    }

    /// The TLS settings of a server that shows this certificate.
    pub fn server(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        let mut tls = ServerConfig::builder().with_no_client_auth().with_cert_resolver(self.clone());
        tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        tls.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(tls))
    }

    /// Looks at the files again and again; never returns. Both may change one after the other: what does not fit together
    /// yet is tried again until it does.
    pub async fn follow(self: Arc<Self>) {
        let (mut tried, mut last_error) = (self.look().await, String::new());
        // The first time in any case: they may have changed since they were first read.
        let mut again = true;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let look = self.look().await;
            if look == tried && !again {
                continue;
            }
            tried = look;
            let this = self.clone();
            let read = tokio::task::spawn_blocking(move || read(&this.chain, &this.key, this.names)).await;
            match read.unwrap_or_else(|error| Err(error.into())) {
                Ok(fresh) => {
                    again = false;
                    last_error.clear();
                    if fresh.cert != self.current.load().cert {
                        self.current.store(Arc::new(fresh));
                        tracing::info!(file = %self.chain.display(), "another certificate is in use");
                    }
                }
                Err(error) => {
                    again = true;
                    let error = error.to_string();
                    if error != last_error {
                        tracing::warn!(error, "the certificate in use stays");
                        last_error = error;
                    }
                }
            }
        }
    }

    async fn look(&self) -> [Option<Look>; 2] {
        let look = async |path: &Path| tokio::fs::metadata(path).await.ok().map(|file| Look::of(&file));
        [look(&self.chain).await, look(&self.key).await]
    }
}

impl Look {
    fn of(file: &Metadata) -> Self {
        Self { modified: file.modified().ok(), length: file.len() }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = self.own.as_ref().zip(hello.server_name());
        let own = named.and_then(|(own, name)| own.certificate(name));
        Some(own.unwrap_or_else(|| self.current.load_full()))
    }
}

fn read(chain: &Path, key: &Path, [chain_name, key_name]: [&str; 2]) -> anyhow::Result<CertifiedKey> {
    for (path, name) in [(chain, chain_name), (key, key_name)] {
        let length = std::fs::metadata(path).map_or(0, |file| file.len());
        anyhow::ensure!(length <= FILE_MAX, "{name}: {}: larger than {FILE_MAX} bytes", path.display());
    }
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| anyhow::anyhow!("{chain_name}: {}: {error}", chain.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{chain_name}: {}: no certificate in it", chain.display());
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| anyhow::anyhow!("{key_name}: {}: {error}", key.display()))?;
    CertifiedKey::from_der(certificates, key, &aws_lc_rs::default_provider())
        .map_err(|error| anyhow::anyhow!("{chain_name} and {key_name}: {error}"))
}
