//! Recovery points: snapshots of a microVM that runs on, and going back to one when its engine is gone (RFD 0013).
//!
//! ```text
//! flush -> pause -> device state + memory difference | reflink of the disk -> resume -> sync -> manifest (last) -> journal -> upload
//! ```
//!
//! Until the manifest is there nothing has changed but a directory that nobody names. A failure leaves the point before
//! this one, and the microVM as it runs.

use std::time::Duration;

use model::limits::CHECKPOINT_INTERVAL_MIN;
use tokio::time::Instant;

use super::core::{Core, Live};
use super::start::{clone_disk, engine_error};
use crate::adapters::files::{self, SnapshotFiles};
use crate::adapters::local_snapshot::LocalManifest;
use crate::domain::local_state::Event;
use crate::domain::transition::Cause;
use crate::domain::{HostError, LocalState};
use crate::failpoint;
use crate::stopwatch::Stopwatch;

/// A microVM that has not been at a point before has its first after this long, whatever its interval.
const FIRST_POINT: Duration = CHECKPOINT_INTERVAL_MIN;
/// An interval in which the engine used less of one CPU than this, and no byte passed, makes no point.
const BUSY_CPU_SHARE: f64 = 0.05;

/// When the next point is due, and what had been used when the last was.
#[derive(Default)]
pub struct Checkpoints {
    /// Begin of the interval; `None` while the microVM does not run.
    since: Option<Instant>,
    cpu_seconds: f64,
    bytes: u64,
}

impl Core {
    /// When the next point is due: never without a policy, nor while the one before is on its way to S3, so that a slow S3
    /// makes points rarer and does not pile them up; nor while others may run the microVM.
    pub fn checkpoint_due(&mut self) -> Option<Instant> {
        let interval = self.spec.checkpoint_interval?;
        if self.host.is_fenced() {
            return None;
        }
        if self.journal.state != LocalState::Running {
            self.checkpoints.since = None;
            return None;
        }
        if self.checkpoints.since.is_none() {
            self.begin_interval();
        }
        let uploading = self.is_uploading();
        let wait = if self.journal.sequence == 0 { FIRST_POINT.min(interval) } else { interval };
        self.checkpoints.since.filter(|_| !uploading).map(|since| since + wait)
    }

    /// An interval is over: a point, if the guest did anything.
    pub async fn checkpoint_if_busy(&mut self) {
        let before = (self.checkpoints.cpu_seconds, self.checkpoints.bytes, self.checkpoints.since);
        self.begin_interval();
        let elapsed = before.2.map_or(Duration::ZERO, |since| since.elapsed()).as_secs_f64();
        let used = self.checkpoints.cpu_seconds - before.0;
        if used < elapsed * BUSY_CPU_SHARE && self.checkpoints.bytes == before.1 && self.journal.sequence > 0
        {
            return;
        }
        if let Err(failure) = self.checkpoint().await {
            tracing::warn!(microvm = %self.id, error = %failure, "no recovery point was made; the microVM runs on");
            self.log.append(format!("checkpoint failed: {failure}"));
            self.host.metrics.failed("checkpoint");
        }
    }

    /// A point that somebody asks for. From the first one on the microVM goes back to its latest snapshot when it is lost.
    pub async fn checkpoint_asked(&mut self) -> Result<(), HostError> {
        if self.host.is_fenced() {
            return Err(HostError::Conflict(
                "the host may not speak for the microVM without its lease".to_owned(),
            ));
        }
        if self.is_uploading() {
            let still = "the snapshot before is still on its way to S3; ask again when it is there";
            return Err(HostError::Conflict(still.to_owned()));
        }
        let before = std::mem::replace(&mut self.journal.goes_back, true);
        if let Err(failure) = self.checkpoint().await {
            self.journal.goes_back = before;
            self.host.metrics.failed("checkpoint");
            return Err(failure);
        }
        self.begin_interval();
        Ok(())
    }

    fn is_uploading(&self) -> bool {
        self.journal.uploaded().is_none() && self.upload.as_ref().is_some_and(|upload| !upload.is_finished())
    }

    fn begin_interval(&mut self) {
        let cpu_seconds = self.live.as_ref().and_then(|live| live.machine.usage().ok());
        self.checkpoints = Checkpoints {
            since: Some(Instant::now()),
            cpu_seconds: cpu_seconds.map_or(0.0, |usage| usage.cpu_seconds),
            bytes: self.activity.bytes(),
        };
    }

