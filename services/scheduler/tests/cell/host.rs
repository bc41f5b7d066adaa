//! A host-agent that does as it is told and remembers what it was asked.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use api::host::v1::{HostSpec, HostUsage, ObservedMicrovm};
use api::hostagent::v1::host_agent_service_server::{HostAgentService, HostAgentServiceServer};
use api::hostagent::v1::*;
use api::microvm::v1::{MicrovmState, SnapshotCopies};
use futures::Stream;
use prost::Message as _;
use records::Lease;
use rpc::{Role, ServerBuilder};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::world::World;

/// What the next call of a kind does instead of succeeding.
#[derive(Debug, Clone)]
pub enum Step {
    Refuse(Status),
    /// Never answers.
    Hang,
    /// Succeeds, but the answer is lost.
    LoseAnswer,
}

#[derive(Debug, Default)]
pub struct Inner {
    pub held: HashMap<String, ObservedMicrovm>,
    pub launches: Vec<(String, u64)>,
    pub specs: Vec<MicrovmSpec>,
    pub resumes: Vec<ResumeRequest>,
    pub terminates: Vec<TerminateRequest>,
    pub on_launch: VecDeque<Step>,
    pub on_suspend: VecDeque<Step>,
    pub on_resume: VecDeque<Step>,
    pub remote_copies: bool,
}

impl Inner {
    fn step(&mut self, id: &str, generation: u64, state: MicrovmState) -> ObservedMicrovm {
        let held = self.held.entry(id.to_owned()).or_default();
        if held.generation != generation {
            *held = ObservedMicrovm { generation, ..Default::default() };
        }
        held.microvm_id = id.to_owned();
        held.observation += 1;
        held.state = state.into();
        held.state_time = Some(api::timestamp(SystemTime::now()));
        if state == MicrovmState::Suspended {
            let sequence = held.snapshot.as_ref().map_or(0, |copies| copies.sequence) + 1;
            held.snapshot = Some(SnapshotCopies {
                local: true,
                remote: self.remote_copies,
                sequence,
                manifest_key: format!("{id}/{sequence}"),
                ..Default::default()
            });
        }
        held.clone()
    }
}

/// A scripted host.
pub struct FakeHost {
    pub spec: HostSpec,
    pub inner: Arc<Mutex<Inner>>,
    pub lease: Lease,
    stop: CancellationToken,
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl FakeHost {
    pub async fn start(world: &World, id: &str) -> Self {
        Self::start_with(world, id, 4096).await
    }

    pub async fn start_with(world: &World, id: &str, memory_mib: u64) -> Self {
        let inner = Arc::new(Mutex::new(Inner { remote_copies: true, ..Inner::default() }));
        let bound = ServerBuilder::bind("127.0.0.1:0", &world.pki.identity(Role::HostAgent)).await.unwrap();
        let spec = HostSpec {
            host_id: id.into(),
            grpc_address: bound.local_addr().to_string(),
            tunnel_address: format!("tunnel-{id}"),
            engines: vec!["qemu".into()],
            platform_fingerprint: "same".into(),
            memory_capacity_mib: memory_mib,
            slot_capacity: 64,
            ..Default::default()
        };
        let stop = CancellationToken::new();
        let routes = Routes::new(HostAgentServiceServer::new(Agent { inner: inner.clone() }));
        tokio::spawn(bound.serve(routes, stop.clone()));
        let lease = world.store.lease(Duration::from_secs(10)).await.unwrap();
        let host = Self { spec, inner, lease, stop };
        host.announce(world).await;
        host
    }

    pub async fn announce(&self, world: &World) {
        let key = format!("hosts/{}", self.spec.host_id);
        world.store.put_leased(&key, self.spec.encode_to_vec(), &self.lease).await.unwrap();
    }

    /// Usage with these manifests cached.
    pub fn usage(cached: &[&str]) -> HostUsage {
        HostUsage {
            cached_manifest_keys: cached.iter().map(|key| (*key).to_owned()).collect(),
            ..Default::default()
        }
    }

    pub fn script(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap());
    }

    pub fn asked<T>(&self, read: impl FnOnce(&Inner) -> T) -> T {
        read(&self.inner.lock().unwrap())
    }

    /// What it was told of a microVM when it launched it.
    pub fn launched(&self, id: &str) -> MicrovmSpec {
        self.asked(|inner| inner.specs.iter().rfind(|spec| spec.microvm_id == id).cloned().unwrap())
    }

