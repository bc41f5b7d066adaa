//! A host-agent that does as it is told and remembers what it was asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use api::common::v1::LogLine;
use api::errors;
use api::host::v1::{HostSpec, HostUsage, ObservedMicrovm};
use api::hostagent::v1::*;
use api::microvm::v1::{Idleness, LastTransition, MicrovmState, SnapshotCopies};
use futures::stream::{self, StreamExt as _};
use prost::Message as _;
use records::Lease;
use rpc::{Role, TlsIdentity};
use testkit::Script;
use tonic::{Code, Status};

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
    /// The leases that launches named.
    pub launched_under: Vec<i64>,
    pub specs: Vec<MicrovmSpec>,
    pub resumes: Vec<ResumeRequest>,
    pub terminates: Vec<TerminateRequest>,
    pub suspends: Vec<SuspendRequest>,
    pub kept_awake: Vec<KeepAwakeRequest>,
    /// What it says of every microVM that runs.
    pub idleness: Option<Idleness>,
    pub on_launch: VecDeque<Step>,
    pub on_suspend: VecDeque<Step>,
    pub on_resume: VecDeque<Step>,
    /// Refusals.
    pub on_terminate: VecDeque<Status>,
    /// Why it suspends what it suspends next.
    pub suspend_cause: i32,
    pub remote_copies: bool,
    /// MicroVMs that S3 has something of, and how it answers to their removal.
    pub stored: BTreeMap<String, u64>,
    pub removals: Vec<RemoveSnapshotsRequest>,
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
        let kind = match state {
            MicrovmState::Running if held.snapshot.is_some() => "wake",
            MicrovmState::Running => "launch",
            _ => "suspend",
        };
        if matches!(state, MicrovmState::Running | MicrovmState::Suspended) {
            let cause = if kind == "suspend" { self.suspend_cause } else { 0 };
            held.last_transition = Some(LastTransition { kind: kind.into(), cause, ..Default::default() });
        }
        if state == MicrovmState::Suspended {
            let sequence = held.snapshot.as_ref().map_or(0, |copies| copies.sequence) + 1;
            held.snapshot = Some(SnapshotCopies {
                local: true,
                remote: self.remote_copies,
                sequence,
                generation,
                manifest_key: format!("{id}/{sequence}"),
                ..Default::default()
            });
        }
        held.clone()
    }
}

pub struct FakeHost {
    pub spec: HostSpec,
    pub inner: Arc<Mutex<Inner>>,
    pub lease: Lease,
    _script: Script,
}

impl FakeHost {
    pub async fn start(world: &World, id: &str) -> Self {
        Self::start_with(world, id, 4096).await
    }

    pub async fn start_with(world: &World, id: &str, memory_mib: u64) -> Self {
        let inner = Arc::new(Mutex::new(Inner { remote_copies: true, ..Inner::default() }));
        let script = serve(&world.host_identity(id), &inner).await;
        let spec = HostSpec {
            host_id: id.into(),
            grpc_address: script.address.to_string(),
            tunnel_address: format!("tunnel-{id}"),
            engines: vec!["qemu".into()],
            platform_fingerprint: "same".into(),
            memory_capacity_mib: memory_mib,
            slot_capacity: 64,
            ..Default::default()
        };
        let lease = world.store.lease(Duration::from_secs(10)).await.unwrap();
        let host = Self { spec, inner, lease, _script: script };
        host.announce(world).await;
        host
    }

    pub async fn announce(&self, world: &World) {
        self.announce_under(world, &self.lease).await;
    }

    /// Puts the host's record there, or again under another lease.
    pub async fn announce_under(&self, world: &World, lease: &Lease) {
        let key = format!("hosts/{}", self.spec.host_id);
        let record = HostSpec { lease: lease.id(), ..self.spec.clone() };
        world.store.put_leased(&key, record.encode_to_vec(), lease).await.unwrap();
    }

    /// Puts the host's record there under no lease: it stays until a test removes it.
    pub async fn announce_anew(&self, world: &World) {
        let key = format!("hosts/{}", self.spec.host_id);
        world.store.put_if(&key, self.spec.encode_to_vec(), records::Expect::Any, None).await.unwrap();
    }

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

    /// What it would report of a microVM whose latest snapshot has come to S3.
    pub fn uploads(&self, id: &str) -> ObservedMicrovm {
        let mut inner = self.inner.lock().unwrap();
        let held = inner.held.get_mut(id).unwrap();
        held.observation += 1;
        let copies = held.snapshot.as_mut().unwrap();
        copies.remote = true;
        copies.manifest_key = format!("{id}/{}", copies.sequence);
        held.clone()
    }

    /// What it would report of a microVM in a new state.
    pub fn observes(&self, id: &str, state: MicrovmState) -> ObservedMicrovm {
        let mut inner = self.inner.lock().unwrap();
        let generation = inner.held.get(id).map_or(1, |held| held.generation);
        inner.step(id, generation, state)
    }
}

