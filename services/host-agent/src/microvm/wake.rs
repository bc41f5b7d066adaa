//! Waking a microVM from its own snapshot, here or as S3 has it. What follows the restore is the same as for a launch
//! (`start`, [`Core::run`]).

use std::path::Path;

use model::SnapshotNumber;
use tokio_util::sync::CancellationToken;

use super::ResumeOrder;
use super::core::Core;
use super::guest::Restore;
use super::start::{OwnState, Plan, clone_disk};
use super::upload::{RECOVERY_POINT_LABEL, RESTORES_LABEL};
use crate::adapters::files;
use crate::adapters::image_snapshots::{ImageSnapshotLease, fetch_error};
use crate::adapters::journal::RemoteCopy;
use crate::adapters::local_snapshot::LocalManifest;
use crate::domain::HostError;
use crate::domain::fence::must_fetch;
use crate::domain::hooks::HookName;
use crate::domain::local_state::Event;
use crate::domain::transition::Cause;
use crate::failpoint;
use crate::stopwatch::Stopwatch;
use crate::wakes::Turn;

impl Core {
    /// Wakes the microVM. Called in `Suspended`; ends in RUNNING, or in
    /// SUSPENDED with its snapshot as it was.
    pub async fn wake(
        &mut self,
        order: Option<Box<ResumeOrder>>,
        turn: Option<Turn>,
        cancel: &CancellationToken,
    ) -> Result<(), HostError> {
        let cause = if order.is_some() { Cause::requested() } else { Cause::traffic() };
        let watch = match turn.as_ref().and_then(Turn::waited_since) {
            Some(asked) => Stopwatch::after_queue("wake", cause, asked),
            None => Stopwatch::start("wake", cause),
        };
        let _room = self.host.disk.claim(0).await;
        self.enter(Event::WakeBegan, "");
        self.publish_quietly();
        let woken = self.try_wake(&watch, order, turn, cancel).await;
        if let Err(failure) = &woken {
            let reason = if matches!(failure, HostError::Interrupted(_)) {
                String::new()
            } else {
                failure.to_string()
            };
            self.enter(Event::IsSuspended, &reason);
            self.journal.process = None;
            self.journal.slot = None;
            self.save_settled();
            self.publish();
            tracing::warn!(microvm = %self.id, error = %failure, "wake failed; the microVM sleeps on");
            self.log.append(format!("wake failed: {failure}"));
        }
        woken
    }

    async fn try_wake(
        &mut self,
        watch: &Stopwatch,
        order: Option<Box<ResumeOrder>>,
        mut turn: Option<Turn>,
        cancel: &CancellationToken,
    ) -> Result<(), HostError> {
        let mut memory = None;
        if let Some(remote) = order.and_then(|order| self.take_placement(*order)) {
            // S3 may be slow; those whose snapshots are here do not wait for it.
            drop(turn.take());
            // A host that has no room by then would have had its caller wait for nothing: another host is asked at once.
            memory = Some(self.host.reserve_memory(self.spec.snapshot.memory_mib).await?);
            self.fetch_remote(watch, remote).await?;
        }
        // One that has been fetched, or has gone back to its recovery point, has not waited for its turn yet: after a power
        // loss there may be many of these.
        let turn = match turn {
            Some(turn) => turn,
            None => self.next_turn(watch, cancel).await?,
        };
        self.journal.restore_count += 1;
        self.save()?;
        failpoint::hit("wake-begun");
        let base = self.base(watch).await?;
        let snapshot = self.files.snapshot(self.journal.sequence);
        let manifest = LocalManifest::read(&snapshot)
            .ok_or_else(|| HostError::Corrupt { object: snapshot.directory().display().to_string() })?;
        self.asleep.load(self.journal.sequence, &snapshot.connections());
        let hook = self.spec.hooks.enabled(HookName::Resume).map(|hook| (hook, String::new()));
        let plan = Plan {
            restore: if manifest.recovery_point { Restore::Recovery } else { Restore::Wake },
            device_state: snapshot.device_state(),
            own: Some(OwnState { disk: snapshot.disk(), memory_difference: snapshot.memory_difference() }),
            hook,
            base,
            turn: Some(turn),
            memory,
        };
        let live = self.start(watch, plan, cancel).await?;
        self.journal.meter.snapshot_bytes_read +=
            manifest.device_state_bytes + manifest.memory_difference_bytes;
        self.run(watch, live, "woken").await
    }

