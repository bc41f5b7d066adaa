//! What a scheduler, a builder and an edge say to an agent, in few words.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::common::v1::{Hook, HookMode, Hooks, IdlePolicy};
use api::host::v1::ObservedMicrovm;
use api::hostagent::v1::host_agent_service_client::HostAgentServiceClient;
use api::hostagent::v1::*;
use api::image::v1::{AppConfiguration, SnapshotRef};
use api::microvm::v1::{Idleness, MicrovmState, SnapshotCopies};
use api::tunnel::v1::{OpenRequest, OpenResponse, OpenStatus};
use prost::Message as _;
use rpc::Role;
use snapshot::{FileKind, FileSource, ManifestHead, SnapshotKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Status;
use tonic::transport::Channel;

use crate::app_disk;
use crate::world::{Agent, BUCKET, PATIENCE, World};

/// Guest memory of the tests, MiB.
pub const MEMORY_MIB: u32 = 256;

pub type Client = HostAgentServiceClient<Channel>;

pub fn client(agent: &Agent, role: Role) -> Client {
    let channel = rpc::channel(&agent.identity(role), &agent.address, Role::HostAgent).unwrap();
    HostAgentServiceClient::new(channel)
}

/// A bake's outcome: the steps it went through, its lines, its result.
pub struct Baked {
    pub steps: Vec<String>,
    pub lines: Vec<String>,
    pub result: Result<BakeResult, Status>,
}

/// Puts the app's disk into S3.
pub async fn store_disk(world: &World) -> DiskRef {
    let path = world.directory.path().join("app.ext4");
    if !path.exists() {
        app_disk::make(&path);
    }
    let size_bytes = std::fs::metadata(&path).unwrap().len();
    let head = ManifestHead {
        kind: SnapshotKind::Disk,
        disk_size_bytes: size_bytes,
        image_name: "app".to_owned(),
        image_version: "1.0".to_owned(),
        created_unix_ms: 1,
        ..ManifestHead::default()
    };
    let source = FileSource { kind: FileKind::Disk, path };
    let published =
        snapshot::upload(&world.s3.store(), BUCKET, "disks/app", &head, &[source], &|_, _| ()).await.unwrap();
    DiskRef { manifest_key: published.manifest_key, manifest_digest: published.manifest_digest, size_bytes }
}

pub fn bake_request(disk: DiskRef, environment: &[(&str, &str)], hooks: Option<Hooks>) -> BakeRequest {
    let build_id = uuid::Uuid::new_v4().to_string();
    BakeRequest {
        destination_prefix: format!("images/{build_id}"),
        build_id,
        generation: 1,
        image_name: "app".to_owned(),
        image_arn: "arn:aws:lambda:us-east-1:000000000000:microvm-image:app".to_owned(),
        image_version: "1.0".to_owned(),
        disk: Some(disk),
        app: Some(AppConfiguration {
            entrypoint: vec!["/bin/app".to_owned()],
            environment: vec!["PATH=/bin".to_owned(), "GREETING=image".to_owned()],
            exposed_ports: vec![app_disk::APP_PORT],
            ..Default::default()
        }),
        environment_variables: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<HashMap<_, _>>(),
        memory_mib: MEMORY_MIB,
        vcpu_count: 1,
        hooks,
        all_capabilities: true,
        settle_timeout: Some(api::duration_proto(Duration::from_secs(20))),
    }
}

/// A bake up to the end of its stream: the result comes first, and the agent ends the stream when it has
/// given back what the bake held.
pub async fn bake(agent: &Agent, request: BakeRequest) -> Baked {
    let (mut steps, mut lines) = (Vec::new(), Vec::new());
    let mut result = Err(Status::unknown("ended without a result"));
    let mut stream = match client(agent, Role::ImageBuilder).bake(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            return Baked { steps, lines, result: Err(status) };
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                if !message.step.is_empty() {
                    steps.push(message.step);
                }
                lines.extend(message.lines.into_iter().map(|line| line.text));
                result = message.result.map_or(result, Ok);
            }
            Ok(None) => {
                return Baked { steps, lines, result };
            }
            Err(status) => {
                return Baked { steps, lines, result: Err(status) };
            }
        }
    }
}

/// Bakes the app and returns its snapshot. A bake takes as long as many a test does: in a run of nextest the first one leaves what
/// S3 holds then to the others.
pub async fn image(world: &World, agent: &Agent, hooks: Option<Hooks>) -> SnapshotRef {
    let shared = shared_image(hooks.as_ref());
    let baked_before = shared.as_ref().and_then(|place| std::fs::read(place.join("snapshot")).ok());
    if let (Some(place), Some(reference)) = (&shared, baked_before) {
        world.s3.load(&place.join("s3"));
        return SnapshotRef::decode(&*reference).unwrap();
    }
    let disk = store_disk(world).await;
    let baked = bake(agent, bake_request(disk, &[], hooks)).await;
    let baked = baked.result.unwrap_or_else(|status| panic!("{status:?} {:?}", baked.lines));
    let snapshot = baked.snapshot.unwrap();
    if let Some(place) = shared {
        world.s3.save(&place.join("s3"));
        // Last: who finds it finds the rest.
        std::fs::write(place.join("snapshot"), snapshot.encode_to_vec()).unwrap();
    }
    snapshot
}