/// Serves what a host-agent serves the scheduler.
async fn serve(identity: &Arc<TlsIdentity>, inner: &Arc<Mutex<Inner>>) -> Script {
    let script = Script::start(identity, &[Role::Scheduler]).await;
    let host = Arc::clone(inner);
    script.react_later("Launch", move |request: LaunchRequest| {
        let (host, spec) = (Arc::clone(&host), request.spec.unwrap());
        let id = spec.microvm_id.clone();
        let step = {
            let mut inner = host.lock().unwrap();
            inner.launches.push((id.clone(), request.generation));
            inner.launched_under.push(request.lease);
            inner.specs.push(spec);
            inner.on_launch.pop_front()
        };
        async move {
            let observed = Some(act(&host, step, (&id, request.generation), MicrovmState::Running).await?);
            Ok(LaunchResponse { observed })
        }
    });
    let host = Arc::clone(inner);
    script.react_later("Suspend", move |request: SuspendRequest| {
        let host = Arc::clone(&host);
        let step = {
            let mut inner = host.lock().unwrap();
            inner.suspends.push(request.clone());
            inner.suspend_cause = request.cause;
            inner.on_suspend.pop_front()
        };
        async move {
            let place = (request.microvm_id.as_str(), request.generation);
            Ok(SuspendResponse { observed: Some(act(&host, step, place, MicrovmState::Suspended).await?) })
        }
    });
    let host = Arc::clone(inner);
    script.react_later("Resume", move |request: ResumeRequest| {
        let host = Arc::clone(&host);
        let step = {
            let mut inner = host.lock().unwrap();
            inner.resumes.push(request.clone());
            inner.on_resume.pop_front()
        };
        async move {
            let id = request.spec.unwrap().microvm_id;
            let observed = Some(act(&host, step, (&id, request.generation), MicrovmState::Running).await?);
            Ok(ResumeResponse { observed })
        }
    });
    let host = Arc::clone(inner);
    script.react("Checkpoint", move |request: CheckpointRequest| {
        let mut inner = host.lock().unwrap();
        let observed = inner.step(&request.microvm_id, request.generation, MicrovmState::Running);
        let sequence = observed.snapshot.as_ref().map_or(0, |copies| copies.sequence) + 1;
        let held = inner.held.get_mut(&request.microvm_id).unwrap();
        held.snapshot = Some(SnapshotCopies {
            local: true,
            sequence,
            generation: request.generation,
            goes_back: true,
            stood_still: Some(api::duration_proto(Duration::from_millis(7))),
            time: Some(api::timestamp(SystemTime::now())),
            ..Default::default()
        });
        Ok(CheckpointResponse { observed: Some(held.clone()) })
    });
    let host = Arc::clone(inner);
    script.react("GetIdleness", move |_: GetIdlenessRequest| {
        Ok(GetIdlenessResponse { idleness: host.lock().unwrap().idleness.clone() })
    });
    let host = Arc::clone(inner);
    script.react("KeepAwake", move |request: KeepAwakeRequest| {
        let mut inner = host.lock().unwrap();
        inner.kept_awake.push(request);
        Ok(KeepAwakeResponse { idleness: inner.idleness.clone() })
    });
    let host = Arc::clone(inner);
    script.react("Terminate", move |request: TerminateRequest| {
        let mut inner = host.lock().unwrap();
        inner.terminates.push(request.clone());
        if let Some(status) = inner.on_terminate.pop_front() {
            return Err(status);
        }
        let runs = inner.held.get(&request.microvm_id).is_some_and(|it| it.state() == MicrovmState::Running);
        if request.asleep_with.is_some() && runs {
            let reason = errors::reason::STATE_CONFLICT;
            return Err(errors::status(Code::FailedPrecondition, reason, "it is awake", &[]));
        }
        let observed = inner.step(&request.microvm_id, request.generation, MicrovmState::Terminated);
        inner.held.remove(&request.microvm_id);
        Ok(TerminateResponse { observed: Some(observed) })
    });
    serve_snapshots(&script, inner);
    let host = Arc::clone(inner);
    script.stream("FollowLog", move |request: FollowLogRequest| {
        if !host.lock().unwrap().held.contains_key(&request.microvm_id) {
            return Err(errors::status(Code::NotFound, errors::reason::NOT_HERE, "not here", &[]));
        }
        let line = LogLine { text: "hello".into(), sequence: request.from_sequence, ..Default::default() };
        Ok(stream::iter([Ok(FollowLogResponse { lines: vec![line] })]).boxed())
    });
    script
}

/// What S3 has, one microVM to a page.
fn serve_snapshots(script: &Script, inner: &Arc<Mutex<Inner>>) {
    let host = Arc::clone(inner);
    script.react("ListSnapshots", move |request: ListSnapshotsRequest| {
        let inner = host.lock().unwrap();
        let mut ids = inner.stored.keys().filter(|id| **id > request.page_token).cloned();
        let microvm_ids: Vec<String> = ids.by_ref().take(1).collect();
        let next_page_token = ids.next().and_then(|_| microvm_ids.first().cloned()).unwrap_or_default();
        Ok(ListSnapshotsResponse { microvm_ids, next_page_token })
    });
    let host = Arc::clone(inner);
    script.react("RemoveSnapshots", move |request: RemoveSnapshotsRequest| {
        let mut inner = host.lock().unwrap();
        inner.removals.push(request.clone());
        let removed_objects = inner.stored.remove(&request.microvm_id).unwrap_or(0);
        Ok(RemoveSnapshotsResponse { removed_objects })
    });
}

/// Does what the script says, or brings the microVM to the state.
async fn act(
    host: &Mutex<Inner>,
    step: Option<Step>,
    (id, generation): (&str, u64),
    state: MicrovmState,
) -> Result<ObservedMicrovm, Status> {
    match step {
        Some(Step::Refuse(status)) => Err(status),
        Some(Step::Hang) => std::future::pending().await,
        Some(Step::LoseAnswer) => {
            host.lock().unwrap().step(id, generation, state);
            Err(Status::unavailable("the connection broke"))
        }
        None => {
            let mut inner = host.lock().unwrap();
            // Asked again for what is already so: the same observation.
            let held = inner.held.get(id).filter(|held| held.generation == generation);
            if let Some(held) = held.filter(|held| held.state() == state) {
                return Ok(held.clone());
            }
            Ok(inner.step(id, generation, state))
        }
    }
}
