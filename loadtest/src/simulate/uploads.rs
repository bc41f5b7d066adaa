//! Bringing what sleeps to S3, and removing there what is superseded: as `host_agent::microvm::upload`.

use std::sync::Arc;
use std::time::Duration;

use host_agent::simulated::RemoteCopy;
use model::SnapshotNumber;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, Cell};
use super::plan::Plant;
use super::s3;
use super::world::lock;

/// Pause between a suspend and its upload.
const UPLOAD_DELAY: Duration = Duration::from_millis(500);
/// Pause between two attempts to upload.
const UPLOAD_PAUSE: Duration = Duration::from_secs(2);

impl Agent {
    /// Uploads the latest snapshot, unless S3 has it.
    pub fn start_upload(self: &Arc<Self>, cell: &Arc<Cell>) {
        let (number, has, cancel) = cell.with(|held| {
            held.uploading.cancel();
            held.uploading = CancellationToken::new();
            let number = held.journal.number();
            let has = held.journal.uploaded().is_some();
            (number, has, held.uploading.clone())
        });
        if number.sequence == 0 || has {
            return;
        }
        let (agent, cell) = (Arc::clone(self), Arc::clone(cell));
        self.process.spawn(async move {
            tokio::select! { biased; () = cancel.cancelled() => {}, () = agent.upload(&cell, number) => {} }
        });
    }

    async fn upload(self: &Arc<Self>, cell: &Arc<Cell>, number: SnapshotNumber) {
        tokio::time::sleep(UPLOAD_DELAY).await;
        loop {
            let guest = {
                let disk = lock(&self.machine.disk);
                let directory = disk.microvms.get(&cell.id);
                directory.and_then(|all| all.snapshots.get(&number.sequence)).map(|found| found.guest.clone())
            };
            let Some(guest) = guest else { return };
            if s3::store(&self.world, &self.process, &cell.id, number, guest).await.is_ok() {
                break;
            }
            tokio::time::sleep(UPLOAD_PAUSE).await;
        }
        let copy = RemoteCopy {
            generation: number.generation,
            sequence: number.sequence,
            manifest_key: s3::manifest_key(&cell.id, number),
            manifest_digest: format!("digest-{number}"),
        };
        let newer = cell.with(|held| {
            let newer = copy.number() != held.journal.number();
            let superseded = if newer { Some(copy) } else { held.journal.remote.replace(copy) };
            if let Some(before) = superseded {
                held.journal.supersede(before);
            }
            newer
        });
        self.save_now(cell);
        if !newer {
            self.publish(cell);
        }
        if self.world.is_planted(Plant::RemovedEarly) {
            let newest = SnapshotNumber::new(number.generation, u64::MAX);
            self.recorded(cell, number.generation, newest);
        }
    }

    /// The record names a snapshot, durably: what it supersedes is removed from S3.
    pub fn recorded(&self, cell: &Arc<Cell>, generation: u64, named: SnapshotNumber) {
        let unneeded = cell.with(|held| {
            let unneeded = held.journal.unneeded(generation, named);
            let act = !unneeded.is_empty() && !held.removing && !self.is_fenced();
            held.removing |= act;
            if act { unneeded } else { Vec::new() }
        });
        if unneeded.is_empty() {
            return;
        }
        let (world, process, cell) = (Arc::clone(&self.world), self.process.clone(), Arc::clone(cell));
        self.process.spawn(async move {
            let mut removed = Vec::new();
            for copy in unneeded {
                if s3::remove(&world, &process, &cell.id, copy.number()).await.is_ok() {
                    removed.push(copy);
                }
            }
            cell.with(|held| {
                held.removing = false;
                held.journal.superseded.retain(|copy| !removed.contains(copy));
            });
        });
    }
}
