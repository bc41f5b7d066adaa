//! Carries out what a simulated host is asked for: the stand-in for the host-agent's drivers. Admission, fences and states are the
//! product's tables; the order of the durable steps is that of `services/host-agent/src/microvm`, and between any two of them the
//! agent may die.

use std::sync::Arc;
use std::time::Duration;

use api::microvm::v1::SnapshotCopies;
use host_agent::simulated::{
    Admission, Ask, Cause, Event, Fence, HostError, Journal, LocalState, Process as Recorded, Sample, Spec,
    Transition, admit, fence, is_spare, observed,
};
use model::SnapshotNumber;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::BASELINE_MIB;
use super::agent::{Agent, Cell, Held, Outcome};
use super::machine::{Guest, Snapshot};
use super::plan::Plant;
use super::world::lock;

/// What a microVM is asked for.
#[derive(Clone)]
pub enum Order {
    Launch,
    Suspend(Cause),
    Checkpoint { asked: bool },
    Resume(Option<Box<(Spec, Option<SnapshotCopies>)>>),
    End { reason: String, discard: bool },
    GiveUp(SnapshotCopies),
}

impl Order {
    fn ask(&self) -> Ask {
        match self {
            Self::Launch => Ask::Launch,
            Self::Suspend(_) => Ask::Suspend,
            Self::Checkpoint { .. } => Ask::KeepAwake,
            Self::Resume(_) => Ask::Resume,
            Self::End { .. } => Ask::Terminate,
            Self::GiveUp(_) => Ask::GiveUp,
        }
    }
}

/// How a command is met.
enum Met {
    Answered(Box<Outcome>),
    /// Shares the outcome of what is under way, or asks again when that has ended.
    Waits(oneshot::Receiver<Outcome>, bool),
    Begins(oneshot::Receiver<Outcome>),
}

impl Met {
    fn answered(outcome: Outcome) -> Self {
        Self::Answered(Box::new(outcome))
    }
}

/// Waits with those who wait already.
fn wait(held: &mut Held) -> oneshot::Receiver<Outcome> {
    let (sender, receiver) = oneshot::channel();
    held.under_way.get_or_insert_default().push(sender);
    receiver
}

impl Agent {
    /// Gives a microVM a command and waits for its outcome.
    pub async fn command(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        order: Order,
        generation: Option<u64>,
    ) -> Outcome {
        loop {
            let met = cell.with(|held| self.meet(held, &order, generation));
            let (receiver, shares) = match met {
                Met::Answered(outcome) => return *outcome,
                Met::Waits(receiver, shares) => (receiver, shares),
                Met::Begins(receiver) => {
                    let (agent, cell, order) = (Arc::clone(self), Arc::clone(cell), order.clone());
                    self.process.spawn(async move { agent.carry_out(cell, order).await });
                    (receiver, true)
                }
            };
            let Ok(outcome) = receiver.await else {
                return Err(HostError::Internal("the driver is gone".to_owned()));
            };
            if shares {
                return outcome;
            }
        }
    }

    fn meet(&self, held: &mut Held, order: &Order, generation: Option<u64>) -> Met {
        let offered = generation.unwrap_or(held.journal.generation);
        let mut against = fence(held.journal.generation, offered);
        if against == Fence::Stale && self.world.is_planted(Plant::AnyGeneration) {
            against = Fence::Same;
        }
        if against == Fence::Stale {
            let held = held.journal.generation;
            return Met::answered(Err(HostError::StaleGeneration { held, offered }));
        }
        let under_way = held.under_way.is_some();
        if !under_way && against == Fence::Newer {
            held.journal.generation = offered;
            held.journal.meter.begin_placement();
            if !matches!(order, Order::Resume(_) | Order::End { .. } | Order::GiveUp(_)) {
                held.journal.observation += 1;
                held.shown = observed(&held.spec.id, &held.journal, 0);
            }
        }
        match admit(held.journal.state, order.ask()) {
            Admission::Already => Met::answered(Ok(held.shown.clone())),
            Admission::Ended => Met::answered(Err(HostError::Ended { reason: held.journal.reason.clone() })),
            Admission::Asleep => Met::answered(Err(HostError::asleep())),
            Admission::Awake => Met::answered(Err(HostError::awake())),
            Admission::Interrupt if under_way => {
                if let Order::End { reason, discard } = order {
                    held.asked_end = Some((reason.clone(), *discard));
                }
                held.cancel.cancel();
                Met::Waits(wait(held), false)
            }
            Admission::Join if under_way => Met::Waits(wait(held), against == Fence::Same),
            Admission::Begin | Admission::After if under_way => Met::Waits(wait(held), false),
            Admission::Begin | Admission::Join | Admission::After | Admission::Interrupt => {
                held.cancel = CancellationToken::new();
                Met::Begins(wait(held))
            }
        }
    }

