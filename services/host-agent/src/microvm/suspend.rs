//! Putting a running microVM to sleep.
//!
//! ```text
//! hook -> gate shut -> pause -> device state + memory difference | disk -> manifest (last) -> engine ends -> SUSPENDED
//! ```
//!
//! Until the manifest is there the session lives in the paused engine, and any
//! failure lets it run on. Once it is there the session is the snapshot, and the
//! engine never runs again.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::core::{Core, Live};
use super::gate::Gate;
use super::guest::call_hook;
use super::start::engine_failure;
use crate::adapters::files::{self, SnapshotFiles};
use crate::adapters::journal::Journal;
use crate::domain::hooks::HookName;
use crate::domain::phase::Event;
use crate::domain::transition::Stopwatch;
use crate::domain::{Failure, Phase};
use crate::failpoint;
use crate::host::now_ms;

/// `manifest.json` of a snapshot on the host.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalManifest {
    /// Its sequence.
    pub sequence: u64,
    /// Generation that made it.
    pub generation: u64,
    /// Digest of the image snapshot it differs from.
    pub base_digest: String,
    /// Length of the device state in bytes.
    pub device_state_bytes: u64,
    /// Length of the memory difference in bytes.
    pub memory_difference_bytes: u64,
    /// Size of the memory difference, and of the disk's where it is known, in bytes.
    pub difference_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The journal as of this sleep; `None` where the snapshot came from S3.
    #[serde(default)]
    pub journal: Option<Journal>,
}

impl LocalManifest {
    /// Reads a snapshot's manifest; `None` when there is none or the files do
    /// not have the lengths it says.
    #[must_use]
    pub fn read(files: &SnapshotFiles) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(&std::fs::read(files.manifest()).ok()?).ok()?;
        let length = |path: &Path| std::fs::metadata(path).map(|data| data.len()).ok();
        let whole = length(&files.device_state()) == Some(manifest.device_state_bytes)
            && length(&files.memory_difference()) == Some(manifest.memory_difference_bytes)
            && files.disk().exists();
        whole.then_some(manifest)
    }

    /// Writes it durably: from here on the snapshot exists.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, files: &SnapshotFiles) -> Result<(), Failure> {
        let text =
            serde_json::to_vec(self).map_err(|error| Failure::Internal(format!("manifest: {error}")))?;
        files::replace(&files.manifest(), &text, true)
    }
}

impl Core {
    /// Puts the microVM to sleep. Called in [`Phase::Running`]; ends in
    /// SUSPENDED, or in RUNNING with the failure as its reason.
    ///
    /// # Errors
    /// Why it runs on.
    pub async fn suspend(&mut self) -> Result<(), Failure> {
        let watch = Stopwatch::start("suspend");
        self.enter(Event::SuspendBegan, "");
        // Publishing shuts the gate for new connections; those there are go on until the guest is paused.
        let began = self.save();
        if self.spec.hooks.enabled(HookName::Suspend).is_some() {
            self.publish();
        } else {
            self.publish_quietly();
        }
        failpoint::hit("suspend-begun");
        let Some(live) = self.live.take() else {
            return Err(Failure::Internal("a running microVM has no engine".to_owned()));
        };
        let attempt = match began {
            Ok(()) => self.write_snapshot(&watch, &live).await,
            Err(failure) => Err((failure, false)),
        };
        match attempt {
            Ok(manifest) => {
                self.live = Some(live);
                self.settle_suspended(&watch, &manifest).await;
                Ok(())
            }
            Err((failure, paused)) => {
                self.run_on(live, paused, &failure).await;
                Err(failure)
            }
        }
    }

    /// Hook, pause, files, manifest. The flag in the error says whether the
    /// guest had been paused.
    async fn write_snapshot(
        &mut self,
        watch: &Stopwatch,
        live: &Live,
    ) -> Result<LocalManifest, (Failure, bool)> {
        if let Some(hook) = self.spec.hooks.enabled(HookName::Suspend) {
            let link = live.link().map_err(|failure| (failure, false))?;
            watch
                .step("hook", call_hook(&link, hook, String::new()))
                .await
                .map_err(|failure| (failure, false))?;
        }
        let sequence = self.journal.sequence + 1;
        let files = self.files.snapshot(sequence);
        watch.step("pause", live.machine.pause()).await.map_err(|error| (engine_failure(&error), true))?;
        failpoint::hit("suspend-paused");
        self.snapshot_files(watch, live, sequence, &files).await.map_err(|failure| {
            files::discard(files.directory());
            (failure, true)
        })
    }

