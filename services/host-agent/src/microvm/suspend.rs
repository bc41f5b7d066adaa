//! Putting a running microVM to sleep.
//!
//! ```text
//! hook -> connections held, or ended -> pause -> device state + memory difference | disk -> sync -> manifest (last) -> engine ends -> SUSPENDED
//! ```
//!
//! Until the manifest is there the session lives in the paused engine, and any failure lets it run on. Once
//! it is there the session is the snapshot, and the engine never runs again.
//!
//! A microVM that falls asleep by itself does so because nobody calls. A request that comes before the pause calls its suspend
//! off: the app, which has been told to prepare for sleep, is told that it goes on (the resume hook), and then the request is
//! let in. A suspend that somebody asked for is finished first.

use std::path::Path;
use std::sync::Arc;

use api::microvm::v1::ActivityKind;
use slot::Frozen;

use super::asleep::Asleep;
use super::core::{Core, Live};
use super::gate::Held;
use super::guest::call_hook;
use super::start::engine_error;
use crate::adapters::files::{self, SnapshotFiles};
use crate::adapters::journal::Journal;
use crate::adapters::local_snapshot::LocalManifest;
use crate::domain::hooks::HookName;
use crate::domain::local_state::Event;
use crate::domain::transition::Cause;
use crate::domain::{HostError, LocalState};
use crate::failpoint;
use crate::stopwatch::Stopwatch;

/// How a suspend ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slept {
    Asleep,
    /// A request came before the guest was paused, which runs on.
    CalledOff,
}

/// Why a suspend stops half-way.
enum Stop {
    Failed(HostError),
    CalledOff,
}

impl From<HostError> for Stop {
    fn from(failure: HostError) -> Self {
        Self::Failed(failure)
    }
}

/// What a suspend that stops half-way has to undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nothing,
    /// The connections have given their sockets up.
    Held,
    Paused,
}

