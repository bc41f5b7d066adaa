//! Launching from an image's snapshot, and waking from the microVM's own. The
//! journal says RUNNING before the gate opens: a session whose answers have left
//! the host must not be forgotten by the next agent.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::ResumeOrder;
use super::core::{Core, Live};
use super::start::{OwnState, Plan, clone_disk};
use super::suspend::LocalManifest;
use crate::adapters::bases::{BaseLease, fetch_failure};
use crate::adapters::files;
use crate::adapters::journal::RemoteCopy;
use crate::domain::Failure;
use crate::domain::fence::must_fetch;
use crate::domain::hooks::{self, HookName};
use crate::domain::phase::Event;
use crate::domain::transition::Stopwatch;
use crate::failpoint;

impl Core {
    /// Starts the microVM for the first time. Called in `Launching`; ends in
    /// RUNNING, or fails with everything given back and the phase unchanged.
    ///
    /// # Errors
    /// Why it could not be started.
    pub async fn launch(&mut self, cancel: &CancellationToken) -> Result<(), Failure> {
        let watch = Stopwatch::start("launch");
        self.journal.restore_count = 1;
        self.save()?;
        failpoint::hit("launch-begun");
        let base = self.base(&watch).await?;
        self.journal.log_start = base.log_start();
        self.log.start_guest_at(base.log_start());
        let payload = &self.spec.run_hook_payload;
        let hook = self
            .spec
            .hooks
            .enabled(HookName::Run)
            .map(|hook| (hook, hooks::run_body(self.id.as_str(), payload)));
        let plan = Plan { device_state: base.device_state(), own: None, hook, base };
        let read = files::occupied_bytes(&plan.device_state);
        let live = self.start(&watch, plan, cancel).await?;
        self.journal.meter.snapshot_bytes_read += read;
        self.run(&watch, live, "launched").await
    }

    /// Wakes the microVM. Called in `Suspended`; ends in RUNNING, or in
    /// SUSPENDED with its snapshot as it was.
    ///
    /// # Errors
    /// Why it sleeps on.
    pub async fn wake(
        &mut self,
        order: Option<Box<ResumeOrder>>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let watch = Stopwatch::start("wake");
        self.enter(Event::WakeBegan, "");
        self.publish_quietly();
        let woken = self.try_wake(&watch, order, cancel).await;
        if let Err(failure) = &woken {
            let reason =
                if matches!(failure, Failure::Interrupted(_)) { String::new() } else { failure.to_string() };
            self.enter(Event::IsSuspended, &reason);
            self.journal.process = None;
            self.journal.slot = None;
            self.save_settled();
            self.publish();
            tracing::warn!(microvm = %self.id, error = %failure, "wake failed; the microVM sleeps on");
        }
        woken
    }

    async fn try_wake(
        &mut self,
        watch: &Stopwatch,
        order: Option<Box<ResumeOrder>>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.journal.restore_count += 1;
        if let Some(order) = order {
            self.obey(watch, *order).await?;
        }
        self.save()?;
        failpoint::hit("wake-begun");
        let base = self.base(watch).await?;
        let snapshot = self.files.snapshot(self.journal.sequence);
        let manifest = LocalManifest::read(&snapshot)
            .ok_or_else(|| Failure::Corrupt { object: snapshot.directory().display().to_string() })?;
        let hook = self.spec.hooks.enabled(HookName::Resume).map(|hook| (hook, String::new()));
        let plan = Plan {
            device_state: snapshot.device_state(),
            own: Some(OwnState { disk: snapshot.disk(), memory_difference: snapshot.memory_difference() }),
            hook,
            base,
        };
        let live = self.start(watch, plan, cancel).await?;
        self.journal.meter.snapshot_bytes_read +=
            manifest.device_state_bytes + manifest.memory_difference_bytes;
        self.run(watch, live, "woken").await
    }

    /// The guest is well: journal, then gate. The write outlives this process at
    /// once and a power cut a moment later: a power cut in between ends the guest
    /// too, and leaves the microVM as it last slept, or as never launched. A
    /// journal that cannot be written fails the start, because a restart would not
    /// know of the session.
    async fn run(&mut self, watch: &Stopwatch, live: Live, what: &str) -> Result<(), Failure> {
        let before = (self.journal.phase, self.journal.reason.clone(), self.journal.phase_since_ms);
        self.enter(Event::IsRunning, "");
        if let Err(failure) = watch.step("journal", async { self.save() }).await {
            (self.journal.phase, self.journal.reason, self.journal.phase_since_ms) = before;
            self.release(live).await;
            return Err(failure);
        }
        failpoint::hit(if what == "launched" { "launch-journaled" } else { "wake-journaled" });
        self.live = Some(live);
        self.finished(watch.finish());
        self.publish();
        self.log.append(what);
        let path = self.files.journal();
        tokio::task::spawn_blocking(move || {
            let directory = path.parent().map(Path::to_owned).unwrap_or_default();
            // A newer journal, or none any more, is just as well.
            let _ = files::sync(&path).and_then(|()| files::sync(&directory));
        });
        Ok(())
    }

