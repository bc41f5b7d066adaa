//! Where the parts of a fleet that runs are, as their settings files say.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rpc::{InUse, Role};
use serde::Deserialize;
use settings::{EtcdSettings, TelemetrySettings, TlsSettings};

use super::probe;
use super::record::FleetRecord;

pub struct Parts {
    pub services: Vec<Service>,
    /// URLs of etcd's members.
    pub etcd: Vec<String>,
    /// Where the edge shows its certificate of the endpoints, and under which name.
    pub edge: Option<(SocketAddr, String)>,
}

/// A process that tells which certificate it shows and which CAs it trusts.
pub struct Service {
    pub name: String,
    /// File of its certificate.
    pub certificate: PathBuf,
    metrics: SocketAddr,
}

/// Of a service's settings, what matters here.
#[derive(Deserialize)]
struct Settings {
    tls: TlsSettings,
    etcd: EtcdSettings,
    telemetry: TelemetrySettings,
}

impl Parts {
    pub fn load(data_dir: &Path, record: &FleetRecord, context: &client::Context) -> Self {
        let settings = |component: &str| -> Option<Settings> {
            let path = data_dir.join("config").join(format!("{component}.toml"));
            toml::from_str(&std::fs::read_to_string(path).ok()?).ok()
        };
        // Clients are not told where etcd is; the scheduler is, also one that does not run.
        let etcd = settings(Role::Scheduler.name()).map(|settings| settings.etcd.endpoints);
        let mut parts = Self { services: Vec::new(), etcd: etcd.unwrap_or_default(), edge: None };
        for component in &record.components {
            // etcd has no settings file, and S3's is another: it has no certificate.
            let Some(settings) = settings(&component.name) else { continue };
            if let Some(metrics) = settings.telemetry.metrics_address {
                let name = component.name.clone();
                parts.services.push(Service { name, certificate: settings.tls.cert, metrics });
            }
            if component.name.starts_with(Role::EdgeProxy.name()) && parts.edge.is_none() {
                let address = context.edge.split(',').next().and_then(|first| first.parse().ok());
                parts.edge = address.map(|address| (address, context.endpoint_domain.clone()));
            }
        }
        parts
    }

    /// Addresses of etcd's members.
    pub fn etcd_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.etcd.iter().filter_map(|url| url.strip_prefix("https://")?.parse().ok())
    }
}

impl Service {
    /// What it shows and trusts at this moment. The error says in a few words why it does not tell.
    pub async fn in_use(&self) -> Result<InUse, String> {
        let text = probe::metrics(self.metrics).await?;
        InUse::in_metrics(&text).ok_or_else(|| "its metrics do not say".to_owned())
    }
}