    /// Makes a point. Called in [`LocalState::Running`], which it stays.
    async fn checkpoint(&mut self) -> Result<(), HostError> {
        let watch = Stopwatch::start("checkpoint", Cause::default());
        let usage = self.live.as_ref().and_then(|live| live.machine.usage().ok());
        let sequence = self.journal.sequence + 1;
        let files = self.files.snapshot(sequence);
        // The reserve is for suspends: without it a session would be lost that a missing point only may lose.
        let bytes = usage.map_or(0, |usage| usage.anonymous_bytes);
        let _room = self.host.disk.claim_beside_reserve(bytes, files.directory())?;
        let Some(live) = self.live.take() else {
            return Err(HostError::Internal("a running microVM has no engine".to_owned()));
        };
        let made = self.make_point(&watch, &live, sequence, &files).await;
        self.live = Some(live);
        let (manifest, stood_still) = made.inspect_err(|_| files::discard(files.directory()))?;
        self.sample();
        self.journal.point_made(sequence, manifest.difference_bytes, manifest.created_ms, stood_still);
        // When the agent dies before this line, its successor finds the journal's copy in the manifest.
        self.save_settled();
        failpoint::hit("checkpoint-journaled");
        let of_microvm = self.files.clone();
        files::blocking(move || {
            of_microvm.discard_snapshots_but(sequence);
            Ok(())
        })
        .await?;
        self.log_transition(&watch.finish());
        self.publish_quietly();
        self.start_upload();
        Ok(())
    }

    async fn make_point(
        &mut self,
        watch: &Stopwatch,
        live: &Live,
        sequence: u64,
        files: &SnapshotFiles,
    ) -> Result<(LocalManifest, Duration), HostError> {
        files::remove(files.directory())?;
        files::make_directory(files.directory())?;
        // What the guest wrote and the kernel still holds: the reflink would wait for it while the guest stands still.
        let (flushed, from, to) = (self.files.live_disk(), self.files.live_disk(), files.disk());
        watch.phase("flush", files::blocking(move || files::sync(&flushed))).await?;
        let stands = Instant::now();
        watch.phase("pause", live.machine.pause()).await.map_err(|error| engine_error(&error))?;
        failpoint::hit("checkpoint-paused");
        let (device_state, difference) = (files.device_state(), files.memory_difference());
        let memory = watch.phase("memory", live.machine.save_difference(&device_state, &difference));
        let disk = watch.phase("disk", files::blocking(move || clone_disk(&from, &to)));
        let (memory, disk) = tokio::join!(memory, disk);
        // Whatever came of the files. A guest that does not go on has lost its engine; the driver hears of that next.
        let resumed = watch.phase("resume", live.machine.resume()).await;
        let stood_still = stands.elapsed();
        resumed.map_err(|error| engine_error(&error))?;
        watch.phase("clock", live.set_clock(self.host.clock.now())).await;
        let stats = memory.map_err(|error| engine_error(&error))?;
        disk?;
        failpoint::hit("checkpoint-resumed");
        let mut manifest = self.manifest(files, sequence, stats.bytes)?;
        manifest.recovery_point = true;
        self.journal.revision += 1;
        let mut journal = self.journal.clone();
        journal.point_made(sequence, stats.bytes, manifest.created_ms, stood_still);
        manifest.journal = Some(journal);
        // Not while the guest stands still: the files are what they are, and nobody names them yet.
        let synced = watch
            .phase("sync", files::sync_all([files.device_state(), files.memory_difference(), files.disk()]));
        synced.await?;
        let (for_write, to) = (manifest.clone(), files.clone());
        watch.phase("manifest", files::blocking(move || for_write.write(&to))).await?;
        failpoint::hit("checkpoint-manifest");
        Ok((manifest, stood_still))
    }

    /// Whether there is a recovery point here that it has not gone back to just now.
    pub fn can_go_back(&self) -> bool {
        self.journal.may_go_back(&self.spec, self.host.now_ms())
            && LocalManifest::read(&self.files.snapshot(self.journal.sequence)).is_some()
    }

    /// The engine is gone with what the guest did since the point. The microVM sleeps as of then; whoever drives it wakes it.
    pub async fn go_back(&mut self, lost: &str) {
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
        // What it has used is not undone.
        self.sample();
        if let Some(live) = self.live.take() {
            self.release(live).await;
        }
        let age = self.journal.go_back(self.host.now_ms());
        self.enter(Event::WentBack, &model::recovery::went_back(lost, age));
        self.forget_engine();
        self.remove_other_snapshots();
        // When the agent dies before this line, its successor finds the engine dead and does the same.
        self.save_settled();
        self.publish();
        tracing::warn!(microvm = %self.id, lost, age_seconds = age.as_secs(), "back to the recovery point");
        self.log.append(self.journal.reason.clone());
        self.host.metrics.failed("engine");
    }
}
