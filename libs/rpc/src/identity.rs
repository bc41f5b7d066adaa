//! A process's certificate, its key and the CAs it trusts, read again when their files change. Connections that stand go on
//! with what they began with; every new one takes what is there by then.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reload::Reloaded;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no usable PEM: {message}")]
    Pem { path: PathBuf, message: String },
    #[error("the TLS identity is not usable: {message}")]
    Unusable { message: String },
}

/// Makes aws-lc-rs the process's crypto provider. Called by everything here that needs one; safe to repeat.
pub fn install_crypto_provider() {
    // An error means that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Certificate, key and CAs of this process.
#[derive(Debug)]
pub struct TlsIdentity {
    files: Reloaded<Material>,
}

/// What the files hold at one time.
#[derive(Debug)]
pub(crate) struct Material {
    /// This process's own certificate.
    pub certificate: CertificateDer<'static>,
    /// The CAs it trusts.
    pub authorities: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    grpc_server: Arc<ServerConfig>,
    grpc_client: Arc<ClientConfig>,
}

impl TlsIdentity {
    /// Loads PEM files: the fleet's CA (or several, while one takes the place of another), this process's chain, its key.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Arc<Self>, IdentityError> {
        install_crypto_provider();
        let [ca, certificate, key] = [ca, certificate, key].map(Path::to_owned);
        let files = vec![ca.clone(), certificate.clone(), key.clone()];
        let files = Reloaded::load(files, move || Material::read(&ca, &certificate, &key))?;
        Ok(Arc::new(Self { files }))
    }

    /// Server side for raw TLS: asks the peer for a certificate of the CA. For one connection: the next takes another
    /// value once the files have changed, with other session tickets.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.current().server)
    }

    /// Client side for raw TLS, for one connection; the server name to verify is [`Role::dns_name`](crate::Role::dns_name),
    /// and [`Identity::compare`](crate::Identity::compare) says whether it is the one that was called.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.files.current().client)
    }

    pub(crate) fn grpc_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.current().grpc_server)
    }

    pub(crate) fn grpc_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.files.current().grpc_client)
    }

    /// The files as they are at this moment.
    pub(crate) fn fresh(&self) -> Arc<Material> {
        self.files.fresh()
    }
}

impl Material {
    fn read(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            reload::check_size(path).map_err(|message| IdentityError::Unusable { message })?;
            std::fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
        };
        let authorities = certificates(ca, &read(ca)?)?;
        let mut roots = RootCertStore::empty();
        for root in &authorities {
            roots.add(root.clone()).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(certificate, &read(certificate)?)?;
        let private_key = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|e| IdentityError::Pem { path: key.to_owned(), message: e.to_string() })?;
        let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots)).build().map_err(unusable)?;
        let server = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key.clone_key())
            .map_err(unusable)?;
        let own = chain[0].clone();
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private_key)
            .map_err(unusable)?;
        let (mut grpc_server, mut grpc_client) = (server.clone(), client.clone());
        grpc_server.alpn_protocols = vec![H2.to_vec()];
        grpc_client.alpn_protocols = vec![H2.to_vec()];
        Ok(Self {
            certificate: own,
            authorities,
            server: Arc::new(server),
            client: Arc::new(client),
            grpc_server: Arc::new(grpc_server),
            grpc_client: Arc::new(grpc_client),
        })
    }
}

const H2: &[u8] = b"h2";

/// At least one certificate.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bad = |message: String| IdentityError::Pem { path: path.to_owned(), message };
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(chain)
}

fn unusable(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Unusable { message: error.to_string() }
}
