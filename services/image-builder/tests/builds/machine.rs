//! What a test of real builds needs of this machine: a base image made of its
//! programs, artifacts, and the image-builder as a process.

use std::io::{Cursor, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::image::v1::image_service_client::ImageServiceClient;
use api::image::v1::*;
use image_builder::adapters::catalog::{BaseEntry, Change};
use image_builder::adapters::debootstrap::digest;
use image_builder::config::Config;
use tonic::transport::Channel;
use zip::write::SimpleFileOptions;

use crate::world::{PATIENCE, SNAPSHOTS, World, newest, until};

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
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// Starts the real program and waits until it answers.
    pub async fn process(&self, settings: &Config) -> Process {
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

    pub async fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let entries = self.s3.store().list_prefix(bucket, prefix, 10_000).await.unwrap();
        entries.into_iter().map(|entry| entry.key).collect()
    }
}

/// True when a running builder holds nothing of a build.
pub fn is_clean(data: &Path) -> bool {
    ["work", "networks", "logs"]
        .iter()
        .all(|name| std::fs::read_dir(data.join(name)).unwrap().next().is_none())
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
