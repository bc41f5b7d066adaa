//! One edge with its API, real etcd, and services that follow a script.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::access::v1::{AccessKey, StoredAccessKey};
use api::microvm::v1::{WatchMicrovmsRequest, WatchMicrovmsResponse};
use clock::Clock;
use edge_proxy::app::App;
use edge_proxy::config::{AwsSettings, Config, Throttles};
use futures::stream::BoxStream;
use prost::Message as _;
use records::Expect;
use rpc::Role;
use serde_json::Value;
use testkit::certificates::{self, identity};
use testkit::{Etcd, Script, eventually, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::client::{Answer, Connection, Signer};

pub const ACCOUNT: &str = "000000000000";
pub const REGION: &str = "us-east-1";
pub const WAIT: Duration = Duration::from_secs(10);
/// The key that may do everything.
pub const KEY: (&str, &str) = ("AKIATESTEVERYTHING00", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");

/// Everything a test talks to. Dropping it stops everything.
pub struct World {
    pub api: SocketAddr,
    pub scheduler: Script,
    pub image_builder: Script,
    pub store: records::Store,
    pub directory: tempfile::TempDir,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    _etcd: Etcd,
}

/// A scheduler that endpoints learn nothing from; they are not under test here.
pub fn without_routes(scheduler: &Script) {
    scheduler.stream("WatchMicrovms", |_: WatchMicrovmsRequest| {
        Err::<BoxStream<'static, Result<WatchMicrovmsResponse, Status>>, _>(Status::unavailable("no routes"))
    });
}

/// No limit on any operation.
pub fn unlimited() -> Throttles {
    Throttles {
        run_microvm: 0,
        resume_microvm: 0,
        suspend_microvm: 0,
        terminate_microvm: 0,
        get_microvm: 0,
        create_microvm_auth_token: 0,
        create_microvm_shell_auth_token: 0,
        changes: 0,
        other: 0,
    }
}

pub fn stored_key((id, secret): (&str, &str), change: impl FnOnce(&mut AccessKey)) -> Vec<u8> {
    let mut key =
        AccessKey { access_key_id: id.to_owned(), account_id: ACCOUNT.to_owned(), ..AccessKey::default() };
    change(&mut key);
    let secret_access_key = secret.to_owned();
    StoredAccessKey { access_key: Some(key), secret_access_key }.encode_to_vec()
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// With other settings. Throttles are off unless the change sets them.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::at(Clock::system(), change).await
    }

    /// With other settings and another clock.
    pub async fn at(clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        certificates::write(
            directory.path(),
            &[("endpoints", &["*.microvms.test"]), ("api", &["localhost", "127.0.0.1"])],
        );
        let etcd = Etcd::start().await;
        let store = etcd.store().await;
        let key = format!("access-keys/{}", KEY.0);
        store.put_if(&key, stored_key(KEY, |_| ()), Expect::Absent, None).await.unwrap();
        let scheduler = Script::start(&identity(directory.path(), Role::Scheduler), &[Role::EdgeProxy]).await;
        without_routes(&scheduler);
        let image_builder =
            Script::start(&identity(directory.path(), Role::ImageBuilder), &[Role::EdgeProxy]).await;
        let mut config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            domain: "microvms.test".into(),
            endpoint_cert: file("endpoints.pem"),
            endpoint_key: file("endpoints.key"),
            schedulers: vec![scheduler.address.to_string()],
            image_builders: vec![image_builder.address.to_string()],
            region: REGION.into(),
            account: ACCOUNT.into(),
            aws: AwsSettings {
                listen: vec!["127.0.0.1:0".parse().unwrap()],
                cert: file("api.pem"),
                key: file("api.key"),
                audit_file: Some(file("audit.jsonl")),
                throttles: unlimited(),
                ..AwsSettings::default()
            },
            tls: certificates::files(directory.path(), "edge-proxy"),
            etcd: etcd.settings(),
            ..Config::default()
        };
        change(&mut config);
        let registry = Arc::new(Mutex::new(prometheus_client::registry::Registry::default()));
        let app = App::build(config, clock, &registry).await.unwrap();
        let (api, shutdown) = (app.api_addresses().unwrap().unwrap()[0], CancellationToken::new());
        let serving = tokio::spawn(app.run(shutdown.clone()));
        Self { api, scheduler, image_builder, store, directory, shutdown, serving, _etcd: etcd }
    }

    /// Writes another key, and waits until the edge knows it: a request that it signs is then refused for what it asks for.
    pub async fn add_key(&self, (id, secret): (&str, &str), change: impl FnOnce(&mut AccessKey)) {
        let value = stored_key((id, secret), change);
        self.store.put_if(&format!("access-keys/{id}"), value, Expect::Absent, None).await.unwrap();
        until(&format!("{id} is known"), || async {
            let request = Signer::new(id, secret).request("POST", "/2025-09-09/microvms/any", "");
            self.connection().send(request).await.class() != "UnrecognizedClientException"
        })
        .await;
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn connection(&self) -> Connection {
        Connection::new(self.api, self.directory.path(), false)
    }

    pub fn http2(&self) -> Connection {
        Connection::new(self.api, self.directory.path(), true)
    }

    /// Asks with the key that may do everything.
    pub async fn ask(&self, method: &str, target: &str, body: &str) -> Answer {
        let request = signer().request(method, target, body.to_owned());
        self.connection().send(request).await
    }

    /// The audit records so far, once there are `count`.
    pub async fn audited(&self, count: usize) -> Vec<Value> {
        eventually("the audit records are there", || async {
            let text = std::fs::read_to_string(self.file("audit.jsonl")).unwrap();
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
            (lines.len() >= count).then_some(lines)
        })
        .await
    }

    /// Stops the edge and waits for its end.
    pub async fn stop(mut self) -> tempfile::TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(WAIT, &mut self.serving).await.unwrap().unwrap();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.serving.abort();
    }
}

/// Signs with the key that may do everything.
pub fn signer() -> Signer {
    Signer::new(KEY.0, KEY.1)
}

/// ARN of an image of the account.
pub fn image(name: &str) -> String {
    format!("arn:aws:lambda:{REGION}:{ACCOUNT}:microvm-image:{name}")
}

/// ARN of a connector that every account has.
pub fn managed_connector(name: &str) -> String {
    format!("arn:aws:lambda:{REGION}:aws:network-connector:aws-network-connector:{name}")
}
