//! Our neighbours: the scheduler (finds hosts, knows microVMs) and the hosts.

use std::sync::Arc;
use std::time::Duration;

use api::common::v1::Architecture;
use api::errors::{reason, reason_of};
use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::{ListHostsRequest, PlaceBakeRequest, PlaceBakeResponse, ReleaseBakeRequest};
use api::hostagent::v1::host_agent_service_client::HostAgentServiceClient;
use api::hostagent::v1::{BakeRequest, BakeResponse, EvictImageRequest};
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::{ListMicrovmsRequest, MicrovmState};
use rpc::{Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Longest wait for an answer that should come at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Hosts and microVMs asked for at a time.
const PAGE: u32 = 50;
/// Pages read of any list; a bound, not a limit anybody should meet.
const PAGES_MAX: usize = 20_000;

/// Channels to the fleet.
#[derive(Debug, Clone)]
pub struct Peers {
    identity: Arc<TlsIdentity>,
    schedulers: Vec<Channel>,
}

impl Peers {
    /// Prepares channels; connects when first used.
    pub fn new(identity: Arc<TlsIdentity>, schedulers: &[String]) -> Result<Self, Status> {
        let schedulers = schedulers
            .iter()
            .map(|address| rpc::channel(&identity, address, Role::Scheduler))
            .collect::<Result<_, _>>()?;
        Ok(Self { identity, schedulers })
    }

    /// Asks one scheduler after the other until the leader answers.
    async fn ask<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut last = Status::unavailable("no scheduler");
        for channel in &self.schedulers {
            let answered = tokio::time::timeout(CALL_TIMEOUT, call(channel.clone())).await;
            match answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("the scheduler did not answer")))
            {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if elsewhere(&status) => last = status,
                Err(status) => return Err(status),
            }
        }
        Err(last)
    }

    /// Finds a host for a bake and reserves its memory.
    pub async fn place_bake(
        &self,
        build_id: &str,
        memory_mib: u32,
        architecture: Architecture,
        reservation: Duration,
    ) -> Result<PlaceBakeResponse, Status> {
        self.ask(|channel| {
            let request = PlaceBakeRequest {
                build_id: build_id.to_owned(),
                memory_mib,
                architecture: architecture.into(),
                reservation: Some(api::duration_proto(reservation)),
            };
            async move { HostServiceClient::new(channel).place_bake(rpc::request(request)).await }
        })
        .await
    }

    /// Gives a reservation back. It runs out by itself if this fails.
    pub async fn release_bake(&self, build_id: &str) {
        let released = self
            .ask(|channel| {
                let request = ReleaseBakeRequest { build_id: build_id.to_owned() };
                async move { HostServiceClient::new(channel).release_bake(rpc::request(request)).await }
            })
            .await;
        if let Err(error) = released {
            tracing::warn!(build_id, %error, "the bake's reservation was not given back");
        }
    }

    /// Begins a bake on a host.
    pub async fn bake(&self, address: &str, request: BakeRequest) -> Result<Streaming<BakeResponse>, Status> {
        let channel = rpc::channel(&self.identity, address, Role::HostAgent)?;
        let mut client = HostAgentServiceClient::new(channel);
        Ok(client.bake(rpc::request(request)).await?.into_inner())
    }

    /// True when a microVM of the image, or of one version of it, has not ended.
    pub async fn in_use(&self, image_arn: &str, version: Option<&str>) -> Result<bool, Status> {
        let mut token = String::new();
        for _ in 0..PAGES_MAX {
            let page = self
                .ask(|channel| {
                    let request = ListMicrovmsRequest {
                        image_identifier: image_arn.to_owned(),
                        image_version: version.unwrap_or_default().to_owned(),
                        page_size: PAGE,
                        page_token: token.clone(),
                    };
                    async move {
                        MicrovmServiceClient::new(channel)
                            .list_microvms(rpc::request(request))
                            .await
                    }
                })
                .await?;
            if page.microvms.iter().any(|microvm| microvm.state() != MicrovmState::Terminated) {
                return Ok(true);
            }
            if page.next_page_token.is_empty() {
                return Ok(false);
            }
            token = page.next_page_token;
        }
        Ok(true)
    }

    /// Asks every reachable host to drop a snapshot from its cache. Hosts that
    /// are away drop it when they find its manifest gone.
    pub async fn evict(&self, manifest_key: &str) -> Result<(), Status> {
        let mut token = String::new();
        for _ in 0..PAGES_MAX {
            let page = self
                .ask(|channel| {
                    let request = ListHostsRequest { page_size: 0, page_token: token.clone() };
                    async move { HostServiceClient::new(channel).list_hosts(rpc::request(request)).await }
                })
                .await?;
            for spec in page.hosts.iter().filter_map(|host| host.spec.as_ref()) {
                self.evict_from(&spec.grpc_address, manifest_key).await;
            }
            if page.next_page_token.is_empty() {
                break;
            }
            token = page.next_page_token;
        }
        Ok(())
    }

    async fn evict_from(&self, address: &str, manifest_key: &str) {
        let request = EvictImageRequest { manifest_key: manifest_key.to_owned(), generation: 0 };
        let evicted = async {
            let channel = rpc::channel(&self.identity, address, Role::HostAgent)?;
            HostAgentServiceClient::new(channel).evict_image(rpc::request(request)).await
        };
        match tokio::time::timeout(CALL_TIMEOUT, evicted).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(address, manifest_key, %error, "a host kept an image it should drop")
            }
            Err(_) => tracing::warn!(address, manifest_key, "a host did not answer"),
        }
    }
}

/// True when another scheduler may know better.
fn elsewhere(status: &Status) -> bool {
    reason_of(status).as_deref() == Some(reason::NOT_LEADER)
        || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}
