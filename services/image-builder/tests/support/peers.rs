//! A scheduler with one host, scripted. They speak the real protocol; only what
//! stands behind it is missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use api::common::v1::{LogLine, LogSource};
use api::errors;
use api::host::v1::host_service_server::{HostService, HostServiceServer};
use api::host::v1::*;
use api::hostagent::v1::host_agent_service_server::{HostAgentService, HostAgentServiceServer};
use api::hostagent::v1::*;
use api::image::v1::SnapshotRef;
use api::microvm::v1::microvm_service_server::{MicrovmService, MicrovmServiceServer};
use api::microvm::v1::*;
use futures::Stream;
use object_store::Store;
use rpc::{Role, ServerBuilder};
use snapshot::{FileKind, FileSource, ManifestHead, SnapshotKind};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::world::{SNAPSHOTS, identity};

/// How the next bakes go, in order; then they succeed.
#[derive(Default)]
pub struct Script {
    pub bakes: Vec<BakeEnd>,
    /// What was asked.
    pub requests: Vec<BakeRequest>,
    pub released: usize,
    pub evicted: Vec<String>,
    /// MicroVMs that the scheduler lists.
    pub microvms: Vec<Microvm>,
}

#[derive(Clone)]
pub enum BakeEnd {
    /// Never ends.
    Hang,
    /// The connection breaks.
    Break,
    /// Ends with this reason and metadata.
    Refuse(Code, &'static str, Vec<(&'static str, &'static str)>),
}

struct Fake {
    script: Arc<Mutex<Script>>,
    store: Store,
    host: String,
}

pub async fn serve(
    directory: &Path,
    store: Store,
    script: Arc<Mutex<Script>>,
    stop: CancellationToken,
) -> String {
    let agent = ServerBuilder::bind("127.0.0.1:0", &identity(directory, Role::HostAgent)).await.unwrap();
    let scheduler = ServerBuilder::bind("127.0.0.1:0", &identity(directory, Role::Scheduler)).await.unwrap();
    let address = scheduler.local_addr().to_string();
    let host = agent.local_addr().to_string();
    let fake = Arc::new(Fake { script, store, host });
    let routes = Routes::new(HostAgentServiceServer::from_arc(Arc::clone(&fake)));
    tokio::spawn(agent.serve(routes, stop.clone()));
    let routes = Routes::new(HostServiceServer::from_arc(Arc::clone(&fake)))
        .add_service(MicrovmServiceServer::from_arc(fake));
    tokio::spawn(scheduler.serve(routes, stop));
    address
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl HostService for Fake {
    async fn register_host(
        &self,
        _: Request<RegisterHostRequest>,
    ) -> Result<Response<RegisterHostResponse>, Status> {
        no()
    }
    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        no()
    }
    async fn drain_host(&self, _: Request<DrainHostRequest>) -> Result<Response<DrainHostResponse>, Status> {
        no()
    }
    async fn undrain_host(
        &self,
        _: Request<UndrainHostRequest>,
    ) -> Result<Response<UndrainHostResponse>, Status> {
        no()
    }
    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        let spec = HostSpec { host_id: "h1".into(), grpc_address: self.host.clone(), ..HostSpec::default() };
        let hosts = vec![Host { spec: Some(spec), ..Host::default() }];
        Ok(Response::new(ListHostsResponse { hosts, next_page_token: String::new() }))
    }
    async fn place_bake(&self, _: Request<PlaceBakeRequest>) -> Result<Response<PlaceBakeResponse>, Status> {
        Ok(Response::new(PlaceBakeResponse {
            host_id: "h1".into(),
            grpc_address: self.host.clone(),
            chipset: "EMULATED".into(),
        }))
    }
    async fn release_bake(
        &self,
        _: Request<ReleaseBakeRequest>,
    ) -> Result<Response<ReleaseBakeResponse>, Status> {
        self.script.lock().unwrap().released += 1;
        Ok(Response::new(ReleaseBakeResponse {}))
    }
}

impl Fake {
    /// What a host leaves in S3, small.
    async fn publish(&self, request: &BakeRequest) -> BakeResult {
        let disk = request.disk.as_ref().unwrap();
        let (manifest, _) =
            snapshot::read_manifest(&self.store, SNAPSHOTS, &disk.manifest_key, Some(&disk.manifest_digest))
                .await
                .expect("the disk is there");
        assert_eq!(manifest.head.disk_size_bytes, disk.size_bytes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 5000]).unwrap();
        let head = ManifestHead {
            kind: SnapshotKind::Image,
            engine: "qemu 7.2".into(),
            platform_fingerprint: "test".into(),
            guest_bundle_version: "g1".into(),
            memory_mib: request.memory_mib,
            vcpu_count: request.vcpu_count,
            disk_size_bytes: disk.size_bytes,
            image_name: request.image_name.clone(),
            image_version: request.image_version.clone(),
            microvm_id: None,
            generation: Some(request.generation),
            sequence: None,
            parent: None,
            created_unix_ms: 0,
            labels: BTreeMap::new(),
        };
        let sources = [FileSource { kind: FileKind::Memory, path: file.path().to_owned() }];
        let prefix = &request.destination_prefix;
        let published =
            snapshot::upload(&self.store, SNAPSHOTS, prefix, &head, &sources, &|_, _| {}).await.unwrap();
        BakeResult {
            snapshot: Some(SnapshotRef {
                manifest_key: published.manifest_key,
                manifest_digest: published.manifest_digest,
                engine: "qemu".into(),
                guest_bundle_version: "g1".into(),
                memory_mib: request.memory_mib,
                vcpu_count: request.vcpu_count,
                disk_size_bytes: disk.size_bytes,
            }),
            memory_bytes: 5000,
            disk_difference_bytes: 4096,
            stored_bytes: published.stored_bytes,
            phases: Vec::new(),
        }
    }
}

