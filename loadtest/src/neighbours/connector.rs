//! The hostile microVM's way out: a connector that lets it reach one network, made for the run.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::connector::v1::*;
use client::Context;
use tonic::Code;

/// Tag with the destinations that a connector allows.
const ALLOW: &str = "torpor:allow-cidrs";
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the connector to be free of the run's microVMs.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);

pub struct Connector {
    name: String,
    pub arn: String,
}

impl Connector {
    /// Makes one that lets out to `network` and waits until it may be used.
    pub async fn create(context: &Context, network: &str) -> anyhow::Result<Self> {
        let name = format!("loadtest-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let request = CreateNetworkConnectorRequest {
            name: name.clone(),
            configuration: Some(NetworkConnectorConfiguration {
                subnet_ids: vec!["subnet-1".to_owned()],
                network_protocol: NetworkProtocol::Ipv4.into(),
                associated_compute_resource_types: vec![ComputeResourceType::MicroVm.into()],
                ..NetworkConnectorConfiguration::default()
            }),
            operator_role: "arn:aws:iam::000000000000:role/loadtest".to_owned(),
            client_token: name.clone(),
            tags: HashMap::from([(ALLOW.to_owned(), network.to_owned())]),
        };
        let created = context.call(request).await.context("create a connector")?.connector;
        let connector = Self { name, arn: created.context("an answer without a connector")?.connector_arn };
        let settled = connector.settle(context).await;
        if settled.is_err() {
            connector.remove(context).await?;
        }
        settled.map(|()| connector)
    }

    async fn settle(&self, context: &Context) -> anyhow::Result<()> {
        let deadline = Instant::now() + ACTIVE_TIMEOUT;
        loop {
            let request = GetNetworkConnectorRequest { identifier: self.name.clone() };
            let read = context.call(request).await.context("read the connector")?.connector;
            let read = read.context("an answer without a connector")?;
            if read.state() == NetworkConnectorState::Active {
                return Ok(());
            }
            let (state, reason) = (read.state(), read.state_reason);
            ensure!(Instant::now() < deadline, "connector {} is {state:?}: {reason}", self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Deletes it, once nothing uses it any more.
    pub async fn remove(&self, context: &Context) -> anyhow::Result<()> {
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        loop {
            let request = DeleteNetworkConnectorRequest { identifier: self.name.clone() };
            match context.call(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(status) if Instant::now() > deadline => {
                    return Err(status).with_context(|| format!("connector {} is left over", self.name));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}
