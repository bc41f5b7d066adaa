//! The certificate of a listener, read again when its files change ([`Reloaded`]). A listener of endpoints shows the
//! certificates of own domains, too.

use std::path::Path;
use std::sync::Arc;

use reload::Reloaded;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::adapters::domains::Domains;
use crate::config::Socket;

pub const H2: &[u8] = b"h2";

/// A certificate chain and its key in two files.
#[derive(Debug)]
pub struct Certificate {
    files: Reloaded<CertifiedKey>,
    /// Names for which another certificate is shown.
    own: Option<Domains>,
}

impl Certificate {
    /// Reads the files for the first time.
    pub fn load(socket: Socket<'_>, own: Option<Domains>) -> anyhow::Result<Arc<Self>> {
        rpc::install_crypto_provider();
        let [_, chain_name, key_name] = socket.names;
        let (chain, key) = (socket.certificate.to_owned(), socket.key.to_owned());
        let files = vec![chain.clone(), key.clone()];
        let files = Reloaded::load(files, move || read(&chain, &key, [chain_name, key_name]))?;
        Ok(Arc::new(Self { files, own }))
    }

    /// The TLS settings of a server that shows this certificate.
    pub fn server(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        let mut tls = ServerConfig::builder().with_no_client_auth().with_cert_resolver(self.clone());
        tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        tls.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(tls))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = self.own.as_ref().zip(hello.server_name());
        let own = named.and_then(|(own, name)| own.certificate(name));
        Some(own.unwrap_or_else(|| self.files.current()))
    }
}

fn read(chain: &Path, key: &Path, [chain_name, key_name]: [&str; 2]) -> anyhow::Result<CertifiedKey> {
    for (path, name) in [(chain, chain_name), (key, key_name)] {
        reload::check_size(path).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
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
