//! What a simulated host does for each command: the rounds of `host_agent::microvms`.

use std::sync::Arc;

use api::microvm::v1::SnapshotCopies;
use host_agent::simulated::{Cause, Fence, HostError, Journal, LocalState, Spec, fence, has_diverged};
use tokio::sync::oneshot;

use super::agent::{Agent, Cell, Held, Outcome};
use super::driver::Order;
use super::world::lock;

/// Rounds of "drop the older, start the newer" before a command gives up.
const REPLACE_ROUNDS_MAX: usize = 3;

impl Agent {
    /// The microVM, and whether it was made by this.
    fn get_or_create(&self, spec: Spec, generation: u64, state: LocalState) -> (Arc<Cell>, bool) {
        let mut live = lock(&self.live);
        if let Some(cell) = live.get(spec.id.as_str()) {
            return (Arc::clone(cell), false);
        }
        let journal = Journal::new(&spec, generation, state, self.now_ms());
        let cell = Cell::new(spec, journal);
        live.insert(cell.id.clone(), Arc::clone(&cell));
        (cell, true)
    }

    /// Starts a microVM; answers when it is RUNNING. The rounds are those of `Microvms::launch`.
    pub async fn launch_microvm(self: &Arc<Self>, spec: Spec, generation: u64) -> Outcome {
        for _ in 0..REPLACE_ROUNDS_MAX {
            let Some(cell) = self.get(spec.id.as_str()) else {
                self.refuse_ended(spec.id.as_str(), generation)?;
                let (cell, made) = self.get_or_create(spec, generation, LocalState::Launching);
                if made {
                    return self.begin_launch(&cell).await;
                }
                return self.command(&cell, Order::Launch, Some(generation)).await;
            };
            let held = cell.with(|held| held.journal.generation);
            match fence(held, generation) {
                Fence::Stale => {
                    return Err(HostError::StaleGeneration { held, offered: generation });
                }
                Fence::Same => {
                    return self.command(&cell, Order::Launch, Some(generation)).await;
                }
                Fence::Newer => self.replace(&cell, generation).await?,
            }
        }
        Err(HostError::Conflict(format!("{} is being replaced", spec.id)))
    }

    /// A new microVM is launched before anybody else can ask anything of it.
    async fn begin_launch(self: &Arc<Self>, cell: &Arc<Cell>) -> Outcome {
        let (sender, outcome) = oneshot::channel();
        cell.with(|held| held.under_way = Some(vec![sender]));
        let (agent, driven) = (Arc::clone(self), Arc::clone(cell));
        self.process.spawn(async move { agent.carry_out(driven, Order::Launch).await });
        outcome.await.unwrap_or_else(|_| Err(HostError::Internal("the driver is gone".to_owned())))
    }

    async fn replace(self: &Arc<Self>, cell: &Arc<Cell>, generation: u64) -> Result<(), HostError> {
        let reason = format!("Replaced by generation {generation}.");
        let order = Order::End { reason, discard: true };
        self.command(cell, order, Some(generation)).await.map(drop)
    }

    /// Wakes a microVM; answers when it is RUNNING. The rounds are those of `Microvms::resume`.
    pub async fn resume_microvm(
        self: &Arc<Self>,
        spec: Spec,
        generation: u64,
        snapshot: Option<SnapshotCopies>,
    ) -> Outcome {
        let id = spec.id.to_string();
        for _ in 0..REPLACE_ROUNDS_MAX {
            let in_s3 =
                snapshot.as_ref().is_some_and(|copies| copies.remote && !copies.manifest_key.is_empty());
            let cell = match self.get(&id) {
                Some(cell) if cell.with(|held| diverges(held, generation, snapshot.as_ref())) => {
                    if !in_s3 {
                        return Err(HostError::NotHere { id });
                    }
                    self.replace(&cell, generation).await?;
                    continue;
                }
                Some(cell) => cell,
                None => {
                    self.refuse_ended(&id, generation)?;
                    if !in_s3 {
                        return Err(HostError::NotHere { id });
                    }
                    self.get_or_create(spec.clone(), generation, LocalState::Suspended).0
                }
            };
            let order = Order::Resume(Some(Box::new((spec, snapshot))));
            return self.command(&cell, order, Some(generation)).await;
        }
        Err(HostError::Conflict(format!("{id} is being replaced")))
    }

    pub async fn suspend_microvm(self: &Arc<Self>, id: &str, generation: u64, cause: Cause) -> Outcome {
        let cell = self.held(id)?;
        self.command(&cell, Order::Suspend(cause), Some(generation)).await
    }

    pub async fn terminate_microvm(
        self: &Arc<Self>,
        id: &str,
        generation: u64,
        (reason, discard): (String, bool),
    ) -> Outcome {
        if discard {
            self.note_dropped(id, generation);
        }
        let Some(cell) = self.get(id) else { return Ok(self.gone(id, generation, &reason, discard)) };
        let order = Order::End { reason: reason.clone(), discard };
        match self.command(&cell, order, Some(generation)).await {
            Err(HostError::Ended { .. }) => Ok(self.gone(id, generation, &reason, discard)),
            outcome => outcome,
        }
    }

    /// As `Microvms::give_up`.
    pub async fn give_up_microvm(
        self: &Arc<Self>,
        id: &str,
        generation: u64,
        named: SnapshotCopies,
    ) -> Outcome {
        self.note_dropped(id, generation);
        let Some(cell) = self.get(id) else { return Ok(self.gone(id, generation, "", true)) };
        let order = if cell.with(|held| diverges(held, generation, Some(&named))) {
            Order::End { reason: format!("Replaced by generation {generation}."), discard: true }
        } else {
            Order::GiveUp(named)
        };
        match self.command(&cell, order, Some(generation)).await {
            Err(HostError::Ended { .. }) => Ok(self.gone(id, generation, "", true)),
            outcome => outcome,
        }
    }
}

/// As `Microvms::has_diverged`.
fn diverges(held: &Held, generation: u64, named: Option<&SnapshotCopies>) -> bool {
    let asleep = held.journal.state == LocalState::Suspended;
    let asleep_with = held.shown.snapshot.as_ref().filter(|_| asleep);
    has_diverged((held.journal.generation, asleep_with), generation, named)
}
