//! One cell: etcd, certificates, schedulers, hosts, an image.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use api::access::v1::access_key_service_client::AccessKeyServiceClient;
use api::common::v1::{Hook, HookMode, Hooks, Resources};
use api::connector::v1::network_connector_service_client::NetworkConnectorServiceClient;
use api::domain::v1::domain_service_client::DomainServiceClient;
use api::host::v1::host_service_client::HostServiceClient;
use api::image::v1::{
    Image, ImageConfiguration, ImageState, ImageVersion, SnapshotRef, VersionState, VersionStatus,
};
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::{
    GetMicrovmRequest, ListMicrovmsRequest, Microvm, MicrovmState, ResumeMicrovmRequest, RunMicrovmRequest,
    SuspendMicrovmRequest, TerminateMicrovmRequest,
};
use clock::Clock;
use prost::Message as _;
use records::{Expect, Store};
use rpc::{Role, TlsIdentity};
use scheduler::app::App;
use scheduler::config::Config;
use testkit::{Etcd, certificates, free_port, refusal};
pub use testkit::{PATIENCE, eventually};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::host::FakeHost;

pub type Client = MicrovmServiceClient<Channel>;
pub type Connectors = NetworkConnectorServiceClient<Channel>;
pub type Domains = DomainServiceClient<Channel>;
pub type Keys = AccessKeyServiceClient<Channel>;

/// A scheduler, killed when dropped.
pub struct Scheduler {
    running: Running,
    pub address: String,
}

enum Running {
    Process(Child),
    /// In this process, on a runtime of its own.
    Here(Option<Runtime>),
}