/// Where a run of nextest keeps the app's image with these hooks; those of earlier runs go.
fn shared_image(hooks: Option<&Hooks>) -> Option<PathBuf> {
    let run = std::env::var("NEXTEST_RUN_ID").ok()?;
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent-images");
    for earlier in std::fs::read_dir(&all).into_iter().flatten().flatten() {
        if earlier.file_name() != *run {
            let _ = std::fs::remove_dir_all(earlier.path());
        }
    }
    let hooks = hooks.map(prost::Message::encode_to_vec).unwrap_or_default();
    Some(all.join(run).join(blake3::hash(&hooks).to_hex().as_str()))
}

impl World {
    /// With an agent on a disk of `mib` MiB, which has baked the app.
    pub async fn with_image(mib: u64) -> (Self, Agent, SnapshotRef) {
        let world = Self::start().await;
        let agent = world.agent(mib).await;
        let snapshot = image(&world, &agent, None).await;
        (world, agent, snapshot)
    }
}

pub fn hooks(names: &[&str]) -> Hooks {
    let hook = |name: &str| {
        let mode = if names.contains(&name) { HookMode::Enabled } else { HookMode::Disabled };
        Some(Hook { mode: mode.into(), timeout: Some(prost_types::Duration { seconds: 20, nanos: 0 }) })
    };
    Hooks {
        port: app_disk::HOOK_PORT,
        ready: hook("ready"),
        validate: hook("validate"),
        run: hook("run"),
        resume: hook("resume"),
        suspend: hook("suspend"),
        terminate: hook("terminate"),
    }
}

pub fn spec(snapshot: &SnapshotRef) -> MicrovmSpec {
    MicrovmSpec {
        microvm_id: format!("microvm-{}", uuid::Uuid::new_v4()),
        image_name: "app".to_owned(),
        image_version: "1.0".to_owned(),
        snapshot: Some(snapshot.clone()),
        ingress: Some(Ingress { http: true, shell: true }),
        egress: Some(Egress { reach: Some(egress::Reach::Internet(Internet {})) }),
        ..Default::default()
    }
}

pub fn sleepy(mut spec: MicrovmSpec, idle: Duration) -> MicrovmSpec {
    spec.idle_policy = Some(IdlePolicy {
        max_idle_duration: Some(api::duration_proto(idle)),
        suspended_duration: Some(api::duration_proto(Duration::from_secs(600))),
        auto_resume_enabled: true,
        awake_while: None,
    });
    spec
}

pub async fn launch(agent: &Agent, spec: &MicrovmSpec, generation: u64) -> Result<ObservedMicrovm, Status> {
    let request = LaunchRequest { generation, spec: Some(spec.clone()), lease: 0 };
    let response = client(agent, Role::Scheduler).launch(request).await?;
    Ok(response.into_inner().observed.unwrap())
}

pub async fn suspend(agent: &Agent, id: &str, generation: u64) -> Result<ObservedMicrovm, Status> {
    let request = SuspendRequest { microvm_id: id.to_owned(), generation, ..Default::default() };
    Ok(client(agent, Role::Scheduler).suspend(request).await?.into_inner().observed.unwrap())
}

pub async fn resume(
    agent: &Agent,
    spec: &MicrovmSpec,
    generation: u64,
    snapshot: Option<SnapshotCopies>,
) -> Result<ObservedMicrovm, Status> {
    resume_under(agent, (spec, generation), snapshot, 0).await
}

/// Wakes as if it were sent while the host's record stood under this lease; under 0 it counts in any case.
pub async fn resume_under(
    agent: &Agent,
    (spec, generation): (&MicrovmSpec, u64),
    snapshot: Option<SnapshotCopies>,
    lease: i64,
) -> Result<ObservedMicrovm, Status> {
    let request = ResumeRequest { generation, spec: Some(spec.clone()), snapshot, lease };
    Ok(client(agent, Role::Scheduler).resume(request).await?.into_inner().observed.unwrap())
}

pub async fn terminate(agent: &Agent, id: &str, generation: u64) -> Result<ObservedMicrovm, Status> {
    let request = TerminateRequest {
        microvm_id: id.to_owned(),
        generation,
        reason: "The test is over.".to_owned(),
        ..Default::default()
    };
    Ok(client(agent, Role::Scheduler).terminate(request).await?.into_inner().observed.unwrap())
}