    /// What it would report of a microVM in a new state.
    pub fn observes(&self, id: &str, state: MicrovmState) -> ObservedMicrovm {
        let mut inner = self.inner.lock().unwrap();
        let generation = inner.held.get(id).map_or(1, |held| held.generation);
        inner.step(id, generation, state)
    }
}

struct Agent {
    inner: Arc<Mutex<Inner>>,
}

impl Agent {
    /// Does what the script says, or brings the microVM to the state.
    async fn act(
        &self,
        queue: fn(&mut Inner) -> &mut VecDeque<Step>,
        (id, generation): (&str, u64),
        state: MicrovmState,
    ) -> Result<Option<ObservedMicrovm>, Status> {
        let step = queue(&mut self.inner.lock().unwrap()).pop_front();
        match step {
            Some(Step::Refuse(status)) => Err(status),
            Some(Step::Hang) => std::future::pending().await,
            Some(Step::LoseAnswer) => {
                self.inner.lock().unwrap().step(id, generation, state);
                Err(Status::unavailable("the connection broke"))
            }
            None => {
                let mut inner = self.inner.lock().unwrap();
                // Asked again for what is already so: the same observation.
                let held = inner.held.get(id).filter(|held| held.generation == generation);
                if let Some(held) = held.filter(|held| held.state() == state) {
                    return Ok(Some(held.clone()));
                }
                Ok(Some(inner.step(id, generation, state)))
            }
        }
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl HostAgentService for Agent {
    type BakeStream = BoxStream<BakeResponse>;
    type WatchStream = BoxStream<WatchResponse>;
    type FollowLogStream = BoxStream<FollowLogResponse>;

    async fn launch(&self, request: Request<LaunchRequest>) -> Result<Response<LaunchResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let spec = request.spec.unwrap();
        let id = spec.microvm_id.clone();
        {
            let mut inner = self.inner.lock().unwrap();
            inner.launches.push((id.clone(), request.generation));
            inner.specs.push(spec);
        }
        let observed =
            self.act(|inner| &mut inner.on_launch, (&id, request.generation), MicrovmState::Running);
        Ok(Response::new(LaunchResponse { observed: observed.await? }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        let request = request.into_inner();
        let place = (request.microvm_id.as_str(), request.generation);
        let observed = self.act(|inner| &mut inner.on_suspend, place, MicrovmState::Suspended);
        Ok(Response::new(SuspendResponse { observed: observed.await? }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let request = request.into_inner();
        self.inner.lock().unwrap().resumes.push(request.clone());
        let id = request.spec.unwrap().microvm_id;
        let observed =
            self.act(|inner| &mut inner.on_resume, (&id, request.generation), MicrovmState::Running);
        Ok(Response::new(ResumeResponse { observed: observed.await? }))
    }

    async fn terminate(
        &self,
        request: Request<TerminateRequest>,
    ) -> Result<Response<TerminateResponse>, Status> {
        let request = request.into_inner();
        let mut inner = self.inner.lock().unwrap();
        inner.terminates.push(request.clone());
        let observed = inner.step(&request.microvm_id, request.generation, MicrovmState::Terminated);
        inner.held.remove(&request.microvm_id);
        Ok(Response::new(TerminateResponse { observed: Some(observed) }))
    }

    async fn follow_log(
        &self,
        request: Request<FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        let request = request.into_inner();
        if !self.inner.lock().unwrap().held.contains_key(&request.microvm_id) {
            return Err(api::errors::status(
                tonic::Code::NotFound,
                api::errors::reason::NOT_HERE,
                "not here",
                &[],
            ));
        }
        let line = api::common::v1::LogLine {
            text: "hello".into(),
            sequence: request.from_sequence,
            ..Default::default()
        };
        let message = FollowLogResponse { lines: vec![line] };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(message)]))))
    }

    async fn bake(&self, _: Request<BakeRequest>) -> Result<Response<Self::BakeStream>, Status> {
        Err(Status::unimplemented("no bakes here"))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("no watches here"))
    }

    async fn evict_image(
        &self,
        _: Request<EvictImageRequest>,
    ) -> Result<Response<EvictImageResponse>, Status> {
        Err(Status::unimplemented("no images here"))
    }
}
