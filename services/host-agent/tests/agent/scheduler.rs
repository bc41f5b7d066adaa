//! The little of a scheduler that an agent talks to: it takes reports and
//! remembers them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use api::host::v1::host_service_server::{HostService, HostServiceServer};
use api::host::v1::*;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// What was reported.
#[derive(Default)]
pub struct Reports {
    pub registrations: u64,
    pub spec: HostSpec,
    pub latest: HashMap<String, ObservedMicrovm>,
    /// By host: what its next answer calls stale.
    pub stale: HashMap<String, Vec<String>>,
}

pub struct Recorder {
    reports: Arc<Mutex<Reports>>,
}

/// Serves one; returns its address and what it hears.
pub async fn serve(
    identity: &Arc<rpc::TlsIdentity>,
    stop: CancellationToken,
) -> (String, Arc<Mutex<Reports>>) {
    let reports = Arc::new(Mutex::new(Reports::default()));
    let server = rpc::ServerBuilder::bind("127.0.0.1:0", identity).await.unwrap();
    let address = server.local_addr().to_string();
    let routes =
        tonic::service::Routes::new(HostServiceServer::new(Recorder { reports: Arc::clone(&reports) }));
    tokio::spawn(async move { server.serve(routes, stop).await });
    (address, reports)
}

impl Recorder {
    fn hear(&self, host: &str, observed: Vec<ObservedMicrovm>) -> Vec<String> {
        let mut reports = self.reports.lock().unwrap();
        for one in observed {
            reports.latest.insert(one.microvm_id.clone(), one);
        }
        reports.stale.remove(host).unwrap_or_default()
    }
}

#[tonic::async_trait]
impl HostService for Recorder {
    async fn register_host(
        &self,
        request: Request<RegisterHostRequest>,
    ) -> Result<Response<RegisterHostResponse>, Status> {
        let request = request.into_inner();
        let spec = request.spec.unwrap();
        let host = spec.host_id.clone();
        {
            let mut reports = self.reports.lock().unwrap();
            reports.registrations += 1;
            reports.spec = spec;
        }
        let stale_microvm_ids = self.hear(&host, request.observed);
        let heartbeat_interval = Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 });
        Ok(Response::new(RegisterHostResponse { heartbeat_interval, stale_microvm_ids }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let stale_microvm_ids = self.hear(&request.host_id, request.observed);
        Ok(Response::new(HeartbeatResponse { register: false, stale_microvm_ids }))
    }

    async fn drain_host(&self, _: Request<DrainHostRequest>) -> Result<Response<DrainHostResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn undrain_host(
        &self,
        _: Request<UndrainHostRequest>,
    ) -> Result<Response<UndrainHostResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn place_bake(&self, _: Request<PlaceBakeRequest>) -> Result<Response<PlaceBakeResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn release_bake(
        &self,
        _: Request<ReleaseBakeRequest>,
    ) -> Result<Response<ReleaseBakeResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }
}
