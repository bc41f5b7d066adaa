//! What a run uses of the fleet: an endpoint with a token, and the edge's process and certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::microvm::v1::*;
use client::Context;
use rustls::ClientConfig;
use serde::Deserialize;

use super::load::Target;

/// Longest a token is good, and a launched microVM lives, also when the run was killed.
const LIFE: Duration = Duration::from_secs(3600);

/// An endpoint and what opens it.
pub struct Endpoint {
    host: String,
    token: String,
}

impl Endpoint {
    /// Launches a microVM of `image`.
    pub async fn launch(context: &Context, image: &str) -> anyhow::Result<Self> {
        let request = RunMicrovmRequest {
            image_identifier: image.to_owned(),
            maximum_duration: Some(api::duration_proto(LIFE)),
            ..RunMicrovmRequest::default()
        };
        let microvm = context.call(request).await.context("launch a microVM")?.microvm;
        Self::of(context, microvm.context("an answer without a microVM")?).await
    }

    pub async fn existing(context: &Context, id: &str) -> anyhow::Result<Self> {
        let request = GetMicrovmRequest { microvm_id: id.to_owned(), with_idleness: false };
        let microvm = context.call(request).await.with_context(|| format!("--real {id}"))?.microvm;
        Self::of(context, microvm.context("an answer without a microVM")?).await
    }

    async fn of(context: &Context, microvm: Microvm) -> anyhow::Result<Self> {
        let request = CreateMicrovmAuthTokenRequest {
            microvm_id: microvm.microvm_id,
            expiration: Some(api::duration_proto(LIFE)),
            allowed_ports: vec![PortScope { scope: Some(port_scope::Scope::AllPorts(AllPorts {})) }],
            ..Default::default()
        };
        let answer = context.call(request).await.context("make a token")?;
        let token = answer.auth_token.into_values().next().context("an answer without a token")?;
        Ok(Self { host: microvm.endpoint, token })
    }

    /// The edge, asked for this endpoint.
    pub fn target(&self, context: &Context, tls: Arc<ClientConfig>) -> anyhow::Result<Target> {
        // One edge is measured, of several the first.
        let edge = context.edge.split(',').next().unwrap_or_default();
        let address = edge.parse().with_context(|| format!("the edge's address {edge}"))?;
        Ok(Target { address, host: self.host.clone(), tls: Some(tls), token: Some(self.token.clone()) })
    }
}

/// The edge's certificate and its key.
#[derive(Deserialize)]
pub struct EdgeFiles {
    pub endpoint_cert: PathBuf,
    pub endpoint_key: PathBuf,
}

pub fn edge_files(data_dir: &Path) -> anyhow::Result<EdgeFiles> {
    let path = data_dir.join("config/edge-proxy.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

/// The edge's process, as the fleet's supervisor wrote it down.
pub fn edge_pid(data_dir: &Path) -> anyhow::Result<i32> {
    #[derive(Deserialize)]
    struct Fleet {
        components: Vec<Component>,
    }
    #[derive(Deserialize)]
    struct Component {
        name: String,
        process: Option<Process>,
    }
    #[derive(Deserialize)]
    struct Process {
        pid: i32,
    }
    let path = data_dir.join("run/fleet.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let fleet: Fleet = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let edge = fleet.components.into_iter().find(|component| component.name == "edge-proxy");
    let process =
        edge.and_then(|edge| edge.process).context("the edge-proxy does not run on this machine")?;
    Ok(process.pid)
}
