//! `torpor.host.v1.HostService`.

use std::time::Duration;

use api::host::v1::host_service_server::HostService;
use api::host::v1::*;
use model::{HostId, Violations};
use rpc::Role::{Admin, EdgeProxy, HostAgent, ImageBuilder};
use tonic::{Request, Response};

use super::{Answer, Handlers, errors, validation};
use crate::domain::placement::{Demand, DiskDemand};
use crate::refusal::Refusal;
use crate::term::vouchers::check as check_vouchers;

const HOSTS_PAGE_MAX: u32 = 500;
/// Longest reservation a bake may ask for, and what it gets when it asks for none.
const RESERVATION_MAX: Duration = Duration::from_secs(2 * 3600);
const BUILD_ID_MAX: usize = 64;

#[tonic::async_trait]
impl HostService for Handlers {
    async fn register_host(&self, request: Request<RegisterHostRequest>) -> Answer<RegisterHostResponse> {
        let claimed = request.get_ref().spec.as_ref().map_or("", |spec| &spec.host_id);
        rpc::authorize_host(&request, claimed)?;
        self.answer(request, &[HostAgent], |term, request| async move {
            let spec = request.spec.unwrap_or_default();
            let host = host_id(&spec.host_id, "spec.hostId")?;
            let clock = request.clock_time.as_ref().and_then(|time| api::system_time(time).ok());
            let RegisterHostRequest { usage, observed, vouchers, .. } = request;
            check_vouchers(&vouchers)?;
            let reply = term.register(host, spec, (usage, clock), observed, vouchers).await?;
            let interval = Duration::from_millis(self.config.heartbeat_interval_ms);
            Ok(RegisterHostResponse {
                heartbeat_interval: Some(api::duration_proto(interval)),
                draining: reply.draining,
                stale: reply.stale,
                recorded: reply.recorded,
                vouchers_recorded: reply.vouchers.recorded,
                withdraw_vouchers: reply.vouchers.withdraw,
            })
        })
        .await
    }

    /// Answered whether this scheduler leads or not: what it promises it keeps when it comes to lead.
    async fn vouch_for_host(&self, request: Request<VouchForHostRequest>) -> Answer<VouchForHostResponse> {
        rpc::authorize_host(&request, &request.get_ref().host_id)?;
        let host = host_id(&request.get_ref().host_id, "hostId");
        let host = host.map_err(|refusal| errors::status(refusal, &self.leader))?;
        let valid_for = Some(api::duration_proto(self.vouches.vouch(&host)));
        Ok(Response::new(VouchForHostResponse { scheduler: self.vouches.scheduler().to_owned(), valid_for }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        rpc::authorize_host(&request, &request.get_ref().host_id)?;
        self.answer(request, &[HostAgent], |term, request| async move {
            let host = host_id(&request.host_id, "hostId")?;
            let clock = request.clock_time.as_ref().and_then(|time| api::system_time(time).ok());
            let news = (request.usage, clock);
            let reply = term.heartbeat(host, news, request.observed, request.complete).await?;
            Ok(HeartbeatResponse {
                register: reply.register,
                draining: reply.draining,
                stale: reply.stale,
                recorded: reply.recorded,
            })
        })
        .await
    }

    async fn drain_host(&self, request: Request<DrainHostRequest>) -> Answer<DrainHostResponse> {
        self.answer(request, &[Admin, EdgeProxy], |term, request| async move {
            let host = term.drain(&host_id(&request.host_id, "hostId")?, request.wake_elsewhere).await?;
            Ok(DrainHostResponse { host: Some(host) })
        })
        .await
    }

    async fn undrain_host(&self, request: Request<UndrainHostRequest>) -> Answer<UndrainHostResponse> {
        self.answer(request, &[Admin, EdgeProxy], |term, request| async move {
            let host = term.undrain(&host_id(&request.host_id, "hostId")?).await?;
            Ok(UndrainHostResponse { host: Some(host) })
        })
        .await
    }

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Answer<ListHostsResponse> {
        self.answer(request, &[Admin, EdgeProxy, ImageBuilder], |term, request| async move {
            let size = validation::page_size(request.page_size, HOSTS_PAGE_MAX)?;
            let after = match request.page_token.as_str() {
                "" => None,
                token => Some(host_id(token, "nextToken")?),
            };
            let mut hosts = term.list_hosts(after.as_ref(), size + 1);
            let more = hosts.len() > size;
            hosts.truncate(size);
            let last = hosts.last().and_then(|host| host.spec.as_ref()).filter(|_| more);
            let next_page_token = last.map(|spec| spec.host_id.clone()).unwrap_or_default();
            Ok(ListHostsResponse { hosts, next_page_token, alarms: term.alarms() })
        })
        .await
    }

    async fn place_bake(&self, request: Request<PlaceBakeRequest>) -> Answer<PlaceBakeResponse> {
        self.answer(request, &[ImageBuilder], |term, request| async move {
            let mut violations = Violations::default();
            let named = (1..=BUILD_ID_MAX).contains(&request.build_id.chars().count());
            violations.check(named, "buildId", format!("must be 1 to {BUILD_ID_MAX} characters"));
            violations.check(request.memory_mib > 0, "memoryMib", "must be at least 1");
            let reservation = match &request.reservation {
                None => Some(RESERVATION_MAX),
                Some(given) => violations.keep("reservation", api::duration(given)),
            };
            violations.finish().map_err(Refusal::Invalid)?;
            let demand = Demand {
                memory_mib: u64::from(request.memory_mib),
                disk: DiskDemand { bytes: 0, overcommit: self.config.disk_overcommit },
                engine: String::new(),
                architecture: request.architecture(),
                fingerprint: String::new(),
                exclude: Vec::new(),
            };
            let reservation = reservation.unwrap_or(RESERVATION_MAX).min(RESERVATION_MAX);
            let spec = term.place_bake(&request.build_id, &demand, reservation)?;
            Ok(PlaceBakeResponse {
                host_id: spec.host_id,
                grpc_address: spec.grpc_address,
                chipset: spec.chipset,
            })
        })
        .await
    }

    async fn release_bake(&self, request: Request<ReleaseBakeRequest>) -> Answer<ReleaseBakeResponse> {
        self.answer(request, &[ImageBuilder], |term, request| async move {
            term.release_bake(&request.build_id);
            Ok(ReleaseBakeResponse {})
        })
        .await
    }
}

fn host_id(text: &str, field: &str) -> Result<HostId, Refusal> {
    let mut violations = Violations::default();
    let id = violations.keep(field, text.parse());
    id.ok_or(Refusal::Invalid(violations))
}
