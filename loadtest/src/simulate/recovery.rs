//! What a simulated host's agent does with what an earlier one left: the product's table, on a simulated machine.

use std::sync::Arc;

use host_agent::simulated::{
    Decision, EndReport, EngineFound, Event, LocalState, LostBecause, SnapshotFound, Tombstone, decide,
};

use super::BASELINE_MIB;
use super::agent::{Agent, Cell};
use super::world::lock;

/// Observations that a journal may not have.
const OBSERVATIONS_UNSAVED: u64 = 16;

impl Agent {
    /// What an earlier agent left, put into a true state.
    pub fn recover(self: &Arc<Self>) {
        for (id, tombstone) in &lock(&self.machine.disk).ended {
            lock(&self.ended).insert(id.clone(), EndReport::unknown(tombstone.clone()));
        }
        let ids: Vec<String> = lock(&self.machine.disk).microvms.keys().cloned().collect();
        let mut kept = Vec::new();
        for id in &ids {
            self.recover_one(id, &mut kept);
        }
        // Processes that no journal names belong to nobody.
        let left: Vec<u32> = {
            let running = lock(&self.machine.running);
            running.engines.keys().filter(|process| !kept.contains(*process)).copied().collect()
        };
        for process in left {
            self.machine.stop(process);
        }
    }

    fn recover_one(self: &Arc<Self>, id: &str, kept: &mut Vec<u32>) {
        let Some(directory) = lock(&self.machine.disk).microvms.get(id).cloned() else { return };
        let copies = directory.snapshots.values().filter_map(|snapshot| snapshot.journal.clone());
        let latest = copies.chain(directory.journal.clone()).max_by_key(|journal| journal.revision);
        let Some((mut journal, spec)) =
            latest.and_then(|journal| Some((journal.clone(), journal.spec().ok()?)))
        else {
            self.world.tell(self.process.node, format_args!("{id} cannot be read and is put aside"));
            lock(&self.machine.disk).microvms.remove(id);
            lock(&self.unreadable).push(id.to_owned());
            return;
        };
        if let Some(snapshot) = directory.snapshots.get(&journal.sequence) {
            journal.complete(snapshot.generation);
        }
        let process = journal.process.map(|process| process.pid);
        let paused = process.and_then(|process| self.machine.engine(process, |engine| engine.is_paused()));
        let found = match paused {
            None => EngineFound::Dead,
            Some(true) => EngineFound::Paused,
            Some(false) => EngineFound::Running,
        };
        let snapshot = if directory.snapshots.contains_key(&journal.sequence) && journal.sequence > 0 {
            SnapshotFound::Local
        } else if journal.remote.is_some() || journal.sequence == 0 {
            SnapshotFound::Remote
        } else {
            SnapshotFound::Missing
        };
        let decision = decide(journal.state, found, snapshot, journal.has_points(&spec));
        let line =
            format!("finds {id} {:?}, engine {found:?}, snapshot {snapshot:?}: {decision:?}", journal.state);
        self.world.tell(self.process.node, line);
        journal.observation = (journal.observation + OBSERVATIONS_UNSAVED).max(self.now_ms());
        let cell = Cell::new(spec, journal);
        self.act_on(&cell, decision, process, kept);
    }

    fn act_on(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        decision: Decision,
        process: Option<u32>,
        kept: &mut Vec<u32>,
    ) {
        match decision {
            Decision::Remove => {
                lock(&self.machine.disk).microvms.remove(&cell.id);
            }
            Decision::GoBack => self.go_back(cell),
            Decision::ReportTerminated(cause) => {
                let (reason, discard) = cell.with(|held| (held.journal.reason.clone(), held.journal.discard));
                match cause {
                    LostBecause::EndHadBegun => self.bury(cell, &reason, discard),
                    LostBecause::EngineLost => self.bury(cell, "The host lost its engine.", discard),
                    LostBecause::SnapshotLost => self.bury(cell, "The host lost its snapshot.", discard),
                }
            }
            Decision::BackToSuspended => {
                cell.with(|held| {
                    if held.journal.state == LocalState::Waking {
                        self.enter(held, Event::IsSuspended, "");
                    }
                    held.journal.no_engine();
                });
                self.keep(cell);
            }
            Decision::Adopt | Decision::ResumeInPlace => {
                let Some(process) = process else { return };
                kept.push(process);
                self.machine.engine(process, |engine| engine.go_on());
                cell.with(|held| {
                    if held.journal.state == LocalState::Suspending {
                        self.enter(held, Event::IsRunning, "");
                    }
                    held.process = Some(process);
                    let ran_on = decision == Decision::Adopt;
                    held.journal.meter.adopt_engine(self.uptime_ms(), ran_on, BASELINE_MIB);
                });
                self.keep(cell);
            }
        }
    }

    /// Goes on with a microVM that was found.
    pub fn keep(self: &Arc<Self>, cell: &Arc<Cell>) {
        self.save_now(cell);
        self.publish(cell);
        lock(&self.live).insert(cell.id.clone(), Arc::clone(cell));
    }

    /// Writes its end down instead of it.
    pub fn bury(&self, cell: &Cell, reason: &str, discard: bool) {
        let mut disk = lock(&self.machine.disk);
        disk.microvms.remove(&cell.id);
        if discard {
            return;
        }
        let tombstone = cell.with(|held| Tombstone {
            generation: held.journal.generation,
            reason: reason.to_owned(),
            ended_ms: self.now_ms(),
            observation: held.journal.observation + 1,
            meter: held.journal.meter,
        });
        disk.ended.insert(cell.id.clone(), tombstone.clone());
        lock(&self.ended).insert(cell.id.clone(), EndReport::unknown(tombstone));
    }
}
