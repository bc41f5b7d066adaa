//! What is told of certificates: to people, and to whoever waits for a process to take others up.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::TlsIdentity;

/// Name of the metric whose labels say what a process shows and trusts.
const IN_USE: &str = "certificate";
/// What the names of a service's metrics begin with.
const PREFIX: &str = "torpor_";

/// A certificate as one tells it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the whole, in hexadecimal digits.
    pub fingerprint: String,
    pub common_name: String,
    /// Common name of the CA that issued it.
    pub issuer: String,
    /// When it ends, Unix seconds.
    pub not_after: i64,
}

impl Facts {
    /// `None` when it is no certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let common_name = |name: &x509_parser::x509::X509Name<'_>| {
            let found = name.iter_common_name().next().and_then(|name| name.as_str().ok());
            found.unwrap_or_default().to_owned()
        };
        Some(Self {
            fingerprint: fingerprint(certificate),
            common_name: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

/// SHA-256 of a certificate, in hexadecimal digits.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a process shows and trusts at one moment, as its `/metrics` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// Fingerprint of its own certificate.
    pub certificate: String,
    /// Those of the CAs it trusts, sorted.
    pub authorities: Vec<String>,
}

impl InUse {
    /// Reads it from the text of `/metrics`.
    #[must_use]
    pub fn in_metrics(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(PREFIX)?.strip_prefix(IN_USE)?.strip_prefix("_info{"))?;
        let label = |name: &str| {
            let rest = line.split(name).nth(1)?.strip_prefix("=\"")?;
            Some(rest.split('"').next()?.to_owned())
        };
        let authorities = label("authorities")?.split(',').map(str::to_owned).collect();
        Some(Self { certificate: label("fingerprint")?, authorities })
    }
}

impl TlsIdentity {
    /// Shows in `/metrics` which certificate this process shows, which CAs it trusts, and when the certificate ends; each time
    /// with a look whether the files have changed.
    pub fn register(self: &Arc<Self>, registry: &Mutex<Registry>) {
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(Shown(Arc::clone(self))));
    }

    /// What is in use at this moment, after a look whether the files have changed.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        let material = self.fresh();
        let mut authorities: Vec<String> = material.authorities.iter().map(fingerprint).collect();
        authorities.sort();
        InUse { certificate: fingerprint(&material.certificate), authorities }
    }
}

#[derive(Debug)]
struct Shown(Arc<TlsIdentity>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let in_use = self.0.in_use();
        let labels = vec![("fingerprint", in_use.certificate), ("authorities", in_use.authorities.join(","))];
        let info = Info::new(labels);
        let help = "The certificate that is shown to other processes, and the CAs that are trusted";
        info.encode(encoder.encode_descriptor(IN_USE, help, None, info.metric_type())?)?;
        let ends = Facts::of(&self.0.fresh().certificate).map_or(0, |facts| facts.not_after);
        let ends = ConstGauge::new(ends);
        let help = "When that certificate ends, in seconds since 1970";
        let name = "certificate_end_seconds";
        ends.encode(encoder.encode_descriptor(name, help, None, ends.metric_type())?)
    }
}
