//! Our neighbours: the scheduler (finds hosts, knows microVMs) and the hosts.

use std::sync::Arc;
use std::time::Duration;

use api::common::v1::Architecture;
use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::{HostSpec, ListHostsRequest, PlaceBakeRequest, PlaceBakeResponse, ReleaseBakeRequest};
use api::hostagent::v1::host_agent_service_client::HostAgentServiceClient;
use api::hostagent::v1::{BakeRequest, BakeResponse, EvictImageRequest};
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::{ListMicrovmsRequest, MicrovmState};
use rpc::{CallBounds, Identity, Replicas, Role, TlsIdentity, WrongPeer};
use tonic::{Status, Streaming};

/// Longest wait for an answer that should come at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Each scheduler is asked once; the build's own loops ask again.
const BOUNDS: CallBounds =
    CallBounds { attempt: CALL_TIMEOUT, total: Duration::from_secs(15), retry: Duration::ZERO };
/// Hosts and microVMs asked for at a time.
const PAGE: u32 = 50;
/// Pages read of any list; a bound, not a limit anybody should meet.
const PAGES_MAX: usize = 20_000;

#[derive(Debug, Clone)]
pub struct Peers {
    identity: Arc<TlsIdentity>,
    schedulers: Replicas,
}

impl Peers {
    /// Prepares channels; connects when first used.
    pub fn new(identity: Arc<TlsIdentity>, schedulers: &[String]) -> Result<Self, Status> {
        let schedulers = Replicas::new(&identity, schedulers, Role::Scheduler)?;
        Ok(Self { identity, schedulers })
    }

    /// Finds a host for a bake and reserves its memory.
    pub async fn place_bake(
        &self,
        build_id: &str,
        memory_mib: u32,
        architecture: Architecture,
        reservation: Duration,
    ) -> Result<PlaceBakeResponse, Status> {
        let request = PlaceBakeRequest {
            build_id: build_id.to_owned(),
            memory_mib,
            architecture: architecture.into(),
            reservation: Some(api::duration_proto(reservation)),
        };
        self.schedulers
            .call(BOUNDS, request, |channel, request| async move {
                HostServiceClient::new(channel).place_bake(request).await
            })
            .await
    }

    /// Gives a reservation back. It runs out by itself if this fails.
    pub async fn release_bake(&self, build_id: &str) {
        let request = ReleaseBakeRequest { build_id: build_id.to_owned() };
        if let Err(error) = self
            .schedulers
            .call(BOUNDS, request, |channel, request| async move {
                HostServiceClient::new(channel).release_bake(request).await
            })
            .await
        {
            tracing::warn!(build_id, %error, "the bake's reservation was not given back");
        }
    }

    /// Bakes on the host that was found.
    pub async fn bake(
        &self,
        placed: &PlaceBakeResponse,
        request: BakeRequest,
    ) -> Result<Streaming<BakeResponse>, Status> {
        let host = Identity::of_host(&placed.host_id);
        let channel = rpc::channel(&self.identity, &placed.grpc_address, host)?;
        let baking = HostAgentServiceClient::new(channel).bake(rpc::request(request)).await;
        Ok(baking.map_err(|status| WrongPeer::behind(&status).unwrap_or(status))?.into_inner())
    }

    /// True when a microVM of the image, or of one version of it, has not ended.
    /// With `unlaunchable` it is asked once no launch takes the image or version any more: its records must say so already.
    pub async fn in_use(
        &self,
        image_arn: &str,
        version: Option<&str>,
        unlaunchable: bool,
    ) -> Result<bool, Status> {
        let mut request = ListMicrovmsRequest {
            image_identifier: image_arn.to_owned(),
            image_version: version.unwrap_or_default().to_owned(),
            page_size: PAGE,
            page_token: String::new(),
            unlaunchable,
        };
        for _ in 0..PAGES_MAX {
            let page = self
                .schedulers
                .call(BOUNDS, request.clone(), |channel, request| async move {
                    MicrovmServiceClient::new(channel).list_microvms(request).await
                })
                .await?;
            if page.microvms.iter().any(|microvm| microvm.state() != MicrovmState::Terminated) {
                return Ok(true);
            }
            if page.next_page_token.is_empty() {
                return Ok(false);
            }
            request.page_token = page.next_page_token;
        }
        Ok(true)
    }

    /// Asks every reachable host to drop a snapshot from its cache. Hosts that
    /// are away drop it when they find its manifest gone.
    pub async fn evict(&self, manifest_key: &str) -> Result<(), Status> {
        let mut request = ListHostsRequest { page_size: 0, page_token: String::new() };
        for _ in 0..PAGES_MAX {
            let page = self
                .schedulers
                .call(BOUNDS, request.clone(), |channel, request| async move {
                    HostServiceClient::new(channel).list_hosts(request).await
                })
                .await?;
            for spec in page.hosts.iter().filter_map(|host| host.spec.as_ref()) {
                self.evict_from(spec, manifest_key).await;
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        Ok(())
    }

    async fn evict_from(&self, spec: &HostSpec, manifest_key: &str) {
        let address = spec.grpc_address.as_str();
        let request = EvictImageRequest { manifest_key: manifest_key.to_owned(), generation: 0 };
        let evicted = async {
            let channel = rpc::channel(&self.identity, address, Identity::of_host(&spec.host_id))?;
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