impl Scheduler {
    /// SIGKILL, or the end of its tasks where they stand.
    pub fn kill(&mut self) {
        match &mut self.running {
            Running::Process(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Running::Here(runtime) => {
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
            }
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct World {
    pub etcd: Etcd,
    pub store: Store,
    directory: tempfile::TempDir,
    /// What schedulers of this process go by.
    pub clock: Clock,
}

impl World {
    /// etcd with the image "app" version 1.0; no scheduler and no host yet.
    pub async fn new() -> Self {
        let etcd = Etcd::start().await;
        let store = etcd.store().await;
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[]);
        let world = Self { etcd, store, directory, clock: Clock::system() };
        world.image("app", "1.0", VersionStatus::Active, true).await;
        world
    }

    /// The same on a clock that stands still until the test moves it.
    pub async fn on_manual_clock() -> Self {
        Self { clock: Clock::manual(SystemTime::now()), ..Self::new().await }
    }

    /// With one scheduler, here, and one host "h1".
    pub async fn with_host(settings: &[&str]) -> (Self, Scheduler, FakeHost, Client) {
        let world = Self::new().await;
        let scheduler = world.here(settings);
        world.and_host(scheduler).await
    }

    /// The same with a host that is never full, for tests that share a world.
    pub async fn with_roomy_host() -> (Self, Scheduler, FakeHost, Client) {
        let world = Self::new().await;
        let scheduler = world.here(&[]);
        let host = FakeHost::start_with(&world, "h1", 1 << 20).await;
        world.knowing(scheduler, host).await
    }

    /// With one scheduler, a process, and one host "h1".
    pub async fn with_process(settings: &[&str]) -> (Self, Scheduler, FakeHost, Client) {
        let world = Self::new().await;
        let scheduler = world.scheduler(settings);
        world.and_host(scheduler).await
    }

    /// Once the scheduler leads, with a host "h1" that it knows.
    pub async fn and_host(self, scheduler: Scheduler) -> (Self, Scheduler, FakeHost, Client) {
        let host = FakeHost::start(&self, "h1").await;
        self.knowing(scheduler, host).await
    }

    async fn knowing(self, scheduler: Scheduler, host: FakeHost) -> (Self, Scheduler, FakeHost, Client) {
        let client = self.client(&scheduler, Role::Admin);
        self.ready(&client).await;
        self.placeable(&scheduler, 1).await;
        (self, scheduler, host, client)
    }

    pub async fn image(&self, name: &str, version: &str, status: VersionStatus, run_hook: bool) {
        let image = Image { name: name.into(), state: ImageState::Created.into(), ..Default::default() };
        let hook = Hook { mode: HookMode::Enabled.into(), timeout: None };
        let record = ImageVersion {
            image_name: name.into(),
            image_version: version.into(),
            state: VersionState::Successful.into(),
            status: status.into(),
            configuration: Some(ImageConfiguration {
                resources: Some(Resources { minimum_memory_mib: 512 }),
                hooks: Some(Hooks { port: 8080, run: run_hook.then_some(hook), ..Default::default() }),
                ..Default::default()
            }),
            snapshot: Some(SnapshotRef {
                manifest_key: format!("{name}/{version}/manifest"),
                engine: "qemu".into(),
                memory_mib: 2048,
                vcpu_count: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let put = async |key: String, value: Vec<u8>| {
            self.store.put_if(&key, value, Expect::Any, None).await.unwrap();
        };
        put(format!("images/{name}"), image.encode_to_vec()).await;
        put(format!("versions/{name}/{version}"), record.encode_to_vec()).await;
    }

    /// Starts a scheduler process; settings are "key=value" overrides.
    pub fn scheduler(&self, settings: &[&str]) -> Scheduler {
        let address = format!("127.0.0.1:{}", free_port());
        self.scheduler_at(&address, settings)
    }

    /// Starts a scheduler in this process, on the world's clock.
    pub fn here(&self, settings: &[&str]) -> Scheduler {
        let address = format!("127.0.0.1:{}", free_port());
        let set: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let file = self.config(&address);
        let config: Config = settings::load_from("scheduler", Some(&file), std::iter::empty(), &set).unwrap();
        config.check().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (runtime, clock) = (runtime.unwrap(), self.clock.clone());
        runtime.spawn(async move {
            let app = App::bind(config, &Mutex::default(), clock).await.unwrap();
            app.run(CancellationToken::new()).await.unwrap();
        });
        Scheduler { running: Running::Here(Some(runtime)), address }
    }

    /// Starts a scheduler process at an address.
    pub fn scheduler_at(&self, address: &str, settings: &[&str]) -> Scheduler {
        let own = self.config(address);
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(own.with_extension("log")).unwrap();
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_torpor-scheduler")));
        command.arg("--config").arg(own).stdout(Stdio::null()).stderr(log);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let running = Running::Process(command.spawn().unwrap());
        Scheduler { running, address: address.to_owned() }
    }

    /// Writes the settings file of the scheduler at an address.
    fn config(&self, address: &str) -> PathBuf {
        let text = format!(
            "listen = {address:?}\nlease_seconds = 2\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n\
             [etcd]\nendpoints = [{:?}]\nroot = \"/torpor/\"\n",
            self.file("ca.pem"),
            self.file("scheduler.pem"),
            self.file("scheduler.key"),
            self.etcd.endpoint(),
        );
        let file = self.file(&format!("scheduler-{}.toml", address.replace(':', "-")));
        std::fs::write(&file, text).unwrap();
        file
    }

    pub fn client(&self, scheduler: &Scheduler, role: Role) -> Client {
        MicrovmServiceClient::new(self.channel(scheduler, role))
    }

    pub fn hosts(&self, scheduler: &Scheduler, role: Role) -> HostServiceClient<Channel> {
        HostServiceClient::new(self.channel(scheduler, role))
    }

    /// What a host calls, with its own certificate.
    pub fn host(&self, scheduler: &Scheduler, id: &str) -> HostServiceClient<Channel> {
        let identity = self.host_identity(id);
        HostServiceClient::new(rpc::channel(&identity, &scheduler.address, Role::Scheduler).unwrap())
    }

    pub fn host_identity(&self, id: &str) -> Arc<TlsIdentity> {
        certificates::host(self.directory.path(), id)
    }

    pub fn connectors(&self, scheduler: &Scheduler, role: Role) -> Connectors {
        NetworkConnectorServiceClient::new(self.channel(scheduler, role))
    }

    pub fn keys(&self, scheduler: &Scheduler, role: Role) -> Keys {
        AccessKeyServiceClient::new(self.channel(scheduler, role))
    }

    pub fn domains(&self, scheduler: &Scheduler, role: Role) -> Domains {
        DomainServiceClient::new(self.channel(scheduler, role))
    }

    /// What the scheduler at an address wrote to its log.
    pub fn log(&self, scheduler: &Scheduler) -> String {
        let name = format!("scheduler-{}.log", scheduler.address.replace(':', "-"));
        std::fs::read_to_string(self.file(&name)).unwrap()
    }

    /// Takes leadership away without telling the leader.
    pub async fn depose(&self) {
        // Anew: what guards compare is the key's creation.
        self.store.delete_if("elections/scheduler", Expect::Any, None).await.unwrap();
        self.store
            .put_if("elections/scheduler", b"somebody else".to_vec(), Expect::Absent, None)
            .await
            .unwrap();
    }

    pub async fn listed(&self, prefix: &str) -> Vec<String> {
        let entries = self.store.list(prefix).await.unwrap().0;
        entries.into_iter().map(|(key, _)| key).collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn identity(&self, role: Role) -> Arc<TlsIdentity> {
        certificates::identity(self.directory.path(), role)
    }

    fn channel(&self, scheduler: &Scheduler, role: Role) -> Channel {
        rpc::channel(&self.identity(role), &scheduler.address, Role::Scheduler).unwrap()
    }

    /// Waits until the scheduler leads.
    pub async fn ready(&self, client: &Client) {
        eventually("leading", || {
            let mut client = client.clone();
            async move { client.list_microvms(ListMicrovmsRequest::default()).await.ok() }
        })
        .await;
    }

    /// Waits until the scheduler sees that many READY hosts.
    pub async fn placeable(&self, scheduler: &Scheduler, count: usize) {
        let hosts = self.hosts(scheduler, Role::Admin);
        eventually("hosts", || {
            let mut hosts = hosts.clone();
            async move {
                let listed = hosts.list_hosts(api::host::v1::ListHostsRequest::default()).await.ok()?;
                let ready = listed.into_inner().hosts.into_iter();
                let ready = ready.filter(|host| host.state() == api::host::v1::HostState::Ready).count();
                (ready == count).then_some(())
            }
        })
        .await;
    }
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn app() -> RunMicrovmRequest {
    RunMicrovmRequest { image_identifier: "app".into(), ..Default::default() }
}

pub async fn run(client: &Client, request: RunMicrovmRequest) -> Result<Microvm, Status> {
    Ok(client.clone().run_microvm(request).await?.into_inner().microvm.unwrap())
}

pub async fn get(client: &Client, id: &str) -> Result<Microvm, Status> {
    let request = GetMicrovmRequest { microvm_id: id.into(), with_idleness: false };
    Ok(client.clone().get_microvm(request).await?.into_inner().microvm.unwrap())
}

pub async fn suspend(client: &Client, id: &str) -> Result<Microvm, Status> {
    let request = SuspendMicrovmRequest { microvm_id: id.into() };
    Ok(client.clone().suspend_microvm(request).await?.into_inner().microvm.unwrap())
}

pub async fn resume(client: &Client, id: &str) -> Result<Microvm, Status> {
    let request = ResumeMicrovmRequest { microvm_id: id.into() };
    Ok(client.clone().resume_microvm(request).await?.into_inner().microvm.unwrap())
}

pub async fn terminate(client: &Client, id: &str) -> Result<Microvm, Status> {
    let request = TerminateMicrovmRequest { microvm_id: id.into() };
    Ok(client.clone().terminate_microvm(request).await?.into_inner().microvm.unwrap())
}

/// Waits until a microVM has a state; errors (no leader yet) are waited out.
pub async fn becomes(client: &Client, id: &str, state: MicrovmState) -> Microvm {
    eventually(&format!("{id} {state:?}"), || async {
        get(client, id).await.ok().filter(|microvm| microvm.state() == state)
    })
    .await
}

/// Runs a microVM of "app" and waits until it is RUNNING.
pub async fn running(client: &Client) -> Microvm {
    let microvm = run(client, app()).await.unwrap();
    becomes(client, &microvm.microvm_id, MicrovmState::Running).await
}

/// Checks an error's reason, the code that goes with it, and a part of its text.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, reason: &str, text: &str) {
    let status = refusal(answer, reason);
    assert!(status.message().contains(text), "{}", status.message());
}
