//! One bake from disk to published snapshot, step by step. Whatever ends it
//! early, [`BakeJob::clean`] gives everything back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::{BakeRequest, BakeResponse, BakeResult};
use api::image::v1::SnapshotRef;
use guest_link::Event;
use snapshot::{FileKind, FileSource, ManifestHead, SnapshotKind};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::app;
use super::{MARKER, Progress, memory, validate};
use crate::adapters::files;
use crate::adapters::image_snapshots::{LOG_LABEL, Origin, fetch_error, file_name};
use crate::domain::HostError;
use crate::domain::app_end::AppEnd;
use crate::domain::transition::Cause;
use crate::failpoint;
use crate::host::Host;
use crate::microvm::{self, GuestConnection, connect_guest, engine_error, exit_sentence, link_error};
use crate::resources::{EngineHeld, Resources, SlotHeld};
use crate::stopwatch::Stopwatch;

/// What a bake holds while it runs.
pub struct BakeJob {
    pub host: Arc<Host>,
    pub request: BakeRequest,
    pub progress: Progress,
    pub directory: PathBuf,
    /// Its directory and its memory from beginning to end, an engine and a slot while it boots or validates.
    pub resources: Resources,
    pump: Option<AbortHandle>,
    published: Option<String>,
    /// What the image's owner should know though the bake succeeds.
    warnings: Vec<String>,
    watch: Stopwatch,
}

/// Bakes, reporting to `progress`; ends early when the caller hangs up or `cancel` fires.
pub async fn bake(
    host: &Arc<Host>,
    request: BakeRequest,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), HostError> {
    // Its memory becomes a file, of what the guest touches.
    let memory_bytes = u64::from(host.baseline_mib(request.memory_mib)) << 20;
    host.check_room(request.memory_mib, memory_bytes).await?;
    let mut resources = Resources::new(&host.pool);
    resources.memory = Some(host.reserve_memory(request.memory_mib).await?);
    let directory = host.data.bakes().join(format!("{}-{}", request.build_id, request.generation));
    files::remove(&directory)?;
    resources.paths.push(directory.clone());
    files::make_directory(&directory)?;
    let mut job = BakeJob {
        host: Arc::clone(host),
        request,
        progress: progress.clone(),
        directory,
        resources,
        pump: None,
        published: None,
        warnings: Vec::new(),
        watch: Stopwatch::start("bake", Cause::requested()),
    };
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(HostError::Interrupted("a newer attempt replaced this bake".to_owned())),
        () = progress.sender.closed() => Err(HostError::Interrupted("the caller hung up".to_owned())),
        outcome = job.work() => outcome,
    };
    let told = match &outcome {
        Ok(result) => {
            // From here on the caller owns the snapshot: a restart must not remove it.
            files::discard(&job.directory.join(MARKER));
            failpoint::hit("bake-published");
            let response = BakeResponse { result: Some(result.clone()), ..Default::default() };
            progress.sender.send(Ok(response)).await.is_ok()
        }
        Err(_) => false,
    };
    job.clean(told).await;
    outcome.map(|_| ())
}

impl BakeJob {
    async fn work(&mut self) -> Result<BakeResult, HostError> {
        self.fetch_disk().await?;
        failpoint::hit("bake-fetched");
        let log_next = self.boot_and_snapshot().await?;
        failpoint::hit("bake-snapshotted");
        let (memory_bytes, disk_difference_bytes) = self.measure().await?;
        validate::validate(self).await?;
        let published = self.upload(log_next).await?;
        let result = BakeResult {
            snapshot: Some(SnapshotRef {
                manifest_key: published.manifest_key.clone(),
                manifest_digest: published.manifest_digest.clone(),
                engine: self.host.engine_description.name.clone(),
                guest_bundle_version: self.host.template.bundle.version.clone(),
                memory_mib: self.request.memory_mib,
                vcpu_count: self.request.vcpu_count,
                disk_size_bytes: std::fs::metadata(self.file(FileKind::Disk)).map_or(0, |data| data.len()),
            }),
            memory_bytes,
            disk_difference_bytes,
            stored_bytes: published.stored_bytes,
            phases: Vec::new(),
            warnings: self.warnings.clone(),
        };
        self.keep(&published, log_next).await?;
        let transition = self.watch.finish();
        self.host.metrics.transition("bake", self.watch.elapsed().as_secs_f64());
        Ok(BakeResult { phases: microvm::phases(&transition), ..result })
    }

    /// Path of a file of the snapshot in the making.
    pub fn file(&self, kind: FileKind) -> PathBuf {
        self.directory.join(file_name(kind))
    }

    fn original_disk(&self) -> PathBuf {
        self.directory.join("disk.original")
    }