    pub async fn carry_out(self: Arc<Self>, cell: Arc<Cell>, order: Order) {
        let outcome = match order {
            Order::Launch => self.launch(&cell).await,
            Order::Suspend(cause) => self.suspend(&cell, cause).await,
            Order::Checkpoint { asked } => self.checkpoint(&cell, asked).await,
            Order::Resume(order) => self.wake(&cell, order.map(|order| *order)).await,
            Order::End { reason, discard } => {
                self.end(&cell, &reason, discard).await;
                Ok(())
            }
            Order::GiveUp(named) => self.give_up(&cell, &named).await,
        };
        let asleep = cell.state() == LocalState::Suspended;
        let (waiters, outcome) = cell.with(|held| {
            let outcome = outcome.map(|()| held.shown.clone());
            (held.under_way.take().unwrap_or_default(), outcome)
        });
        for waiter in waiters {
            let _ = waiter.send(outcome.clone());
        }
        if asleep {
            self.after_suspend(&cell).await;
        }
    }

    /// Writes to the disk take their time and may fail.
    pub async fn write(&self) -> Result<(), HostError> {
        self.world.step(&self.process).await;
        let (slow, failing) = {
            let disk = lock(&self.machine.disk);
            (disk.slow.max(1), disk.failing)
        };
        let (micros, fails) =
            self.world.draw(|chance| (chance.within(200..2_000), chance.per_mille(failing)));
        tokio::time::sleep(Duration::from_micros(micros) * slow).await;
        self.world.step(&self.process).await;
        if fails { Err(HostError::Internal("the disk does not write".to_owned())) } else { Ok(()) }
    }

    /// Writes the journal; a power cut may take it back.
    pub async fn save(&self, cell: &Cell) -> Result<(), HostError> {
        self.write().await?;
        self.save_now(cell);
        Ok(())
    }

    pub fn save_now(&self, cell: &Cell) {
        let journal = cell.with(|held| {
            held.journal.revision += 1;
            held.journal.clone()
        });
        let synced = self.world.draw(|chance| chance.per_mille(400));
        let mut disk = lock(&self.machine.disk);
        let directory = disk.microvms.entry(cell.id.clone()).or_default();
        if synced {
            directory.synced = Some(journal.clone());
        }
        directory.journal = Some(journal);
    }

    fn sample(&self, held: &mut Held) {
        let used = held.process.and_then(|process| self.machine.engine(process, |engine| engine.cpu_seconds));
        let sample = Sample { cpu_seconds: used.unwrap_or(0.0), anonymous_bytes: 0 };
        held.journal.meter.sample(sample, self.uptime_ms(), BASELINE_MIB);
    }

