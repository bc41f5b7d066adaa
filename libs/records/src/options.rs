//! How to reach etcd.

use std::path::PathBuf;

use etcd_client::{Certificate, Identity, TlsOptions};

use crate::{Error, Result};

/// Client certificate and authority, as PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Authority that signed etcd's certificate.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How to reach etcd.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// "https://address:port" (or "http://…"), at least one.
    pub endpoints: Vec<String>,
    /// Prefix of every key, for example "/torpor/".
    pub root: String,
    /// Absent means plain TCP, for tests.
    pub tls: Option<TlsFiles>,
}

impl From<&settings::EtcdSettings> for Options {
    fn from(value: &settings::EtcdSettings) -> Self {
        Self {
            endpoints: value.endpoints.clone(),
            root: value.root.clone(),
            tls: value.tls.as_ref().map(|tls| TlsFiles {
                ca: tls.ca.clone(),
                cert: tls.cert.clone(),
                key: tls.key.clone(),
            }),
        }
    }
}

impl TlsFiles {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        vec![self.ca.clone(), self.cert.clone(), self.key.clone()]
    }

    pub(crate) fn read(&self) -> Result<TlsOptions> {
        let read = |path: &PathBuf| {
            reload::check_size(path).map_err(|detail| Error::Settings { detail })?;
            std::fs::read(path)
                .map_err(|error| Error::Settings { detail: format!("{}: {error}", path.display()) })
        };
        let (ca, cert, key) = (read(&self.ca)?, read(&self.cert)?, read(&self.key)?);
        Ok(TlsOptions::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(cert, key)))
    }
}