/// Has a sleeping microVM dropped before it is placed elsewhere.
pub async fn give_up(
    agent: &Agent,
    id: &str,
    generation: u64,
    asleep_with: &SnapshotCopies,
) -> Result<ObservedMicrovm, Status> {
    let request = TerminateRequest {
        microvm_id: id.to_owned(),
        generation,
        asleep_with: Some(asleep_with.clone()),
        ..Default::default()
    };
    Ok(client(agent, Role::Scheduler).terminate(request).await?.into_inner().observed.unwrap())
}

/// What the agent observes now, by id.
pub async fn observed(agent: &Agent) -> HashMap<String, ObservedMicrovm> {
    let mut stream = client(agent, Role::Scheduler).watch(WatchRequest {}).await.unwrap().into_inner();
    let mut all = HashMap::new();
    while let Some(message) = stream.message().await.unwrap() {
        if message.synced {
            break;
        }
        let one = message.observed.unwrap();
        all.insert(one.microvm_id.clone(), one);
    }
    all
}

/// Waits until the microVM is as wanted; returns it and how long that took.
pub async fn until(
    agent: &Agent,
    id: &str,
    wanted: impl Fn(&ObservedMicrovm) -> bool,
) -> (ObservedMicrovm, Duration) {
    let began = Instant::now();
    loop {
        let all = observed(agent).await;
        if let Some(one) = all.get(id)
            && wanted(one)
        {
            return (one.clone(), began.elapsed());
        }
        assert!(began.elapsed() < PATIENCE, "{id} never came to be as wanted: {:?}", all.get(id));
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub async fn until_state(agent: &Agent, id: &str, state: MicrovmState) -> (ObservedMicrovm, Duration) {
    until(agent, id, |one| one.state() == state).await
}

/// The log so far, of the app and the platform.
pub async fn log_lines(agent: &Agent, id: &str) -> Vec<String> {
    let request = FollowLogRequest { microvm_id: id.to_owned(), generation: 1, ..Default::default() };
    let mut stream = client(agent, Role::Scheduler).follow_log(request).await.unwrap().into_inner();
    let mut lines = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        lines.extend(message.lines.into_iter().map(|line| line.text));
    }
    lines
}

/// What keeps a microVM awake; `None` when it does not run.
pub async fn idleness(agent: &Agent, id: &str) -> Option<Idleness> {
    let request = GetIdlenessRequest { microvm_id: id.to_owned(), generation: 1 };
    client(agent, Role::Scheduler).get_idleness(request).await.unwrap().into_inner().idleness
}

/// Has a recovery point made.
pub async fn checkpoint(agent: &Agent, id: &str, generation: u64) -> Result<ObservedMicrovm, Status> {
    let request = CheckpointRequest { microvm_id: id.to_owned(), generation };
    let answer = client(agent, Role::Scheduler).checkpoint(rpc::request(request)).await?;
    Ok(answer.into_inner().observed.unwrap())
}

/// Takes a keep-awake lease, or gives it up; says what keeps it awake now, if it runs.
pub async fn keep_awake(
    agent: &Agent,
    id: &str,
    duration: Option<Duration>,
) -> Result<Option<Idleness>, Status> {
    let duration = duration.map(api::duration_proto);
    let request = KeepAwakeRequest { microvm_id: id.to_owned(), generation: 1, duration };
    Ok(client(agent, Role::Scheduler).keep_awake(request).await?.into_inner().idleness)
}

/// Opens a tunnel as an edge does.
pub async fn open(
    agent: &Agent,
    id: &str,
    port: u32,
    wake: bool,
) -> (OpenResponse, tunnel::Channel<tunnel::ClientStream>) {
    let client = tunnel::Client::new(&agent.identity(Role::EdgeProxy));
    let request = OpenRequest { microvm_id: id.to_owned(), generation: 1, port, wake, ..Default::default() };
    client.open((&agent.host_id, &agent.tunnel), &request, PATIENCE).await.unwrap()
}

/// The body of a page of the app, waking it if need be, and the answer to the open.
pub async fn page(agent: &Agent, id: &str, page: &str) -> (String, OpenResponse) {
    let (response, mut stream) = open(agent, id, app_disk::APP_PORT, true).await;
    assert_eq!(response.status(), OpenStatus::Connected, "{response:?}");
    let request = format!("GET /cgi-bin/{page} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // An app that ends itself cuts the connection.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default();
    (body, response)
}

pub async fn get(agent: &Agent, id: &str, name: &str) -> String {
    page(agent, id, name).await.0
}

/// Steps in milliseconds, for the eye.
pub fn steps(observed: &ObservedMicrovm) -> String {
    let transition = observed.last_transition.clone().unwrap_or_default();
    let phases = transition.phases.iter().map(|phase| {
        let duration = api::duration(phase.duration.as_ref().unwrap()).unwrap();
        format!("{}={:.1}", phase.name, duration.as_secs_f64() * 1000.0)
    });
    format!("{}: {}", transition.kind, phases.collect::<Vec<_>>().join(" "))
}
