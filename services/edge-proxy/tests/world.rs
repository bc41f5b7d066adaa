//! A small real fleet around one edge: etcd with a token key, a scheduler and a
//! host that speak their real protocols and do as the test says, and an app.

pub mod app;
pub mod client;
pub mod host;
pub mod raw;
pub mod scheduler;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::common::v1::IdlePolicy;
use api::microvm::v1::{Microvm, MicrovmState, WatchMicrovmsResponse};
use clock::Clock;
use edge_proxy::app::App;
use edge_proxy::config::{Config, Limits};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use records::Expect;
use rpc::Role;
use testkit::Etcd;
use testkit::certificates::{self, identity};
use token::{Claims, Key, KeySet, Kind, PortScope};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const DOMAIN: &str = "microvms.test";
/// Id of the host that everything is placed on.
pub const HOST: &str = "host-1";
pub const WAIT: Duration = Duration::from_secs(10);

/// Everything a test talks to. Dropping it stops everything.
pub struct World {
    /// The address that clients use.
    pub edge: SocketAddr,
    /// The address that they come from.
    pub from: Ipv4Addr,
    /// All addresses that the edge listens on.
    pub edges: Vec<SocketAddr>,
    pub host: host::Host,
    pub scheduler: scheduler::Scheduler,
    pub app: app::AppServer,
    pub keys: KeySet,
    pub store: records::Store,
    pub directory: tempfile::TempDir,
    pub registry: Arc<Mutex<Registry>>,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
    _etcd: Etcd,
}

/// Limits that keep the tests short.
pub fn limits() -> Limits {
    Limits { launch_wait_ms: 3000, connect_ms: 400, ..Limits::default() }
}

impl World {
    pub async fn start(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[("endpoints", &[&format!("*.{DOMAIN}")])]);
        let etcd = Etcd::start().await;
        let store = etcd.store().await;
        let key = Key::generate(1).unwrap();
        let value = serde_json::to_vec(&key).unwrap();
        store.put_if(&format!("keys/{}", key.id), value, Expect::Absent, None).await.unwrap();
        let keys = KeySet::new(vec![key]).unwrap();
        let app = app::AppServer::start().await;
        let host = host::Host::start(&certificates::host(directory.path(), HOST), app.address).await;
        let scheduler = scheduler::Scheduler::start(&identity(directory.path(), Role::Scheduler)).await;
        let file = |name: &str| directory.path().join(name);
        let config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()],
            domain: DOMAIN.into(),
            endpoint_cert: file("endpoints.pem"),
            endpoint_key: file("endpoints.key"),
            schedulers: vec![scheduler.script.address.to_string()],
            tls: certificates::files(directory.path(), "edge-proxy"),
            etcd: etcd.settings(),
            limits,
            ..Config::default()
        };
        let registry = Arc::new(Mutex::new(Registry::default()));
        let app_under_test = App::build(config, Clock::system(), &registry).await.unwrap();
        let (edges, shutdown) = (app_under_test.local_addresses().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(app_under_test.run(shutdown.clone()));
        Self {
            edge: edges[0],
            from: Ipv4Addr::LOCALHOST,
            edges,
            host,
            scheduler,
            app,
            keys,
            store,
            directory,
            registry,
            shutdown,
            serving,
            _etcd: etcd,
        }
    }

    /// A line of the edge's metrics, "connections 1", is there.
    pub fn counts(&self, line: &str) -> bool {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap()).unwrap();
        text.lines().any(|counted| counted.strip_prefix("edge_") == Some(line))
    }

    /// Tells the scheduler of a microVM on the host; returns it for changes.
    pub fn microvm(&self, number: u128, state: MicrovmState) -> WatchMicrovmsResponse {
        let message = microvm(number, state, &self.host.address.to_string());
        self.scheduler.tell(message.clone());
        message
    }

    /// A good token for a microVM's port 8080 and the ports 9000 to 9010.
    pub fn token(&self, number: u128) -> String {
        self.keys.mint(&claims(number)).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.serving.abort();
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn claims(number: u128) -> Claims {
    Claims {
        microvm_id: id(number),
        kind: Kind::Endpoint,
        ports: vec![PortScope::Single(8080), PortScope::Range(9000, 9010)],
        paths: vec![],
        methods: vec![],
        issued_at: now(),
        expires_at: now() + 600,
        revocations: 0,
    }
}

pub fn label(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}

pub fn id(number: u128) -> String {
    format!("microvm-{}", label(number))
}

pub fn host_name(number: u128) -> String {
    format!("{}.{DOMAIN}", label(number))
}

pub fn microvm(number: u128, state: MicrovmState, tunnel_address: &str) -> WatchMicrovmsResponse {
    let idle_policy = IdlePolicy { auto_resume_enabled: true, ..IdlePolicy::default() };
    let microvm = Microvm {
        microvm_id: id(number),
        host_id: HOST.into(),
        endpoint: host_name(number),
        generation: 1,
        idle_policy: Some(idle_policy),
        state: state.into(),
        ..Microvm::default()
    };
    WatchMicrovmsResponse {
        microvm: Some(microvm),
        tunnel_address: tunnel_address.into(),
        ..WatchMicrovmsResponse::default()
    }
}
