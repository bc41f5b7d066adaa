//! `HostAgentService` of a simulated host. Callers are checked as on a real one.

use std::sync::Arc;

use api::common::v1::{LogLine, LogSource, Phase};
use api::hostagent::v1::host_agent_service_server::HostAgentService;
use api::hostagent::v1::*;
use api::image::v1::SnapshotRef;
use futures::stream::{self, BoxStream, StreamExt as _};
use rpc::Role;
use tonic::{Request, Response, Status};

use super::ENGINE;
use super::table::Table;

/// Steps of a bake, as a real host names them.
const STEPS: [&str; 5] = ["fetch", "boot", "ready", "snapshot", "upload"];
/// Digest of a manifest that is nowhere: 64 hex digits, and plainly not a digest.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Bytes that a simulated bake says it stored.
const STORED_BYTES: u64 = 1 << 20;

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = BoxStream<'static, Result<T, Status>>;

pub struct HostAgent {
    table: Arc<Table>,
}

impl HostAgent {
    pub fn new(table: Arc<Table>) -> Self {
        Self { table }
    }
}

#[tonic::async_trait]
impl HostAgentService for HostAgent {
    type BakeStream = Messages<BakeResponse>;
    type WatchStream = Messages<WatchResponse>;
    type FollowLogStream = Messages<FollowLogResponse>;

    async fn bake(&self, request: Request<BakeRequest>) -> Answer<Self::BakeStream> {
        rpc::authorize(&request, &[Role::ImageBuilder])?;
        let result = baked(request.get_ref());
        let manifest_key = result.snapshot.as_ref().map(|snapshot| snapshot.manifest_key.as_str());
        self.table.cache(manifest_key.unwrap_or_default());
        let told = LogLine {
            source: LogSource::Platform.into(),
            text: "A load test's simulated host: nothing is booted.".to_owned(),
            ..LogLine::default()
        };
        let first = BakeResponse { lines: vec![told], ..BakeResponse::default() };
        let steps = STEPS.map(|step| BakeResponse { step: step.to_owned(), ..BakeResponse::default() });
        let last = BakeResponse { result: Some(result), ..BakeResponse::default() };
        let messages = [first].into_iter().chain(steps).chain([last]);
        Ok(Response::new(stream::iter(messages.map(Ok)).boxed()))
    }

    async fn launch(&self, request: Request<LaunchRequest>) -> Answer<LaunchResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let LaunchRequest { generation, spec, .. } = request.into_inner();
        let spec = spec.unwrap_or_default();
        let guest_mib = spec.snapshot.map_or(0, |snapshot| snapshot.memory_mib);
        let observed = self.table.launch(&spec.microvm_id, generation, guest_mib)?;
        Ok(Response::new(LaunchResponse { observed: Some(observed) }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Answer<SuspendResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.get_ref();
        let observed = self.table.suspend(&request.microvm_id, request.generation)?;
        Ok(Response::new(SuspendResponse { observed: Some(observed) }))
    }

    async fn get_idleness(&self, request: Request<GetIdlenessRequest>) -> Answer<GetIdlenessResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        Ok(Response::new(GetIdlenessResponse { idleness: None }))
    }

    async fn keep_awake(&self, request: Request<KeepAwakeRequest>) -> Answer<KeepAwakeResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        Err(Status::unimplemented("a simulated host's microVMs do not fall asleep by themselves"))
    }

    async fn checkpoint(&self, request: Request<CheckpointRequest>) -> Answer<CheckpointResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        Err(Status::unimplemented("a simulated host makes no recovery points"))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Answer<ResumeResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let ResumeRequest { generation, spec, .. } = request.into_inner();
        let id = spec.unwrap_or_default().microvm_id;
        let observed = self.table.resume(&id, generation)?;
        Ok(Response::new(ResumeResponse { observed: Some(observed) }))
    }

    async fn terminate(&self, request: Request<TerminateRequest>) -> Answer<TerminateResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.get_ref();
        let observed = self.table.terminate(&request.microvm_id, request.generation)?;
        Ok(Response::new(TerminateResponse { observed: Some(observed) }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        rpc::authorize(&request, &[Role::Scheduler, Role::Admin])?;
        Err(Status::unimplemented("a simulated host reports; it is not watched"))
    }

    async fn follow_log(&self, request: Request<FollowLogRequest>) -> Answer<Self::FollowLogStream> {
        rpc::authorize(&request, &[Role::Scheduler, Role::Admin])?;
        Ok(Response::new(stream::empty().boxed()))
    }

    async fn evict_image(&self, request: Request<EvictImageRequest>) -> Answer<EvictImageResponse> {
        rpc::authorize(&request, &[Role::Scheduler, Role::ImageBuilder])?;
        self.table.evict(&request.get_ref().manifest_key);
        Ok(Response::new(EvictImageResponse {}))
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        Ok(Response::new(ListSnapshotsResponse::default()))
    }

    async fn remove_snapshots(
        &self,
        request: Request<RemoveSnapshotsRequest>,
    ) -> Answer<RemoveSnapshotsResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        Ok(Response::new(RemoveSnapshotsResponse::default()))
    }
}

/// The result of a bake that left nothing in S3.
fn baked(request: &BakeRequest) -> BakeResult {
    let disk_bytes = request.disk.as_ref().map_or(0, |disk| disk.size_bytes);
    BakeResult {
        snapshot: Some(SnapshotRef {
            manifest_key: snapshot::manifest_key(&request.destination_prefix),
            manifest_digest: NO_DIGEST.to_owned(),
            engine: ENGINE.to_owned(),
            guest_bundle_version: "simulated".to_owned(),
            memory_mib: request.memory_mib,
            vcpu_count: request.vcpu_count,
            disk_size_bytes: disk_bytes,
        }),
        memory_bytes: u64::from(request.memory_mib) << 20,
        disk_difference_bytes: 0,
        stored_bytes: STORED_BYTES,
        phases: STEPS.map(phase).to_vec(),
        warnings: Vec::new(),
    }
}

fn phase(name: &str) -> Phase {
    Phase {
        name: name.to_owned(),
        start: Some(api::duration_proto(std::time::Duration::ZERO)),
        duration: Some(api::duration_proto(std::time::Duration::ZERO)),
    }
}
