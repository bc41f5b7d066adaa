//! Waking from the snapshot here, or the one in S3: as `host_agent::microvm::wake`.

use std::sync::Arc;

use api::microvm::v1::SnapshotCopies;
use host_agent::simulated::{Event, HostError, RemoteCopy, Spec, must_fetch};
use model::SnapshotNumber;

use super::agent::{Agent, Cell};
use super::machine::Snapshot;
use super::plan::Plant;
use super::s3;
use super::world::lock;

impl Agent {
    pub async fn wake(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        order: Option<(Spec, Option<SnapshotCopies>)>,
    ) -> Result<(), HostError> {
        cell.with(|held| self.enter(held, Event::WakeBegan, ""));
        let woken = self.try_wake(cell, order).await;
        let Err(failure) = woken else { return Ok(()) };
        if cell.with(|held| held.journal.sequence) == 0 {
            // Nothing is here that could sleep: it may be placed elsewhere.
            self.end_unstarted(cell, &failure).await;
            return Err(failure);
        }
        self.release(cell).await;
        cell.with(|held| self.enter(held, Event::IsSuspended, &failure.to_string()));
        self.save_now(cell);
        self.publish(cell);
        Err(failure)
    }

    async fn try_wake(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        order: Option<(Spec, Option<SnapshotCopies>)>,
    ) -> Result<(), HostError> {
        if let Some(copies) = order.and_then(|(spec, copies)| self.take_placement(cell, spec, copies)) {
            let number = SnapshotNumber::new(copies.generation, copies.sequence);
            let guest = s3::fetch(&self.world, &self.process, &cell.id, number).await?;
            self.write().await?;
            let snapshot = Snapshot { generation: copies.generation, guest, journal: None };
            {
                let mut disk = lock(&self.machine.disk);
                let directory = disk.microvms.entry(cell.id.clone()).or_default();
                directory.snapshots = [(copies.sequence, snapshot)].into();
            }
            cell.with(|held| {
                held.journal.sequence = copies.sequence;
                held.journal.snapshot_generation = copies.generation;
                held.journal.difference_bytes = 4096;
                held.journal.remote = Some(RemoteCopy {
                    generation: copies.generation,
                    sequence: copies.sequence,
                    manifest_key: copies.manifest_key,
                    manifest_digest: copies.manifest_digest,
                });
            });
        }
        cell.with(|held| held.journal.restore_count += 1);
        self.save(cell).await?;
        let sequence = cell.with(|held| held.journal.sequence);
        let older = self.world.is_planted(Plant::WakesOlder);
        let guest = {
            let disk = lock(&self.machine.disk);
            let snapshots = disk.microvms.get(&cell.id).map(|directory| &directory.snapshots);
            let found = snapshots.and_then(|all| {
                let before = all.range(..sequence).next_back().filter(|_| older);
                before.map(|(_, snapshot)| snapshot).or_else(|| all.get(&sequence))
            });
            found.map(|snapshot| snapshot.guest.clone())
        };
        let guest = guest.ok_or_else(|| HostError::Corrupt { object: format!("{}/{sequence}", cell.id) })?;
        self.start_engine(cell, guest, 5..80).await?;
        self.run(cell, "resume").await
    }

    /// Takes over what a scheduler's wake says; returns the copy in S3 that must be fetched first.
    fn take_placement(
        &self,
        cell: &Cell,
        spec: Spec,
        copies: Option<SnapshotCopies>,
    ) -> Option<SnapshotCopies> {
        cell.with(|held| {
            held.journal.set_spec(&spec);
            held.spec = spec;
            let copies = copies?;
            held.journal.goes_back |= copies.goes_back;
            let remote = copies.remote && !copies.manifest_key.is_empty();
            let offered = SnapshotNumber::new(copies.generation, copies.sequence);
            must_fetch(held.journal.number(), offered, remote).then_some(copies)
        })
    }
}
