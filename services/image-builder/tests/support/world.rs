//! What an image-builder lives among: real etcd, real S3 API, and a scripted
//! scheduler and host that speak the real protocol over mutual TLS.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::image::v1::image_service_client::ImageServiceClient;
use api::image::v1::*;
use image_builder::adapters::catalog::Catalog;
use image_builder::app::App;
use image_builder::config::Config;
use prometheus_client::registry::Registry;
use rpc::Role;
use testkit::certificates;
pub use testkit::{Etcd, PATIENCE, TestS3, free_port, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::peers::{Peers, State};

pub const SNAPSHOTS: &str = "torpor-snapshots";
pub const LOGS: &str = "torpor-logs";
pub const ARTIFACTS: &str = "torpor-artifacts";

pub struct World {
    pub directory: tempfile::TempDir,
    pub s3: TestS3,
    pub etcd: Etcd,
    pub script: Arc<Mutex<State>>,
    pub catalog: Catalog,
    peers: Peers,
}

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
        certificates::write(directory.path(), &[]);
        let s3 = TestS3::start().await;
        for bucket in [SNAPSHOTS, LOGS, ARTIFACTS] {
            s3.store().ensure_bucket(bucket).await.unwrap();
        }
        let etcd = Etcd::start().await;
        let script = Arc::default();
        let peers = Peers::start(directory.path(), s3.store(), &script).await;
        let catalog = Catalog::new(etcd.store().await);
        Self { directory, s3, etcd, script, catalog, peers }
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.script.lock().unwrap());
    }

    pub fn settings(&self, name: &str) -> Config {
        let mut settings = Config::default();
        settings.listen.set_port(free_port());
        settings.data_dir = self.directory.path().join(name);
        settings.artifact_bucket = ARTIFACTS.to_owned();
        settings.schedulers = vec![self.peers.scheduler.address.to_string()];
        settings.tls = certificates::files(self.directory.path(), "image-builder");
        settings.etcd.endpoints = vec![self.etcd.endpoint()];
        let s3 = self.s3.config();
        settings.s3.endpoint = s3.endpoint;
        settings.s3.access_key_id = s3.access_key_id;
        settings.s3.secret_access_key = s3.secret_access_key.map(settings::Secret::new);
        settings.build.sandbox_program = Some(env!("CARGO_BIN_EXE_torpor-image-builder").into());
        if let Some(toolbox) = std::env::var_os("TORPOR_TEST_TOOLBOX") {
            settings.build.toolbox = toolbox.into();
        }
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
        let identity = certificates::identity(self.directory.path(), Role::Admin);
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