    /// Takes over what a scheduler's wake says: the spec; returns the copy in S3 when it is newer than the one here, or there is
    /// none. What was here under an older placement and is not what the record names has gone before (`Microvms::resume`).
    fn take_placement(&mut self, order: ResumeOrder) -> Option<RemoteCopy> {
        self.journal.set_spec(&order.spec);
        self.spec = order.spec;
        let copies = order.snapshot?;
        self.journal.goes_back |= copies.goes_back;
        let remote = copies.remote && !copies.manifest_key.is_empty();
        let offered = SnapshotNumber::new(copies.generation, copies.sequence);
        must_fetch(self.journal.number(), offered, remote).then_some(RemoteCopy {
            generation: copies.generation,
            sequence: copies.sequence,
            manifest_key: copies.manifest_key,
            manifest_digest: copies.manifest_digest,
        })
    }

    /// Waits for the turn of a microVM for which nobody has waited.
    async fn next_turn(&self, watch: &Stopwatch, cancel: &CancellationToken) -> Result<Turn, HostError> {
        let turn = self.host.wakes.turn(self.id.as_str(), &self.spec.image_name);
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(HostError::terminating()),
            turn = watch.phase("queue", turn) => turn.map_err(|full| HostError::Capacity(full.to_string())),
        }
    }

    /// Brings the microVM's snapshot from S3: into a temporary directory first,
    /// so that what is there under its own name is always whole.
    async fn fetch_remote(&mut self, watch: &Stopwatch, mut remote: RemoteCopy) -> Result<(), HostError> {
        let base = self.base(watch).await?;
        let temporary = self.host.data.tmp().join(format!("{}-{}", self.id, remote.sequence));
        files::remove(&temporary)?;
        files::make_directory(&temporary)?;
        let fetched = watch
            .phase(
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
            .map_err(|error| fetch_error(&error, &temporary));
        if let (Ok(fetched), 0) = (&fetched, remote.generation) {
            // A record of an older scheduler does not say.
            remote.generation = fetched.manifest.head.generation.unwrap_or(0);
        }
        let result = match fetched {
            Ok(fetched) => self.assemble(&fetched, &base, &remote).await.map(|manifest| (fetched, manifest)),
            Err(failure) => Err(failure),
        };
        files::discard(&temporary);
        let (fetched, manifest) = result?;
        let labels = &fetched.manifest.head.labels;
        let restores = labels.get(RESTORES_LABEL).and_then(|count| count.parse().ok()).unwrap_or(0);
        self.journal.restore_count = self.journal.restore_count.max(restores);
        self.journal.sequence = manifest.sequence;
        self.journal.snapshot_generation = manifest.generation;
        self.journal.difference_bytes = manifest.difference_bytes;
        self.journal.snapshot_ms = manifest.created_ms;
        self.journal.meter.snapshot_bytes_read += manifest.difference_bytes;
        self.journal.remote = Some(remote);
        self.remove_other_snapshots();
        Ok(())
    }

    async fn assemble(
        &self,
        fetched: &snapshot::Fetched,
        base: &ImageSnapshotLease,
        remote: &RemoteCopy,
    ) -> Result<LocalManifest, HostError> {
        let part = |kind: snapshot::FileKind| {
            fetched
                .paths
                .get(&kind)
                .cloned()
                .ok_or_else(|| HostError::Corrupt { object: remote.manifest_key.clone() })
        };
        let device = part(snapshot::FileKind::Device)?;
        let memory = part(snapshot::FileKind::MemoryDifference)?;
        let disk = part(snapshot::FileKind::DiskDifference)?;
        let connections = part(snapshot::FileKind::Connections).ok();
        let target = self.files.snapshot(remote.sequence);
        let base_disk = base.disk();
        let (generation, base_digest, sequence) =
            (remote.generation, base.digest().to_owned(), remote.sequence);
        let created_ms = fetched.manifest.head.created_unix_ms;
        let recovery_point = fetched.manifest.head.labels.contains_key(RECOVERY_POINT_LABEL);
        files::blocking(move || {
            files::remove(target.directory())?;
            files::make_directory(target.directory())?;
            let io = |path: &Path, error: std::io::Error| HostError::io(path, &error);
            std::fs::rename(&device, target.device_state()).map_err(|error| io(&device, error))?;
            std::fs::rename(&memory, target.memory_difference()).map_err(|error| io(&memory, error))?;
            if let Some(connections) = connections {
                std::fs::rename(&connections, target.connections())
                    .map_err(|error| io(&connections, error))?;
            }
            clone_disk(&base_disk, &target.disk())?;
            snapshot::disk::apply(&disk, &target.disk())
                .map_err(|error| fetch_error(&error, &target.disk()))?;
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
                recovery_point,
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
