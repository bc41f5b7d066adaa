//! What an image-builder lives among: real etcd, real S3 API, and a scripted
//! scheduler and host that speak the real protocol over mutual TLS.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::image::v1::image_service_client::ImageServiceClient;
use api::image::v1::*;
use image_builder::adapters::catalog::Catalog;
use image_builder::app::App;
use image_builder::config::Config;
use object_store::test_server::TestS3;
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use records::testing::{Etcd, free_port};
use rpc::{Role, TlsIdentity};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::peers::{self, Script};

pub const SNAPSHOTS: &str = "torpor-snapshots";
pub const LOGS: &str = "torpor-logs";
pub const ARTIFACTS: &str = "torpor-artifacts";
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub directory: tempfile::TempDir,
    pub s3: TestS3,
    pub etcd: Etcd,
    pub script: Arc<Mutex<Script>>,
    pub catalog: Catalog,
    scheduler: String,
    stop: CancellationToken,
}

/// A builder in this process.
pub struct Builder {
    pub client: ImageServiceClient<Channel>,
    pub data: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl World {
    pub async fn start() -> Self {
        rpc::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        certificates(directory.path());
        let s3 = TestS3::start().await;
        for bucket in [SNAPSHOTS, LOGS, ARTIFACTS] {
            s3.store().ensure_bucket(bucket).await.unwrap();
        }
        let etcd = Etcd::start().await;
        let stop = CancellationToken::new();
        let script = Arc::new(Mutex::new(Script::default()));
        let scheduler = peers::serve(directory.path(), s3.store(), Arc::clone(&script), stop.clone()).await;
        let catalog = Catalog::new(etcd.store().await);
        Self { directory, s3, etcd, script, catalog, scheduler, stop }
    }

    pub fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    pub fn settings(&self, name: &str) -> Config {
        let mut settings = Config::default();
        let file = |name: String| self.directory.path().join(name);
        settings.listen.set_port(free_port());
        settings.data_dir = file(name.to_owned());
        settings.schedulers = vec![self.scheduler.clone()];
        settings.tls.ca = file("ca.pem".to_owned());
        settings.tls.cert = file("image-builder.pem".to_owned());
        settings.tls.key = file("image-builder.key".to_owned());
        settings.etcd.endpoints = vec![self.etcd.endpoint()];
        let s3 = self.s3.config();
        settings.s3.endpoint = s3.endpoint;
        settings.s3.access_key_id = s3.access_key_id;
        settings.s3.secret_access_key = s3.secret_access_key.map(settings::Secret::new);
        settings.build.sandbox_program = Some(env!("CARGO_BIN_EXE_torpor-image-builder").into());
        settings.build.lease_seconds = 2;
        settings.bake.placement_seconds = 5;
        settings
    }

    pub async fn builder(&self, settings: Config) -> Builder {
        let data = settings.data_dir.clone();
        let registry = Arc::new(Mutex::new(Registry::default()));
        let app = App::build(settings, &registry, clock::Clock::system()).await.unwrap();
        let address = app.address().to_string();
        let stop = CancellationToken::new();
        let task = tokio::spawn(app.run(stop.clone()));
        Builder { client: self.client(&address), data, stop, task }
    }

    pub fn client(&self, address: &str) -> ImageServiceClient<Channel> {
        let identity = identity(self.directory.path(), Role::Admin);
        ImageServiceClient::new(rpc::channel(&identity, address, Role::ImageBuilder).unwrap())
    }

    /// Stores an artifact and returns the request that builds it.
    pub async fn store(&self, name: &str, bytes: Vec<u8>) -> CreateImageRequest {
        let key = format!("{name}.zip");
        self.s3.store().put(ARTIFACTS, &key, bytes.into()).await.unwrap();
        let configuration = ImageConfiguration {
            code_artifact: Some(CodeArtifact { uri: format!("s3://{ARTIFACTS}/{key}") }),
            base_image_arn: "debian-12".to_owned(),
            ..ImageConfiguration::default()
        };
        CreateImageRequest { name: name.to_owned(), configuration: Some(configuration), ..Default::default() }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Builder {
    /// Stops it and checks that nothing of a build is left on the machine.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        assert_clean(&self.data);
    }
}

pub fn assert_clean(data: &Path) {
    for directory in ["work", "networks", "logs"] {
        let left: Vec<_> = std::fs::read_dir(data.join(directory)).unwrap().flatten().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mine = data.to_str().unwrap();
    assert!(!mounts.lines().any(|line| line.contains(mine)), "{mounts}");
}

pub async fn newest(client: &mut ImageServiceClient<Channel>, name: &str) -> ImageBuild {
    let request = ListImageBuildsRequest { image_identifier: name.to_owned(), ..Default::default() };
    client.list_image_builds(request).await.unwrap().into_inner().builds.remove(0)
}

/// Polls a condition up to a deadline.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn identity(directory: &Path, role: Role) -> Arc<TlsIdentity> {
    let file = |name: String| directory.join(name);
    TlsIdentity::load(&file("ca.pem".into()), &file(format!("{role}.pem")), &file(format!("{role}.key")))
        .unwrap()
}

fn certificates(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["test-ca".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for role in Role::ALL {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![role.dns_name()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{role}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{role}.key")), key.serialize_pem()).unwrap();
    }
}
