//! `torpor.host.v1.HostService`.

use std::time::Duration;

use api::host::v1::host_service_server::HostService;
use api::host::v1::{
    DrainHostRequest, DrainHostResponse, HeartbeatRequest, HeartbeatResponse, ListHostsRequest,
    ListHostsResponse, PlaceBakeRequest, PlaceBakeResponse, RegisterHostRequest, RegisterHostResponse,
    ReleaseBakeRequest, ReleaseBakeResponse, UndrainHostRequest, UndrainHostResponse,
};
use model::{HostId, Violations};
use rpc::Role::{Admin, EdgeProxy, HostAgent, ImageBuilder};
use rpc::authorize;
use tonic::{Request, Response, Status};

use super::{Shared, validation};
use crate::domain::placement::Demand;
use crate::refusal::Refusal;

/// Largest page of hosts.
const HOSTS_PAGE_MAX: u32 = 500;
/// Longest reservation a bake may ask for, and what it gets when it asks for none.
const RESERVATION_MAX: Duration = Duration::from_secs(2 * 3600);
/// Longest build id, characters.
const BUILD_ID_MAX: usize = 64;

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub struct Hosts {
    shared: Shared,
}

impl Hosts {
    /// The service over the running term.
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.shared.refuse(refusal)
    }

    fn host_id(&self, text: &str, field: &str) -> Result<HostId, Status> {
        let mut violations = Violations::default();
        let id = violations.keep(field, text.parse());
        id.ok_or_else(|| self.refuse(Refusal::Invalid(violations)))
    }
}

#[tonic::async_trait]
impl HostService for Hosts {
    async fn register_host(&self, request: Request<RegisterHostRequest>) -> Answer<RegisterHostResponse> {
        authorize(&request, &[HostAgent])?;
        let term = self.shared.term()?;
        let request = request.into_inner();
        let spec = request.spec.unwrap_or_default();
        let host = self.host_id(&spec.host_id, "spec.hostId")?;
        let told = term.register(host, spec, request.observed).await.map_err(|r| self.refuse(r))?;
        let interval = Duration::from_millis(self.shared.settings.heartbeat_interval_ms);
        Ok(Response::new(RegisterHostResponse {
            heartbeat_interval: Some(api::duration_proto(interval)),
            stale_microvm_ids: told.stale,
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        authorize(&request, &[HostAgent])?;
        let term = self.shared.term()?;
        let request = request.into_inner();
        let host = self.host_id(&request.host_id, "hostId")?;
        let told = term.heartbeat(host, request.usage, request.observed, request.complete).await;
        let told = told.map_err(|r| self.refuse(r))?;
        Ok(Response::new(HeartbeatResponse { register: told.register, stale_microvm_ids: told.stale }))
    }

    async fn drain_host(&self, request: Request<DrainHostRequest>) -> Answer<DrainHostResponse> {
        authorize(&request, &[Admin, EdgeProxy])?;
        let term = self.shared.term()?;
        let id = self.host_id(&request.get_ref().host_id, "hostId")?;
        let host = term.drain(&id).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(DrainHostResponse { host: Some(host) }))
    }

    async fn undrain_host(&self, request: Request<UndrainHostRequest>) -> Answer<UndrainHostResponse> {
        authorize(&request, &[Admin, EdgeProxy])?;
        let term = self.shared.term()?;
        let id = self.host_id(&request.get_ref().host_id, "hostId")?;
        let host = term.undrain(&id).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(UndrainHostResponse { host: Some(host) }))
    }

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Answer<ListHostsResponse> {
        authorize(&request, &[Admin, EdgeProxy, ImageBuilder])?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let size = validation::page_size(request.page_size, HOSTS_PAGE_MAX).map_err(|r| self.refuse(r))?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(self.host_id(token, "nextToken")?),
        };
        let mut hosts = term.list_hosts(after.as_ref(), size + 1);
        let more = hosts.len() > size;
        hosts.truncate(size);
        let last = hosts.last().and_then(|host| host.spec.as_ref()).filter(|_| more);
        let next_page_token = last.map(|spec| spec.host_id.clone()).unwrap_or_default();
        Ok(Response::new(ListHostsResponse { hosts, next_page_token }))
    }

    async fn place_bake(&self, request: Request<PlaceBakeRequest>) -> Answer<PlaceBakeResponse> {
        authorize(&request, &[ImageBuilder])?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let mut violations = Violations::default();
        let named = (1..=BUILD_ID_MAX).contains(&request.build_id.chars().count());
        violations.check(named, "buildId", format!("must be 1 to {BUILD_ID_MAX} characters"));
        violations.check(request.memory_mib > 0, "memoryMib", "must be at least 1");
        let reservation = match &request.reservation {
            None => Some(RESERVATION_MAX),
            Some(given) => violations.keep("reservation", api::duration(given)),
        };
        violations.finish().map_err(|found| self.refuse(Refusal::Invalid(found)))?;
        let demand = Demand {
            memory_mib: u64::from(request.memory_mib),
            engine: String::new(),
            architecture: request.architecture(),
            fingerprint: String::new(),
            exclude: Vec::new(),
        };
        let reservation = reservation.unwrap_or(RESERVATION_MAX).min(RESERVATION_MAX);
        let spec = term.place_bake(&request.build_id, &demand, reservation).map_err(|r| self.refuse(r))?;
        Ok(Response::new(PlaceBakeResponse {
            host_id: spec.host_id,
            grpc_address: spec.grpc_address,
            chipset: spec.chipset,
        }))
    }

    async fn release_bake(&self, request: Request<ReleaseBakeRequest>) -> Answer<ReleaseBakeResponse> {
        authorize(&request, &[ImageBuilder])?;
        self.shared.term()?.release_bake(&request.get_ref().build_id);
        Ok(Response::new(ReleaseBakeResponse {}))
    }
}