    /// The root disk, and a copy of it that shares its blocks, to tell later what the boot has written.
    async fn fetch_disk(&self) -> Result<(), HostError> {
        self.progress.step("fetch").await;
        let disk = self.request.disk.clone().unwrap_or_default();
        let into = self.directory.join("fetched");
        files::make_directory(&into)?;
        let digest = Some(disk.manifest_digest.as_str()).filter(|digest| !digest.is_empty());
        let (store, bucket) = (&self.host.store, self.host.bucket());
        let fetch = snapshot::fetch(store, bucket, &disk.manifest_key, digest, &into, &|_, _| ());
        let fetched = self.watch.phase("fetch", fetch).await.map_err(|error| fetch_error(&error, &into))?;
        let from = fetched
            .paths
            .get(&FileKind::Disk)
            .cloned()
            .ok_or_else(|| HostError::Corrupt { object: disk.manifest_key.clone() })?;
        let (original, work) = (self.original_disk(), self.file(FileKind::Disk));
        files::blocking(move || {
            std::fs::rename(&from, &original).map_err(|error| HostError::io(&original, &error))?;
            snapshot::disk::reflink(&original, &work).map_err(|error| fetch_error(&error, &work))?;
            files::remove(&into)
        })
        .await
    }

    /// Boots, starts the app, waits for it, freezes it. Returns the guest's next log line.
    async fn boot_and_snapshot(&mut self) -> Result<u64, HostError> {
        self.progress.step("boot").await;
        let slot = self.watch.phase("slot", self.host.take_slot(slot::Egress::Internet)).await?;
        let dialer = slot.dialer();
        let spec = self.machine_spec(slot.name(), self.file(FileKind::Disk), "run");
        self.resources.slot = SlotHeld::Taken(slot);
        let memory_file = self.file(FileKind::Memory);
        let boot = self.host.engine.boot(&spec, &memory_file);
        let machine = self.watch.phase("engine", boot).await.map_err(|error| engine_error(&error))?;
        self.resources.engine = EngineHeld::Machine(Arc::clone(&machine));
        failpoint::hit("bake-booted");
        let timeout = Duration::from_millis(self.host.config.timeouts.guest_boot_ms);
        let mut connection = None;
        let boot = alive(&machine, self.watch.phase("boot", connect_guest(&dialer, timeout))).await?;
        let (ended_out, mut ended) = watch::channel(None);
        let (next_out, next) = watch::channel(0);
        let GuestConnection { link, events } = boot;
        connection.replace(link.clone());
        self.pump =
            Some(tokio::spawn(pump(events, self.progress.clone(), ended_out, next_out)).abort_handle());
        link.stream_logs(0).await.map_err(|error| link_error(&error))?;
        self.progress.step("ready").await;
        let region = self.host.config.region.clone();
        let start = app::start(&link, &self.request, &region);
        alive(&machine, self.watch.phase("start", start)).await?;
        let ready = app::await_ready(&link, &self.request, &self.progress, &mut ended);
        self.warnings.extend(alive(&machine, self.watch.phase("ready", ready)).await?);
        failpoint::hit("bake-ready");

        self.progress.step("snapshot").await;
        alive(&machine, async { link.prepare_snapshot(true).await.map_err(|error| link_error(&error)) })
            .await?;
        if ended.borrow().is_some() {
            return Err(app::exited(&mut ended, self.request.memory_mib).await);
        }
        let device_state = self.file(FileKind::Device);
        let freeze = async {
            machine.pause().await?;
            machine.save_device_state(&device_state).await
        };
        self.watch.phase("freeze", freeze).await.map_err(|error| engine_error(&error))?;
        let log_next = *next.borrow();
        self.down().await;
        Ok(log_next)
    }

    /// What the engine is told about a machine of this bake.
    pub fn machine_spec(&self, netns: &str, disk: PathBuf, run_dir: &str) -> vmm::MachineSpec {
        let size = (self.request.vcpu_count, self.request.memory_mib);
        let name = format!("bake-{}", self.request.build_id);
        self.host.template.machine(&name, size, netns, disk, self.directory.join(run_dir))
    }

    /// Ends the engine, then gives the slot back.
    pub async fn down(&mut self) {
        if let Some(pump) = self.pump.take() {
            pump.abort();
        }
        self.resources.stop_engine().await;
    }

    /// Sizes for the report; also makes the files sparse and durable.
    async fn measure(&self) -> Result<(u64, u64), HostError> {
        let memory = self.file(FileKind::Memory);
        let (disk, original) = (self.file(FileKind::Disk), self.original_disk());
        let difference = self.directory.join("disk.diff");
        let work = files::blocking(move || {
            let memory_bytes = memory::punch_zero_pages(&memory)?;
            files::sync(&memory)?;
            files::sync(&disk)?;
            let stats = snapshot::disk::difference(&disk, &original, &difference)
                .map_err(|error| fetch_error(&error, &difference))?;
            files::remove(&difference)?;
            files::remove(&original)?;
            Ok((memory_bytes, stats.data_bytes))
        });
        self.watch.phase("measure", work).await
    }

