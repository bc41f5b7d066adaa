//! The bare engine: libs/vmm driven directly on the image's own snapshot, with a slot of our own. No API, no
//! records, no identity repair, no proxy: the floor under what the fleet can do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::image::v1::SnapshotRef;
use client::Context;
use serde::Deserialize;
use slot::{Egress, Pool, PoolSettings, Slot, Subnet};
use snapshot::FileKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vmm::{Engine, Machine, MachineSpec, NetworkSpec, RestoreSpec};

const SNAPSHOT_BUCKET: &str = "torpor-snapshots";
const SLOTS: u32 = 4;
/// Network of the benchmark's own slots, outside those of the host-agents.
const OUTER_SUBNET: Subnet = Subnet::new(std::net::Ipv4Addr::new(10, 211, 0, 0), 24);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Cycle {
    pub launch: Duration,
    pub suspend: Duration,
    pub wake: Duration,
    pub difference_bytes: u64,
}

/// The part of the guest bundle's manifest that a machine needs.
#[derive(Deserialize)]
struct Bundle {
    kernel: String,
    initramfs: String,
    cmdline: String,
}

/// An engine with one image's snapshot at hand.
pub struct Bare {
    engine: Arc<dyn Engine>,
    pool: Pool,
    bundle_dir: PathBuf,
    bundle: Bundle,
    directory: PathBuf,
    base: BasePaths,
    snapshot: SnapshotRef,
    port: u16,
    path: String,
    request_timeout: Duration,
}

struct BasePaths {
    memory: PathBuf,
    disk: PathBuf,
    device: PathBuf,
}

impl Bare {
    /// Fetches the snapshot onto the first host's file system and makes slots.
    pub async fn new(
        context: &Context,
        data_dir: &Path,
        snapshot: SnapshotRef,
        (port, path): (u16, &str),
        request_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let bundle_dir = data_dir.join("bundle");
        let text = std::fs::read_to_string(bundle_dir.join("manifest.json")).context("the guest bundle")?;
        let bundle: Bundle = serde_json::from_str(&text).context("the guest bundle's manifest")?;
        // The same file system as the fleet's first host, so that disks cost the same.
        let directory = data_dir.join(format!("hosts/h1/loadtest-{}", std::process::id()));
        let base_dir = directory.join("base");
        std::fs::create_dir_all(&base_dir).with_context(|| format!("make {}", base_dir.display()))?;
        let store = object_store::Store::connect(&context.object_store())?;
        let fetched = snapshot::fetch(
            &store,
            SNAPSHOT_BUCKET,
            &snapshot.manifest_key,
            Some(&snapshot.manifest_digest),
            &base_dir,
            &|_, _| (),
        )
        .await
        .context("fetch the image's snapshot")?;
        let file = |kind: FileKind| fetched.paths.get(&kind).cloned().with_context(|| format!("no {kind}"));
        let base = BasePaths {
            memory: file(FileKind::Memory)?,
            disk: file(FileKind::Disk)?,
            device: file(FileKind::Device)?,
        };
        let settings = PoolSettings {
            prefix: "tp-lt".to_owned(),
            outer_subnet: OUTER_SUBNET,
            ready: SLOTS,
            total: 2 * SLOTS,
            forwarding: false,
            ..PoolSettings::default()
        };
        let pool = Pool::start(settings, &[]).await.context("make slots")?;
        let engine = Arc::new(vmm::qemu::Qemu::new(vmm::qemu::QemuSettings::default()).await?);
        Ok(Self {
            engine,
            pool,
            bundle_dir,
            bundle,
            directory,
            base,
            snapshot,
            port,
            path: path.to_owned(),
            request_timeout,
        })
    }

    pub async fn clean_up(&self) -> anyhow::Result<()> {
        self.pool.shutdown(false).await?;
        std::fs::remove_dir_all(&self.directory).context("remove the benchmark's files")
    }

    /// Launch, suspend, wake, stop. The launch was due at `due`.
    pub async fn cycle(&self, due: Instant, pause: Duration) -> anyhow::Result<Cycle> {
        let directory = self.directory.join(uuid::Uuid::new_v4().simple().to_string());
        std::fs::create_dir_all(&directory)?;
        let slot = self.pool.take(Egress::None).await?;
        let cycled = self.measure(&directory, &slot, due, pause).await;
        self.pool.recycle(slot).await?;
        std::fs::remove_dir_all(&directory)?;
        cycled
    }