    async fn snapshot_files(
        &mut self,
        watch: &Stopwatch,
        live: &Live,
        sequence: u64,
        files: &SnapshotFiles,
    ) -> Result<LocalManifest, Failure> {
        files::remove(files.directory())?;
        files::make_directory(files.directory())?;
        let (device_state, difference) = (files.device_state(), files.memory_difference());
        let memory = watch.step("memory", live.machine.save_difference(&device_state, &difference));
        let (live_disk, disk) = (self.files.live_disk(), files.disk());
        // A second name for the live disk: nothing writes to it any more unless this suspend fails, and then the
        // name goes with the directory.
        let disk = watch.step(
            "disk",
            files::blocking(move || {
                std::fs::hard_link(&live_disk, &disk).map_err(|error| Failure::io(&disk, &error))?;
                files::sync(&disk)
            }),
        );
        let (memory, disk) = tokio::join!(memory, disk);
        let stats = memory.map_err(|error| engine_failure(&error))?;
        disk?;
        failpoint::hit("suspend-files");
        let length =
            |path: &Path| std::fs::metadata(path).map(|data| data.len()).map_err(|e| Failure::io(path, &e));
        let manifest = LocalManifest {
            sequence,
            generation: self.journal.generation,
            base_digest: self.spec.snapshot.manifest_digest.clone(),
            device_state_bytes: length(&files.device_state())?,
            memory_difference_bytes: length(&files.memory_difference())?,
            difference_bytes: stats.bytes,
            created_ms: now_ms(),
            journal: Some(self.journal_asleep(sequence, stats.bytes)),
        };
        let (for_write, to) = (manifest.clone(), files.clone());
        // Dying before this leaves a paused engine and an unfinished directory: the next start lets it run on.
        // Dying after it leaves a snapshot and in it a newer journal, which says Suspended: the next start ends the
        // engine.
        watch.step("manifest", files::blocking(move || for_write.write(&to))).await?;
        failpoint::hit("suspend-manifest");
        Ok(manifest)
    }

    /// The journal as it is once the snapshot exists. It still names the engine,
    /// so that a restart finds and ends it.
    fn journal_asleep(&mut self, sequence: u64, difference_bytes: u64) -> Journal {
        self.journal.revision += 1;
        let mut journal = self.journal.clone();
        journal.phase = Phase::Suspended;
        journal.phase_since_ms = now_ms();
        journal.slept(sequence, difference_bytes);
        journal
    }

    /// The snapshot exists: the engine goes, the journal file follows.
    ///
    /// Watchers are told first, so that the scheduler's record is written while
    /// the engine's memory is torn down; the caller is answered after both.
    async fn settle_suspended(&mut self, watch: &Stopwatch, manifest: &LocalManifest) {
        self.sample();
        self.enter(Event::IsSuspended, "");
        self.journal.slept(manifest.sequence, manifest.difference_bytes);
        let live = self.live.take();
        self.publish();
        if let Some(live) = live {
            watch.step("stop", self.release(live)).await;
        }
        failpoint::hit("suspend-stopped");
        self.finished(watch.finish());
        // Totals and steps are known only now.
        self.publish_quietly();
    }

    /// What nobody waits for, once a suspend has been answered. Dying before it
    /// changes nothing: the next start does it. The files are touched on another
    /// thread, because the answer is on its way on this one.
    pub async fn after_suspend(&mut self) {
        self.journal.revision += 1;
        let (mut journal, files) = (self.journal.clone(), self.files.clone());
        let kept = journal.sequence;
        let written = files::blocking(move || {
            let written = journal.write(&files.journal());
            files.discard_snapshots_but(kept);
            written
        });
        if let Err(error) = written.await {
            tracing::error!(microvm = %self.id, %error, "the journal is behind");
        }
        self.log.append("suspended");
        self.start_upload();
    }

    /// Removes every snapshot directory but the journal's own.
    pub fn remove_other_snapshots(&self) {
        self.files.discard_snapshots_but(self.journal.sequence);
    }

    /// Writes the journal where a failure changes nothing: the phase is true
    /// either way, and a restart finds it out from the manifest and the engine.
    pub fn save_settled(&mut self) {
        if let Err(error) = self.save() {
            tracing::error!(microvm = %self.id, %error, "the journal is behind");
        }
    }

    /// The suspend failed: the guest runs on, with a fresh gate where its
    /// connections were cut.
    async fn run_on(&mut self, mut live: Live, paused: bool, failure: &Failure) {
        if paused {
            if let Err(error) = live.machine.resume().await {
                // The driver sees the engine's end next; there is nothing left to save here.
                tracing::error!(microvm = %self.id, %error, "a paused guest could not be resumed");
            }
            live.gate.close();
            live.gate =
                Arc::new(Gate::new(live.dialer.clone(), self.host.config.limits.connections_per_microvm));
        }
        self.live = Some(live);
        self.enter(Event::IsRunning, &failure.to_string());
        self.idle_floor_ms = self.host.monotonic_ms();
        self.save_settled();
        self.publish();
        tracing::warn!(microvm = %self.id, error = %failure, "suspend failed; the microVM runs on");
        self.log.append(format!("suspend failed: {failure}"));
    }
}