impl Core {
    /// Puts the microVM to sleep, unless something comes for it after the first `requests`; `None` in any case. Called in
    /// [`LocalState::Running`]; ends in SUSPENDED, or in RUNNING with the failure, if any, as its reason.
    pub async fn suspend(&mut self, cause: Cause, requests: Option<u64>) -> Result<Slept, HostError> {
        let watch = Stopwatch::start("suspend", cause);
        let usage = self.live.as_ref().and_then(|live| live.machine.usage().ok());
        let _room = self.host.disk.claim(usage.map_or(0, |usage| usage.anonymous_bytes)).await;
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
            return Err(HostError::Internal("a running microVM has no engine".to_owned()));
        };
        // When the hook fails, the guest has not been stopped. When something fails after the pause, a full disk for example,
        // the guest is resumed where it stood. In neither case is anything left of the attempt; connections that have given
        // their sockets up get them back.
        let (mut held, mut reached) = (Vec::new(), Reached::Nothing);
        let attempt = match began {
            Ok(()) => self.write_snapshot(&watch, &live, requests, (&mut held, &mut reached)).await,
            Err(failure) => Err(failure.into()),
        };
        match attempt {
            Ok((manifest, frozen)) => {
                // The sockets go with the slot, in which nobody listens any more.
                self.asleep = Asleep::new(manifest.sequence, held, frozen);
                self.live = Some(live);
                self.settle_suspended(&watch, &manifest).await;
                Ok(Slept::Asleep)
            }
            Err(Stop::CalledOff) => {
                self.call_off(live, reached, held).await;
                Ok(Slept::CalledOff)
            }
            Err(Stop::Failed(failure)) => {
                let live = self.let_run(live, reached, held).await;
                self.run_on(live, &failure);
                Err(failure)
            }
        }
    }

    /// Hook, connections held, pause, files, manifest; with the manifest, the state of each connection. Says what it holds and
    /// how far it has come for whoever has to undo it.
    async fn write_snapshot(
        &mut self,
        watch: &Stopwatch,
        live: &Live,
        requests: Option<u64>,
        (held, reached): (&mut Vec<Held>, &mut Reached),
    ) -> Result<(LocalManifest, Vec<Option<Frozen>>), Stop> {
        let is_called_off = || requests.is_some_and(|requests| self.activity.requests() > requests);
        if let Some(hook) = self.spec.hooks.enabled(HookName::Suspend) {
            watch.phase("hook", call_hook(&live.link()?, hook, String::new())).await?;
        }
        if is_called_off() {
            return Err(Stop::CalledOff);
        }
        *reached = Reached::Held;
        *held = watch.phase("hold", live.gate.hold()).await;
        // Connections may have been waited for.
        if is_called_off() {
            return Err(Stop::CalledOff);
        }
        let sequence = self.journal.sequence + 1;
        let files = self.files.snapshot(sequence);
        *reached = Reached::Paused;
        watch.phase("pause", live.machine.pause()).await.map_err(|error| match error {
            vmm::Error::OutOfSpace => HostError::out_of_space(&self.files.live_disk()),
            error => engine_error(&error),
        })?;
        failpoint::hit("suspend-paused");
        let frozen = Asleep::freeze(sequence, held);
        let written = self.snapshot_files(watch, live, sequence, &files, (held, &frozen)).await;
        let manifest = written.inspect_err(|_| files::discard(files.directory()))?;
        Ok((manifest, frozen))
    }

    async fn snapshot_files(
        &mut self,
        watch: &Stopwatch,
        live: &Live,
        sequence: u64,
        files: &SnapshotFiles,
        (held, frozen): (&[Held], &[Option<Frozen>]),
    ) -> Result<LocalManifest, HostError> {
        files::remove(files.directory())?;
        files::make_directory(files.directory())?;
        Asleep::write(&files.connections(), held, frozen)?;
        let (device_state, difference) = (files.device_state(), files.memory_difference());
        let memory = async {
            let saved = live.machine.save_difference(&device_state, &difference);
            let stats = watch.phase("memory", saved).await.map_err(|error| engine_error(&error))?;
            let synced = files::sync_all([device_state.clone(), difference.clone()]);
            watch.phase("sync", synced).await?;
            Ok::<_, HostError>(stats)
        };
        let (live_disk, disk) = (self.files.live_disk(), files.disk());
        // A second name for the live disk: nothing writes to it any more unless this suspend fails, and then the
        // name goes with the directory.
        let disk = watch.phase(
            "disk",
            files::blocking(move || {
                std::fs::hard_link(&live_disk, &disk).map_err(|error| HostError::io(&disk, &error))?;
                files::sync(&disk)
            }),
        );
        // Both to their end: a file that is still written to when the directory is given up would be made again.
        let (memory, disk) = tokio::join!(memory, disk);
        let stats = memory?;
        disk?;
        failpoint::hit("suspend-files");
        let mut manifest = self.manifest(files, sequence, stats.bytes)?;
        manifest.journal = Some(self.journal_asleep(&manifest));
        let (for_write, to) = (manifest.clone(), files.clone());
        // Dying before this leaves a paused engine and an unfinished directory: the next start lets it run on.
        // Dying after it leaves a snapshot and in it a newer journal, which says Suspended: the next start ends the
        // engine.
        watch.phase("manifest", files::blocking(move || for_write.write(&to))).await?;
        failpoint::hit("suspend-manifest");
        Ok(manifest)
    }

    /// The journal as it is once the snapshot exists. It still names the engine,
    /// so that a restart finds and ends it.
    fn journal_asleep(&mut self, manifest: &LocalManifest) -> Journal {
        self.journal.revision += 1;
        let mut journal = self.journal.clone();
        journal.state = LocalState::Suspended;
        journal.state_since_ms = self.host.now_ms();
        journal.slept(manifest.sequence, manifest.difference_bytes, manifest.created_ms);
        journal
    }

    /// What a snapshot's manifest says of files that are there.
    pub fn manifest(
        &self,
        files: &SnapshotFiles,
        sequence: u64,
        difference_bytes: u64,
    ) -> Result<LocalManifest, HostError> {
        let length =
            |path: &Path| std::fs::metadata(path).map(|data| data.len()).map_err(|e| HostError::io(path, &e));
        Ok(LocalManifest {
            sequence,
            generation: self.journal.generation,
            base_digest: self.spec.snapshot.manifest_digest.clone(),
            device_state_bytes: length(&files.device_state())?,
            memory_difference_bytes: length(&files.memory_difference())?,
            difference_bytes,
            created_ms: self.host.now_ms(),
            journal: None,
            recovery_point: false,
        })
    }

    /// The snapshot exists: the engine goes, the journal file follows.
    ///
    /// Watchers are told first, so that the scheduler's record is written while
    /// the engine's memory is torn down; the caller is answered after both.
    async fn settle_suspended(&mut self, watch: &Stopwatch, manifest: &LocalManifest) {
        self.sample();
        self.enter(Event::IsSuspended, "");
        self.journal.slept(manifest.sequence, manifest.difference_bytes, manifest.created_ms);
        self.apply_lease();
        // Steps are missing yet, but why it sleeps is known.
        self.journal.transition = watch.finish();
        let live = self.live.take();
        self.publish();
        if let Some(live) = live {
            watch.phase("stop", self.release(live)).await;
        }
        failpoint::hit("suspend-stopped");
        self.finished(watch.finish());
        // Totals and steps are known only now.
        self.publish_quietly();
    }

    /// What nobody waits for, once a suspend has been answered. Dying before it changes nothing: the next
    /// start does it. The files are touched on another thread, because the answer is on its way on this one.
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
        self.log.append(format!("suspended: {}", self.journal.transition.cause.reason));
        self.start_upload();
    }

    /// Removes every snapshot directory but the journal's own.
    pub fn remove_other_snapshots(&self) {
        self.files.discard_snapshots_but(self.journal.sequence);
    }

    /// Writes the journal where a failure changes nothing: the state is true
    /// either way, and a restart finds it out from the manifest and the engine.
    pub fn save_settled(&mut self) {
        if let Err(error) = self.save() {
            tracing::error!(microvm = %self.id, %error, "the journal is behind");
        }
    }

    /// Lets the guest run on. When the connections have given their sockets up, they get them back through a fresh gate; those
    /// of an image that has them end do not come back.
    async fn let_run(&self, mut live: Live, reached: Reached, held: Vec<Held>) -> Live {
        if reached >= Reached::Paused
            && let Err(error) = live.run_on(self.host.clock.now()).await
        {
            // The driver sees the engine's end next; there is nothing left to save here.
            tracing::error!(microvm = %self.id, %error, "a paused guest could not be resumed");
        }
        if reached >= Reached::Held {
            live.gate.close();
            live.gate = Arc::new(self.gate(live.dialer.clone()));
            for Held { stream, waiting } in held {
                live.gate.rejoin(stream, waiting);
            }
            live.gate.expire_unclaimed();
        }
        live
    }

    /// A request came before the pause. The app is told first, as on a wake; when its resume hook fails, nothing is lost that
    /// could be gone back to, and the microVM says so and runs on.
    async fn call_off(&mut self, live: Live, reached: Reached, held: Vec<Held>) {
        let hooks = &self.spec.hooks;
        let told = match (hooks.enabled(HookName::Suspend), hooks.enabled(HookName::Resume)) {
            (Some(_), Some(hook)) => match live.link() {
                Ok(link) => call_hook(&link, hook, String::new()).await,
                Err(failure) => Err(failure),
            },
            _ => Ok(()),
        };
        let reason = told.err().map(|failure| failure.to_string()).unwrap_or_default();
        self.live = Some(self.let_run(live, reached, held).await);
        self.enter(Event::IsRunning, &reason);
        // The request came while the hook ran, perhaps longer ago than it may be idle, and has had no chance to be answered.
        self.activity.begin(ActivityKind::Request, &self.host);
        self.save_settled();
        self.publish();
        self.log.append("suspend called off: a request came");
        if !reason.is_empty() {
            tracing::warn!(microvm = %self.id, reason, "a called-off suspend's resume hook failed; the microVM runs on");
            self.log.append(reason);
        }
    }

    fn run_on(&mut self, live: Live, failure: &HostError) {
        self.live = Some(live);
        self.enter(Event::IsRunning, &failure.to_string());
        self.activity.begin(ActivityKind::SuspendFailed, &self.host);
        self.save_settled();
        self.publish();
        tracing::warn!(microvm = %self.id, error = %failure, "suspend failed; the microVM runs on");
        self.log.append(format!("suspend failed: {failure}"));
    }
}
