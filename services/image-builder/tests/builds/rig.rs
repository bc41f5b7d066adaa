//! One fleet's surroundings for an image-builder: real etcd, real S3 API, real
//! buildah, and a scripted scheduler and host that speak the real protocol over
//! mutual TLS.

use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::image::v1::image_service_client::ImageServiceClient;
use api::image::v1::*;
use image_builder::adapters::base::digest;
use image_builder::adapters::catalog::{BaseEntry, Catalog, Change};
use image_builder::app::App;
use image_builder::config::Settings;
use object_store::test_server::TestS3;
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use records::testing::{Etcd, free_port};
use rpc::{Role, TlsIdentity};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use zip::write::SimpleFileOptions;

use crate::fleet::{self, Script};

pub const SNAPSHOTS: &str = "torpor-snapshots";
pub const LOGS: &str = "torpor-logs";
pub const ARTIFACTS: &str = "torpor-artifacts";
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Rig {
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

/// A builder in a process of its own.
pub struct Process {
    pub client: ImageServiceClient<Channel>,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rig {
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
        let scheduler = fleet::serve(directory.path(), s3.store(), Arc::clone(&script), stop.clone()).await;
        let catalog = Catalog::new(etcd.store().await);
        Self { directory, s3, etcd, script, catalog, scheduler, stop }
    }

    pub fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    pub fn settings(&self, name: &str) -> Settings {
        let mut settings = Settings::default();
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

    pub async fn builder(&self, settings: Settings) -> Builder {
        let data = settings.data_dir.clone();
        let registry = Arc::new(Mutex::new(Registry::default()));
        let app = App::build(settings, &registry).await.unwrap();
        let address = app.address().to_string();
        let stop = CancellationToken::new();
        let task = tokio::spawn(app.run(stop.clone()));
        Builder { client: self.client(&address), data, stop, task }
    }

    /// Starts the real program and waits until it answers.
    pub async fn process(&self, settings: &Settings) -> Process {
        // Secrets do not serialize, on purpose; tests write them in.
        let hidden = toml::to_string(settings).unwrap();
        let secret = settings.s3.secret_access_key.as_ref().unwrap().expose();
        let config = settings.data_dir.with_extension("toml");
        std::fs::write(&config, hidden.replace("<hidden>", secret)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_torpor-image-builder"))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let client = self.client(&settings.listen.to_string());
        let process = Process { client, child };
        until("the builder answers", || {
            let mut client = process.client.clone();
            async move { client.list_images(ListImagesRequest::default()).await.is_ok() }
        })
        .await;
        process
    }

    fn client(&self, address: &str) -> ImageServiceClient<Channel> {
        let identity = identity(self.directory.path(), Role::Admin);
        ImageServiceClient::new(rpc::channel(&identity, address, Role::ImageBuilder).unwrap())
    }

    /// A base image of a shell and a few programs of this machine, which takes no
    /// network and next to no time.
    pub async fn tiny_base(&self) {
        let tree = self.directory.path().join("base");
        let script = r#"
            mkdir -p "$1/usr/bin" "$1/tmp" "$1/etc"
            ln -s usr/bin "$1/bin"
            for program in dash cat ls sleep echo env id head true false touch mkdir wc dd timeout; do
                path=$(command -v $program -p || command -v $program)
                case $path in /*) ;; *) path=/usr/bin/$program ;; esac
                cp -L "$path" "$1/usr/bin/$program"
                ldd "$path" | grep -o '/[^ ]*' | while read library; do
                    mkdir -p "$1$(dirname $library)"
                    cp -L "$library" "$1$library"
                done
            done
            cp -L /usr/bin/bash "$1/usr/bin/bash"
            ldd /usr/bin/bash | grep -o '/[^ ]*' | while read library; do
                mkdir -p "$1$(dirname $library)"; cp -L "$library" "$1$library"
            done
            ln -s dash "$1/usr/bin/sh"
            echo root:x:0:0:root:/:/bin/sh > "$1/etc/passwd"
            tar -C "$1" -cf "$2" .
        "#;
        let tar = self.directory.path().join("base.tar");
        let made = Command::new("sh").args(["-euc", script, "sh"]).arg(&tree).arg(&tar).status().unwrap();
        assert!(made.success());
        let packed = self.directory.path().join("base.tar.zst");
        let bytes = zstd::encode_all(std::fs::File::open(&tar).unwrap(), 1).unwrap();
        std::fs::write(&packed, bytes).unwrap();
        let key = "bases/debian-12/1-test.tar.zst".to_owned();
        self.s3.store().put_file(SNAPSHOTS, &key, &packed, &|_, _| {}).await.unwrap();
        let base = BaseImage { name: "debian-12".into(), version: "1".into(), ..BaseImage::default() };
        let entry = BaseEntry { base: Some(base), key, digest: digest(&packed).unwrap() };
        self.catalog.apply(Change::new().new_base(&entry)).await.unwrap();
    }

    /// Stores an artifact and returns the request that builds it.
    pub async fn order(&self, name: &str, files: &[(&str, &str)]) -> CreateImageRequest {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (path, text) in files {
            writer.start_file(*path, SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        let bytes = writer.finish().unwrap().into_inner();
        self.store(name, bytes).await
    }

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

    /// Keys in a bucket.
    pub async fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let entries = self.s3.store().list_prefix(bucket, prefix, 10_000).await.unwrap();
        entries.into_iter().map(|entry| entry.key).collect()
    }
}

impl Drop for Rig {
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

/// True when a running builder holds nothing of a build.
pub fn is_clean(data: &Path) -> bool {
    ["work", "networks", "logs"]
        .iter()
        .all(|name| std::fs::read_dir(data.join(name)).unwrap().next().is_none())
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

/// Creates an image and waits for its build's end.
pub async fn build(client: &mut ImageServiceClient<Channel>, order: CreateImageRequest) -> ImageBuild {
    let name = order.name.clone();
    client.create_image(order).await.unwrap();
    ended(client, &name).await
}

/// Waits for the end of an image's newest build.
pub async fn ended(client: &mut ImageServiceClient<Channel>, name: &str) -> ImageBuild {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = newest(client, name).await;
        if matches!(found.state(), BuildState::Successful | BuildState::Failed) {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn newest(client: &mut ImageServiceClient<Channel>, name: &str) -> ImageBuild {
    let request = ListImageBuildsRequest { image_identifier: name.to_owned(), ..Default::default() };
    client.list_image_builds(request).await.unwrap().into_inner().builds.remove(0)
}

/// The whole log, and how often the build's state or step was reported.
pub async fn log(
    client: &mut ImageServiceClient<Channel>,
    build: &str,
    follow: bool,
) -> (Vec<String>, Vec<ImageBuild>) {
    let request = FollowBuildLogRequest { build_id: build.to_owned(), from_sequence: 0, follow };
    let mut stream = client.follow_build_log(request).await.unwrap().into_inner();
    let (mut lines, mut builds) = (Vec::new(), Vec::new());
    while let Some(message) = stream.message().await.unwrap() {
        for line in message.lines {
            assert_eq!(line.sequence, lines.len() as u64, "a gap in the log");
            lines.push(line.text);
        }
        builds.extend(message.build);
    }
    (lines, builds)
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