    async fn upload(&mut self, log_next: u64) -> Result<snapshot::Published, HostError> {
        self.progress.step("upload").await;
        let prefix = self.request.destination_prefix.trim_end_matches('/').to_owned();
        files::replace(&self.directory.join(MARKER), prefix.as_bytes(), true)?;
        let head = ManifestHead {
            kind: SnapshotKind::Image,
            engine: self.host.engine_description.name.clone(),
            platform_fingerprint: self.host.engine_description.platform_fingerprint.clone(),
            guest_bundle_version: self.host.template.bundle.version.clone(),
            memory_mib: self.request.memory_mib,
            vcpu_count: self.request.vcpu_count,
            disk_size_bytes: std::fs::metadata(self.file(FileKind::Disk)).map_or(0, |data| data.len()),
            image_name: self.request.image_name.clone(),
            image_version: self.request.image_version.clone(),
            generation: Some(self.request.generation),
            created_unix_ms: self.host.now_ms(),
            labels: [(LOG_LABEL.to_owned(), log_next.to_string())].into(),
            ..ManifestHead::default()
        };
        let sources = [FileKind::Memory, FileKind::Disk, FileKind::Device]
            .map(|kind| FileSource { kind, path: self.file(kind) });
        self.published = Some(snapshot::manifest_key(&prefix));
        failpoint::hit("bake-upload-begun");
        let (store, bucket) = (&self.host.store, self.host.bucket());
        let upload = snapshot::upload(store, bucket, &prefix, &head, &sources, &|_, _| ());
        let published = self.watch.phase("upload", upload).await;
        published.map_err(|error| match error {
            snapshot::Error::Store(_) => HostError::StoreUnavailable(HostError::chain(&error).0),
            _ => fetch_error(&error, &self.directory),
        })
    }

    /// The host keeps what it has made: the first launch is likely to come here.
    async fn keep(&self, published: &snapshot::Published, log_next: u64) -> Result<(), HostError> {
        let kept = self.directory.join("base");
        files::make_directory(&kept)?;
        for kind in [FileKind::Memory, FileKind::Disk, FileKind::Device] {
            let to = kept.join(file_name(kind));
            std::fs::rename(self.file(kind), &to).map_err(|error| HostError::io(&to, &error))?;
        }
        let origin = Origin {
            manifest_key: published.manifest_key.clone(),
            guest_bundle_version: self.host.template.bundle.version.clone(),
            log_start: log_next,
        };
        self.host.image_snapshots.adopt(&kept, &published.manifest_digest, origin).await.map(drop)
    }

    /// Gives everything back. Unless the caller was told of the snapshot, what was stored of it goes too.
    async fn clean(mut self, told: bool) {
        self.down().await;
        if !told && let Some(key) = &self.published {
            let _ = self.host.image_snapshots.evict(key);
            if let Err(error) = snapshot::delete(&self.host.store, self.host.bucket(), key).await {
                tracing::warn!(key, %error, "chunks of a failed bake stay in S3 for now");
            }
        }
        self.resources.release().await;
    }
}

/// Runs `work` as long as the machine lives and has room for what it writes.
pub async fn alive<T>(
    machine: &Arc<dyn vmm::Machine>,
    work: impl Future<Output = Result<T, HostError>>,
) -> Result<T, HostError> {
    tokio::select! {
        biased;
        result = work => result,
        reason = machine.exited() => Err(HostError::Guest {
            message: exit_sentence(&reason),
            outcome: "guest_ended",
            exit_code: None,
        }),
        // Another host may have room.
        () = machine.out_of_space() => {
            Err(HostError::Capacity("the host's disk became full while the guest booted".to_owned()))
        }
    }
}

/// Passes the guest's lines on and notes how the app ended.
async fn pump(
    mut events: mpsc::Receiver<Event>,
    progress: Progress,
    ended: watch::Sender<Option<AppEnd>>,
    next: watch::Sender<u64>,
) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Logs { lines, dropped } => {
                if dropped > 0 {
                    progress.say(format!("{dropped} lines were dropped: too much output")).await;
                }
                if let Some(last) = lines.last() {
                    next.send_replace(last.sequence + 1);
                }
                progress.lines(lines).await;
            }
            Event::AppExited(exit) => {
                ended.send_replace(Some(exit.into()));
            }
            // A bake is not put to sleep.
            Event::KeepAwake(_) => {}
            Event::Closed { .. } => return,
        }
    }
}
