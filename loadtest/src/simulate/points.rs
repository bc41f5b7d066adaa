//! Recovery points, and going back to them: as `host_agent::microvm::checkpoint`.

use std::sync::Arc;
use std::time::Duration;

use host_agent::simulated::{Event, HostError, LocalState};
use model::SnapshotNumber;
use tokio::time::Instant;

use super::agent::{Agent, Cell, Held, Outcome};
use super::driver::Order;
use super::world::lock;

/// How often it is looked whether a point is due.
const LOOK: Duration = Duration::from_secs(1);
/// Of a point's difference, in bytes.
const BYTES: u64 = 4096;

fn is_uploading(held: &Held) -> bool {
    held.journal.sequence > 0 && held.journal.uploaded().is_none()
}

impl Agent {
    /// A point that somebody asks for.
    pub async fn checkpoint_microvm(self: &Arc<Self>, id: &str, generation: u64) -> Outcome {
        let cell = self.held(id)?;
        self.command(&cell, Order::Checkpoint { asked: true }, Some(generation)).await
    }

    /// Points that a policy asks for.
    pub async fn make_points(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.is_fenced() {
                continue;
            }
            let live: Vec<Arc<Cell>> = lock(&self.live).values().cloned().collect();
            for cell in live.into_iter().filter(|cell| cell.with(is_due)) {
                let agent = Arc::clone(&self);
                self.process.spawn(async move {
                    let _ = agent.command(&cell, Order::Checkpoint { asked: false }, None).await;
                });
            }
        }
    }

    pub async fn checkpoint(self: &Arc<Self>, cell: &Arc<Cell>, asked: bool) -> Result<(), HostError> {
        if self.is_fenced() || cell.with(|held| is_uploading(held)) {
            return Err(HostError::Conflict("no point now".to_owned()));
        }
        let before = cell.with(|held| {
            held.interval = Some(Instant::now());
            let before = held.journal.goes_back;
            held.journal.goes_back |= asked;
            before
        });
        if let Err(failure) = self.make_point(cell).await {
            cell.with(|held| held.journal.goes_back = before);
            return Err(failure);
        }
        self.save_now(cell);
        self.world.step(&self.process).await;
        self.keep_latest_snapshot(cell);
        self.publish(cell);
        self.start_upload(cell);
        Ok(())
    }

    /// Flush, pause, files, resume, sync, manifest.
    async fn make_point(&self, cell: &Arc<Cell>) -> Result<(), HostError> {
        let process = cell.with(|held| held.process).unwrap_or(0);
        self.write().await?;
        let guest = self.machine.engine(process, |engine| {
            engine.pause();
            engine.guest_now()
        });
        let guest = guest.ok_or_else(|| HostError::Engine("the engine is gone".to_owned()))?;
        let written = self.write().await;
        self.machine.engine(process, |engine| engine.go_on());
        written?;
        self.write().await?;
        let (number, journal) = cell.with(|held| {
            held.journal.revision += 1;
            let mut journal = held.journal.clone();
            journal.point_made(journal.sequence + 1, BYTES, self.now_ms(), Duration::ZERO);
            (SnapshotNumber::new(journal.generation, journal.sequence), journal)
        });
        self.world.note_point(&cell.id, number, guest.clone());
        // A restart finds the journal's copy in the manifest.
        self.write_manifest(cell, number, guest, journal).await;
        let made_ms = self.now_ms();
        cell.with(|held| held.journal.point_made(number.sequence, BYTES, made_ms, Duration::ZERO));
        Ok(())
    }

    /// What ran here, and whose engine is gone, sleeps as of its point, and is woken.
    pub fn go_back(self: &Arc<Self>, cell: &Arc<Cell>) {
        if !cell.with(|held| held.journal.may_go_back(&held.spec, self.now_ms())) {
            return self.bury(cell, "The engine was lost.", false);
        }
        cell.with(|held| {
            let age = held.journal.go_back(self.now_ms());
            let lost = model::recovery::went_back("The engine was lost while its agent was down.", age);
            self.enter(held, Event::WentBack, &lost);
            held.journal.no_engine();
        });
        self.keep(cell);
        let (agent, cell) = (Arc::clone(self), Arc::clone(cell));
        self.process.spawn(async move {
            // While the host is fenced it may run elsewhere.
            let _ = agent.standing.subscribe().wait_for(|standing| !standing.is_fenced()).await;
            if !cell.with(|held| held.stale >= held.journal.generation) {
                let _ = agent.command(&cell, Order::Resume(None), None).await;
            }
        });
    }
}

fn is_due(held: &mut Held) -> bool {
    let Some(interval) = held.spec.checkpoint_interval else { return false };
    if held.journal.state != LocalState::Running {
        held.interval = None;
        return false;
    }
    let began = *held.interval.get_or_insert_with(Instant::now);
    began.elapsed() >= interval && held.under_way.is_none() && !is_uploading(held)
}