    async fn measure(
        &self,
        directory: &Path,
        slot: &Slot,
        due: Instant,
        pause: Duration,
    ) -> anyhow::Result<Cycle> {
        let first = self.start(directory, "first", slot, &self.base.disk, &self.base.device, None).await?;
        let answered = self.first_byte(slot).await;
        let launch = due.elapsed();
        tokio::time::sleep(pause).await;

        let (device, memory) = (directory.join("device"), directory.join("memory"));
        let began = Instant::now();
        let saved = async {
            answered?;
            first.pause().await?;
            let saved = first.save_difference(&device, &memory).await?;
            // As the fleet does, before anything names the files.
            tokio::try_join!(synced(&device), synced(&memory))?;
            anyhow::Ok(saved)
        }
        .await;
        first.stop().await?;
        let suspend = began.elapsed();
        let difference_bytes = saved?.bytes;
        tokio::time::sleep(pause).await;

        let began = Instant::now();
        let disk = directory.join("first.disk");
        let second = self.start(directory, "second", slot, &disk, &device, Some(&memory)).await?;
        let answered = self.first_byte(slot).await;
        let wake = began.elapsed();
        second.stop().await?;
        answered?;
        Ok(Cycle { launch, suspend, wake, difference_bytes })
    }

    async fn start(
        &self,
        directory: &Path,
        name: &str,
        slot: &Slot,
        disk: &Path,
        device: &Path,
        difference: Option<&Path>,
    ) -> anyhow::Result<Arc<dyn Machine>> {
        let own_disk = directory.join(format!("{name}.disk"));
        let (from, to) = (disk.to_owned(), own_disk.clone());
        tokio::task::spawn_blocking(move || snapshot::disk::reflink(&from, &to)).await??;
        let spec = MachineSpec {
            name: format!("loadtest-{name}"),
            vcpu_count: self.snapshot.vcpu_count,
            memory_mib: self.snapshot.memory_mib,
            kernel: self.bundle_dir.join(&self.bundle.kernel),
            initramfs: self.bundle_dir.join(&self.bundle.initramfs),
            cmdline: self.bundle.cmdline.clone(),
            disk: own_disk,
            network: Some(NetworkSpec {
                netns: Some(slot.name().to_owned()),
                tap: slot::TAP.to_owned(),
                mac: slot::GUEST_MAC,
            }),
            run_dir: directory.join(format!("{name}.run")),
            run_as: None,
        };
        let from = RestoreSpec {
            base_memory: self.base.memory.clone(),
            device_state: device.to_owned(),
            memory_difference: difference.map(Path::to_owned),
        };
        let machine = self.engine.restore(&spec, &from).await?.machine;
        machine.resume().await?;
        Ok(machine)
    }

    /// Asks the app until the first byte of a 200 is there.
    async fn first_byte(&self, slot: &Slot) -> anyhow::Result<()> {
        let address = SocketAddr::from((slot::GUEST_ADDRESS, self.port));
        let deadline = Instant::now() + self.request_timeout;
        let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", self.path);
        loop {
            let asking = async {
                let mut stream = slot.connect(address, CONNECT_TIMEOUT).await?;
                stream.write_all(request.as_bytes()).await?;
                let mut head = [0; 12];
                stream.read_exact(&mut head).await?;
                std::io::Result::Ok(head)
            };
            let last = match tokio::time::timeout(self.request_timeout, asking).await? {
                Ok(head) if head.ends_with(b" 200") => return Ok(()),
                Ok(head) => format!("the app answered {}", String::from_utf8_lossy(&head)),
                Err(error) => error.to_string(),
            };
            ensure!(Instant::now() < deadline, "no answer from the app: {last}");
            tokio::task::yield_now().await;
        }
    }
}

/// Makes a file durable.
async fn synced(path: &Path) -> std::io::Result<()> {
    tokio::fs::File::open(path).await?.sync_all().await
}
