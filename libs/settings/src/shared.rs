//! Sections that several services have.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Secret;

/// Where a process finds its own certificate and the CA it trusts. Both files are PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// The fleet's CA certificate.
    pub ca: PathBuf,
    /// This process's certificate chain.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdSettings {
    /// URLs of its members, `https://address:port`.
    pub endpoints: Vec<String>,
    /// Prefix under which every key of this fleet lives.
    pub root: String,
    /// Certificate for etcd; absent means plain HTTP.
    pub tls: Option<TlsSettings>,
}

impl Default for EtcdSettings {
    fn default() -> Self {
        Self { endpoints: vec!["https://127.0.0.1:7379".to_owned()], root: "/torpor/".to_owned(), tls: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Settings {
    /// URL of the endpoint; absent means AWS's own for the region.
    pub endpoint: Option<String>,
    /// Region used in signatures.
    pub region: String,
    /// Access key id; absent means the usual AWS credential sources.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_access_key: None,
            path_style: true,
        }
    }
}

/// What a process tells about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// Filter of log lines and spans, in `tracing`'s syntax.
    pub log_filter: String,
    /// gRPC endpoint of an OTLP collector; absent means no traces leave.
    pub otlp_endpoint: Option<String>,
    /// Where `/metrics` is served; absent means nowhere.
    pub metrics_address: Option<SocketAddr>,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { log_filter: "info".to_owned(), otlp_endpoint: None, metrics_address: None }
    }
}
