//! A process's certificate, its key and the CA it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::Role;

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

/// Certificate, key and CA of this process.
pub struct TlsIdentity {
    ca_pem: Vec<u8>,
    certificate_pem: Vec<u8>,
    key_pem: Vec<u8>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// Loads PEM files: the fleet's CA, this process's chain, its key.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Arc<Self>, IdentityError> {
        install_crypto_provider();
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
        };
        let (ca_pem, certificate_pem, key_pem) = (read(ca)?, read(certificate)?, read(key)?);
        let mut roots = RootCertStore::empty();
        for root in certificates(ca, &ca_pem)? {
            roots.add(root).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(certificate, &certificate_pem)?;
        let private_key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|e| IdentityError::Pem { path: key.to_owned(), message: e.to_string() })?;
        let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots)).build().map_err(unusable)?;
        let server = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key.clone_key())
            .map_err(unusable)?;
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private_key)
            .map_err(unusable)?;
        Ok(Arc::new(Self {
            ca_pem,
            certificate_pem,
            key_pem,
            server: Arc::new(server),
            client: Arc::new(client),
        }))
    }

    /// Server side for raw TLS: asks the peer for a certificate of the CA.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Client side for raw TLS; the server name to verify is [`Role::dns_name`].
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    pub(crate) fn tonic_server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.certificate_pem, &self.key_pem))
            .client_ca_root(Certificate::from_pem(&self.ca_pem))
    }

    pub(crate) fn tonic_client(&self, server: Role) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(Identity::from_pem(&self.certificate_pem, &self.key_pem))
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .domain_name(server.dns_name())
    }
}

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