    /// Starts an engine for a guest, which does not run before this returns.
    pub async fn start_engine(
        &self,
        cell: &Cell,
        guest: Guest,
        time: std::ops::Range<u64>,
    ) -> Result<(), HostError> {
        let started = self.machine.start(guest);
        let (process, slot) = started.ok_or_else(|| HostError::Capacity("no slot is free".to_owned()))?;
        cell.with(|held| {
            held.process = Some(process);
            held.journal.process = Some(Recorded { pid: process, start_time: 0 });
            held.journal.slot = Some(slot);
        });
        let cancel = cell.with(|held| held.cancel.clone());
        let time = self.world.draw(|chance| chance.millis(time));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(HostError::terminating()),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// The guest runs: journal first, then it is open to requests.
    pub async fn run(&self, cell: &Cell, kind: &str) -> Result<(), HostError> {
        let process = cell.with(|held| held.process).unwrap_or(0);
        self.machine.engine(process, |engine| engine.go_on());
        // What the hook and the repair of its identity take.
        let time = self.world.draw(|chance| chance.millis(1..40));
        tokio::time::sleep(time).await;
        if cell.with(|held| held.cancel.is_cancelled()) {
            return Err(HostError::terminating());
        }
        self.write().await?;
        let counter = self.machine.engine(process, |engine| engine.guest.counter).unwrap_or(0);
        let generation = cell.with(|held| {
            held.journal.meter.begin_engine(self.uptime_ms());
            self.enter(held, Event::IsRunning, "");
            let cause = Cause::requested();
            held.journal.transition = Transition { kind: kind.to_owned(), phases: Vec::new(), cause };
            held.journal.generation
        });
        self.save_now(cell);
        self.publish(cell);
        self.world.check_started(&cell.id, self.index, generation, counter);
        Ok(())
    }

    /// Ends the engine and gives its slot back.
    pub async fn release(&self, cell: &Cell) {
        let process = cell.with(|held| {
            let process = held.process.take();
            held.journal.no_engine();
            process
        });
        if let Some(process) = process {
            self.world.step(&self.process).await;
            let time = self.world.draw(|chance| chance.millis(1..30));
            tokio::time::sleep(time).await;
            let guest = self.machine.stop(process);
            let slept = cell
                .with(|held| (held.journal.state == LocalState::Suspended).then(|| held.journal.number()));
            if let (Some(number), Some(guest)) = (slept, guest) {
                self.world.check_asleep(&cell.id, number, &guest);
            }
        }
    }

    /// When it fails, nothing of the microVM is left, and the launch can be repeated here or elsewhere.
    async fn launch(self: &Arc<Self>, cell: &Arc<Cell>) -> Result<(), HostError> {
        let launched = async {
            self.save(cell).await?;
            self.start_engine(cell, Guest::default(), 10..120).await?;
            self.save(cell).await?;
            self.run(cell, "launch").await
        };
        let launched = launched.await;
        lock(&self.world.checker).launches += u64::from(launched.is_ok());
        if let Err(failure) = launched {
            self.end_unstarted(cell, &failure).await;
            return Err(failure);
        }
        Ok(())
    }

    async fn suspend(&self, cell: &Arc<Cell>, cause: Cause) -> Result<(), HostError> {
        cell.with(|held| self.enter(held, Event::SuspendBegan, ""));
        let began = self.save(cell).await;
        self.publish(cell);
        let process = cell.with(|held| held.process).unwrap_or(0);
        let written = match began {
            Ok(()) => self.write_snapshot(cell, process).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = written {
            self.machine.engine(process, |engine| engine.go_on());
            cell.with(|held| self.enter(held, Event::IsRunning, &failure.to_string()));
            self.save_now(cell);
            self.publish(cell);
            return Err(failure);
        }
        cell.with(|held| {
            self.sample(held);
            self.enter(held, Event::IsSuspended, "");
            let sequence = held.journal.sequence + 1;
            held.journal.slept(sequence, 4096, self.now_ms());
            held.journal.transition = Transition { kind: "suspend".to_owned(), phases: Vec::new(), cause };
        });
        self.publish(cell);
        self.release(cell).await;
        self.publish(cell);
        Ok(())
    }

    /// Pause, files, manifest.
    async fn write_snapshot(&self, cell: &Arc<Cell>, process: u32) -> Result<(), HostError> {
        let time = self.world.draw(|chance| chance.millis(1..30));
        tokio::time::sleep(time).await;
        let runs_on = self.world.is_planted(Plant::RunsAsleep);
        let guest = self.machine.engine(process, |engine| {
            if !runs_on {
                engine.pause();
            }
            engine.guest_now()
        });
        let guest = guest.ok_or_else(|| HostError::Engine("the engine is gone".to_owned()))?;
        let number =
            cell.with(|held| SnapshotNumber::new(held.journal.generation, held.journal.sequence + 1));
        if self.world.is_planted(Plant::SuspendEarly) {
            self.world.note_snapshot(&cell.id, number, guest);
            return Ok(());
        }
        self.write().await?;
        self.write().await?;
        let journal = cell.with(|held| {
            held.journal.revision += 1;
            let mut journal = held.journal.clone();
            journal.state = LocalState::Suspended;
            journal.state_since_ms = self.now_ms();
            journal.slept(number.sequence, 4096, self.now_ms());
            journal
        });
        self.world.note_snapshot(&cell.id, number, guest.clone());
        // From here on the session is the snapshot, whoever dies.
        self.write_manifest(cell, number, guest, journal).await;
        Ok(())
    }

    /// Makes a snapshot whole, with the journal as it is then.
    pub async fn write_manifest(&self, cell: &Cell, number: SnapshotNumber, guest: Guest, journal: Journal) {
        let snapshot = Snapshot { generation: number.generation, guest, journal: Some(journal) };
        {
            let mut disk = lock(&self.machine.disk);
            let directory = disk.microvms.entry(cell.id.clone()).or_default();
            directory.snapshots.insert(number.sequence, snapshot);
        }
        self.world.step(&self.process).await;
    }

    /// What nobody waits for.
    async fn after_suspend(self: &Arc<Self>, cell: &Arc<Cell>) {
        let _ = self.save(cell).await;
        self.keep_latest_snapshot(cell);
        self.start_upload(cell);
    }

    pub fn keep_latest_snapshot(&self, cell: &Cell) {
        let kept = cell.with(|held| held.journal.sequence);
        if let Some(directory) = lock(&self.machine.disk).microvms.get_mut(&cell.id)
            && !self.world.is_planted(Plant::WakesOlder)
        {
            directory.snapshots.retain(|sequence, _| *sequence == kept);
        }
    }

    /// An end that was asked for meanwhile waits for this, and finds it gone: it is the one to record.
    pub async fn end_unstarted(&self, cell: &Arc<Cell>, failure: &HostError) {
        let asked = cell.with(|held| held.asked_end.take());
        let (reason, discard) = asked.unwrap_or_else(|| (failure.to_string(), true));
        self.end(cell, &reason, discard).await;
    }

    /// As `driver::give_up`.
    async fn give_up(&self, cell: &Arc<Cell>, named: &SnapshotCopies) -> Result<(), HostError> {
        let held = cell.with(|held| observed(&held.spec.id, &held.journal, 0)).snapshot;
        if !is_spare(held.as_ref(), named) {
            return Err(HostError::Conflict("it sleeps with another snapshot".to_owned()));
        }
        self.end(cell, "It is placed elsewhere.", true).await;
        Ok(())
    }

    pub async fn end(&self, cell: &Arc<Cell>, reason: &str, discard: bool) {
        cell.with(|held| {
            self.enter(held, Event::EndBegan, reason);
            held.journal.discard = discard;
            held.uploading.cancel();
        });
        let _ = self.save(cell).await;
        self.publish(cell);
        cell.with(|held| self.sample(held));
        if !self.world.is_planted(Plant::EngineLeft) {
            self.release(cell).await;
        }
        self.world.step(&self.process).await;
        self.bury(cell, reason, discard);
        cell.with(|held| self.enter(held, Event::IsGone, reason));
        self.publish(cell);
        let mut live = lock(&self.live);
        if live.get(&cell.id).is_some_and(|held| Arc::ptr_eq(held, cell)) {
            live.remove(&cell.id);
        }
        drop(live);
        self.changed();
    }
}