    async fn base(&self, watch: &Stopwatch) -> Result<BaseLease, Failure> {
        watch.step("image", self.host.bases.ensure(&self.spec.snapshot)).await
    }

    /// Takes over what a scheduler's wake says: the spec, and the copy in S3
    /// when it is newer than the one here.
    async fn obey(&mut self, watch: &Stopwatch, order: ResumeOrder) -> Result<(), Failure> {
        self.journal.set_spec(&order.spec);
        self.spec = order.spec;
        let Some(copies) = order.snapshot else {
            return Ok(());
        };
        if must_fetch(
            self.journal.sequence,
            copies.sequence,
            copies.remote && !copies.manifest_key.is_empty(),
        ) {
            let remote = RemoteCopy {
                sequence: copies.sequence,
                manifest_key: copies.manifest_key,
                manifest_digest: copies.manifest_digest,
            };
            self.fetch_remote(watch, remote).await?;
        }
        Ok(())
    }

    /// Brings the microVM's snapshot from S3: into a temporary directory first,
    /// so that what is there under its own name is always whole.
    async fn fetch_remote(&mut self, watch: &Stopwatch, remote: RemoteCopy) -> Result<(), Failure> {
        let base = self.base(watch).await?;
        let temporary = self.host.data.tmp().join(format!("{}-{}", self.id, remote.sequence));
        files::remove(&temporary)?;
        files::make_directory(&temporary)?;
        let fetched = watch
            .step(
                "fetch",
                snapshot::fetch(
                    &self.host.store,
                    self.host.bucket(),
                    &remote.manifest_key,
                    Some(remote.manifest_digest.as_str()).filter(|digest| !digest.is_empty()),
                    &temporary,
                    &|_, _| (),
                ),
            )
            .await
            .map_err(|error| fetch_failure(&error, &temporary));
        let result = match fetched {
            Ok(fetched) => self.assemble(&fetched, &base, &remote).await,
            Err(failure) => Err(failure),
        };
        files::discard(&temporary);
        let manifest = result?;
        self.journal.sequence = manifest.sequence;
        self.journal.difference_bytes = manifest.difference_bytes;
        self.journal.meter.snapshot_bytes_read += manifest.difference_bytes;
        self.journal.remote = Some(remote);
        self.remove_other_snapshots();
        Ok(())
    }

    async fn assemble(
        &self,
        fetched: &snapshot::Fetched,
        base: &BaseLease,
        remote: &RemoteCopy,
    ) -> Result<LocalManifest, Failure> {
        let part = |kind: snapshot::FileKind| {
            fetched
                .paths
                .get(&kind)
                .cloned()
                .ok_or_else(|| Failure::Corrupt { object: remote.manifest_key.clone() })
        };
        let device = part(snapshot::FileKind::Device)?;
        let memory = part(snapshot::FileKind::MemoryDifference)?;
        let disk = part(snapshot::FileKind::DiskDifference)?;
        let target = self.files.snapshot(remote.sequence);
        let base_disk = base.disk();
        let (generation, base_digest, sequence) =
            (self.journal.generation, base.digest().to_owned(), remote.sequence);
        let created_ms = fetched.manifest.head.created_unix_ms;
        files::blocking(move || {
            files::remove(target.directory())?;
            files::make_directory(target.directory())?;
            let io = |path: &Path, error: std::io::Error| Failure::io(path, &error);
            std::fs::rename(&device, target.device_state()).map_err(|error| io(&device, error))?;
            std::fs::rename(&memory, target.memory_difference()).map_err(|error| io(&memory, error))?;
            clone_disk(&base_disk, &target.disk())?;
            snapshot::disk::apply(&disk, &target.disk())
                .map_err(|error| fetch_failure(&error, &target.disk()))?;
            let length =
                |path: &Path| std::fs::metadata(path).map(|data| data.len()).map_err(|e| io(path, e));
            let (device_state_bytes, memory_difference_bytes) =
                (length(&target.device_state())?, length(&target.memory_difference())?);
            let manifest = LocalManifest {
                sequence,
                generation,
                base_digest,
                device_state_bytes,
                memory_difference_bytes,
                difference_bytes: memory_difference_bytes + files::occupied_bytes(&disk),
                created_ms,
                journal: None,
            };
            for path in [target.device_state(), target.memory_difference(), target.disk()] {
                files::sync(&path)?;
            }
            manifest.write(&target)?;
            Ok(manifest)
        })
        .await
    }
}