#[tonic::async_trait]
impl HostAgentService for Fake {
    type BakeStream = BoxStream<BakeResponse>;
    async fn bake(&self, request: Request<BakeRequest>) -> Result<Response<Self::BakeStream>, Status> {
        let request = request.into_inner();
        let end = {
            let mut script = self.script.lock().unwrap();
            script.requests.push(request.clone());
            if script.bakes.is_empty() { None } else { Some(script.bakes.remove(0)) }
        };
        let line = LogLine {
            source: LogSource::Stdout.into(),
            text: "hello from the app".into(),
            ..LogLine::default()
        };
        let first = BakeResponse { lines: vec![line], step: "boot".into(), result: None };
        let last = match end {
            None => Ok(BakeResponse { result: Some(self.publish(&request).await), ..Default::default() }),
            Some(BakeEnd::Hang) => {
                let stream = futures::stream::once(async { Ok(first) });
                let forever = futures::stream::pending();
                return Ok(Response::new(Box::pin(futures::StreamExt::chain(stream, forever))));
            }
            Some(BakeEnd::Break) => Err(Status::unavailable("the host went")),
            Some(BakeEnd::Refuse(code, reason, metadata)) => {
                Err(errors::status(code, reason, "it broke", &metadata))
            }
        };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(first), last]))))
    }
    async fn launch(&self, _: Request<LaunchRequest>) -> Result<Response<LaunchResponse>, Status> {
        no()
    }
    async fn suspend(&self, _: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        no()
    }
    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        no()
    }
    async fn terminate(&self, _: Request<TerminateRequest>) -> Result<Response<TerminateResponse>, Status> {
        no()
    }
    type WatchStream = BoxStream<WatchResponse>;
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        no()
    }
    type FollowLogStream = BoxStream<FollowLogResponse>;
    async fn follow_log(
        &self,
        _: Request<FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        no()
    }
    async fn evict_image(
        &self,
        request: Request<EvictImageRequest>,
    ) -> Result<Response<EvictImageResponse>, Status> {
        self.script.lock().unwrap().evicted.push(request.into_inner().manifest_key);
        Ok(Response::new(EvictImageResponse {}))
    }
}

#[tonic::async_trait]
impl MicrovmService for Fake {
    async fn list_microvms(
        &self,
        _: Request<ListMicrovmsRequest>,
    ) -> Result<Response<ListMicrovmsResponse>, Status> {
        let microvms = self.script.lock().unwrap().microvms.clone();
        Ok(Response::new(ListMicrovmsResponse { microvms, next_page_token: String::new() }))
    }
    async fn run_microvm(
        &self,
        _: Request<RunMicrovmRequest>,
    ) -> Result<Response<RunMicrovmResponse>, Status> {
        no()
    }
    async fn get_microvm(
        &self,
        _: Request<GetMicrovmRequest>,
    ) -> Result<Response<GetMicrovmResponse>, Status> {
        no()
    }
    async fn suspend_microvm(
        &self,
        _: Request<SuspendMicrovmRequest>,
    ) -> Result<Response<SuspendMicrovmResponse>, Status> {
        no()
    }
    async fn resume_microvm(
        &self,
        _: Request<ResumeMicrovmRequest>,
    ) -> Result<Response<ResumeMicrovmResponse>, Status> {
        no()
    }
    async fn terminate_microvm(
        &self,
        _: Request<TerminateMicrovmRequest>,
    ) -> Result<Response<TerminateMicrovmResponse>, Status> {
        no()
    }
    async fn create_microvm_auth_token(
        &self,
        _: Request<CreateMicrovmAuthTokenRequest>,
    ) -> Result<Response<CreateMicrovmAuthTokenResponse>, Status> {
        no()
    }
    async fn create_microvm_shell_auth_token(
        &self,
        _: Request<CreateMicrovmShellAuthTokenRequest>,
    ) -> Result<Response<CreateMicrovmShellAuthTokenResponse>, Status> {
        no()
    }
    type WatchMicrovmsStream = BoxStream<WatchMicrovmsResponse>;
    async fn watch_microvms(
        &self,
        _: Request<WatchMicrovmsRequest>,
    ) -> Result<Response<Self::WatchMicrovmsStream>, Status> {
        no()
    }
    type FollowMicrovmLogStream = BoxStream<FollowMicrovmLogResponse>;
    async fn follow_microvm_log(
        &self,
        _: Request<FollowMicrovmLogRequest>,
    ) -> Result<Response<Self::FollowMicrovmLogStream>, Status> {
        no()
    }
}
