//! The invariants, as code. Most are looked at when something happens; what must hold in the end is in `unrest`.

use std::collections::BTreeMap;
use std::fmt::Display;

use api::common::v1::Metering;
use host_agent::simulated::LocalState;
use model::SnapshotNumber;
use model::state::{MicrovmEvent, MicrovmState};
use scheduler::adapters::microvms as codec;
use scheduler::domain::microvm::{Intent, Microvm};
use tokio::time::Instant;

use super::machine::{Guest, Machine};
use super::world::{World, lock};

/// Prefix of the records of microVMs.
pub const RECORDS: &str = "/torpor/microvms/";
const USAGE: &str = "/torpor/usage/";
const HOSTS: &str = "/torpor/hosts/host-";

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub invariant: &'static str,
    pub story: String,
}

/// Where a generation was placed, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    host: String,
    at: Instant,
}

/// What is known of the world, beside what is in it.
#[derive(Debug, Default)]
pub struct Checker {
    pub broken: Option<Broken>,
    /// Where each generation of a microVM was placed.
    placements: BTreeMap<(String, u64), Placed>,
    /// When a host's machine lost what ran on it, last.
    hurt: BTreeMap<usize, Instant>,
    /// When a host's lease ended, last.
    unleased: BTreeMap<usize, Instant>,
    /// The guest in a snapshot.
    snapshots: BTreeMap<(String, SnapshotNumber), Guest>,
    /// What the snapshot had answered whose suspend was recorded last.
    acknowledged: BTreeMap<String, u64>,
    /// Ids whose records are gone.
    forgotten: BTreeMap<String, ()>,
    /// Calls of clients that have no answer yet.
    pub calls_open: u64,
    pub calls: u64,
    pub served: u64,
    pub suspends: u64,
    pub launches: u64,
}

impl Checker {
    pub fn broken(&mut self, invariant: &'static str, story: String) {
        self.broken.get_or_insert(Broken { invariant, story });
    }
}

/// Whether the table leads from one state to another by as many events as one observation stands for.
fn is_reachable(from: MicrovmState, to: MicrovmState) -> bool {
    let step = |state: MicrovmState| {
        MicrovmEvent::ALL.iter().filter_map(move |event| state.next(*event).ok()).collect::<Vec<_>>()
    };
    from == to || step(from).into_iter().any(|next| next == to || step(next).contains(&to))
}

fn shrinks(before: Option<Metering>, after: Option<Metering>) -> bool {
    let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
    after.largest(before) != after
}

impl World {
    /// A change of a key in etcd.
    pub fn check_write(&self, key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) {
        let key = String::from_utf8_lossy(key);
        if let Some(host) = key.strip_prefix(HOSTS).filter(|_| after.is_none()) {
            let host = host.parse().unwrap_or(usize::MAX);
            lock(&self.checker).unleased.insert(host, Instant::now());
        } else if let Some(id) = key.strip_prefix(RECORDS) {
            let read = |value: Option<&[u8]>| value.and_then(|value| codec::decode(value).ok());
            self.check_record(id, read(before).as_ref(), read(after).as_ref());
        } else if key.starts_with(USAGE)
            && let (Some(before), Some(after)) = (before, after)
        {
            let read = |value: &[u8]| <Metering as prost::Message>::decode(value).ok();
            if shrinks(read(before), read(after)) {
                self.broken("totals grow", format_args!("the total {key} shrank"));
            }
        }
    }

    fn check_record(&self, id: &str, before: Option<&Microvm>, after: Option<&Microvm>) {
        let Some(after) = after else {
            lock(&self.checker).forgotten.insert(id.to_owned(), ());
            if before.is_some_and(|before| before.state != MicrovmState::Terminated) {
                self.broken("a living record stays", format_args!("the record of {id} was deleted"));
            }
            return;
        };
        let place = format!("{} generation {}", after.placement.host, after.placement.generation);
        self.tell("record", format_args!("{id} {} on {place}: {}", after.state, after.state_reason));
        let key = (id.to_owned(), after.placement.generation);
        let host = after.placement.host.to_string();
        let elsewhere = {
            let mut checker = lock(&self.checker);
            let placed = Placed { host: host.clone(), at: Instant::now() };
            let placed = checker.placements.entry(key).or_insert(placed);
            (placed.host != host).then(|| placed.host.clone())
        };
        if let Some(elsewhere) = elsewhere {
            self.broken(
                "a generation is held by one host",
                format_args!("{id} is on {elsewhere} and {place}"),
            );
        }
        if after.state == MicrovmState::Suspended
            && let Some(copies) = &after.snapshot
        {
            let number = SnapshotNumber::new(copies.generation, copies.sequence);
            let mut checker = lock(&self.checker);
            if let Some(counter) = checker.snapshots.get(&(id.to_owned(), number)).map(|guest| guest.counter)
            {
                let known = checker.acknowledged.entry(id.to_owned()).or_default();
                *known = counter.max(*known);
            }
        }
        let Some(before) = before else {
            if lock(&self.checker).forgotten.contains_key(id) {
                self.broken("a record that is gone stays gone", format_args!("{id} is back"));
            }
            return;
        };
        if !is_reachable(before.state, after.state) {
            let (from, to) = (before.state, after.state);
            self.broken("states move along their tables", format_args!("{id} from {from} to {to}"));
        }
        if after.placement.generation < before.placement.generation {
            self.broken("generations rise", format_args!("{id} back to {place}"));
        }
        if shrinks(before.metering, after.metering)
            || shrinks(before.metering_counted, after.metering_counted)
        {
            self.broken("totals grow", format_args!("what {id} has used shrank"));
        }
        self.check_end(id, before, after);
    }

    /// What was launched ends because somebody asked, or because its host lost it.
    fn check_end(&self, id: &str, before: &Microvm, after: &Microvm) {
        let launched = !matches!(before.state, MicrovmState::Pending | MicrovmState::Terminated);
        if !launched || after.state != MicrovmState::Terminated {
            return;
        }
        let (host, generation) = (after.placement.host.as_str(), after.placement.generation);
        let index = host.trim_start_matches("host-").parse().unwrap_or(usize::MAX);
        if self.serves(index, id) {
            let story = format!("{id} has ended ({}), and {host} serves it", after.state_reason);
            self.broken("nobody serves what has ended", story);
        }
        let explained = {
            let checker = lock(&self.checker);
            let placed = checker.placements.get(&(id.to_owned(), generation)).map(|placed| placed.at);
            let since = |when: Option<&Instant>| when.copied() >= placed;
            let given_up = after.state_reason.starts_with("Host ") && since(checker.unleased.get(&index));
            given_up || since(checker.hurt.get(&index))
        };
        if after.intent == Intent::Live
            && before.has_recovery_point()
            && after.state_reason.starts_with("Host ")
        {
            let story = format!("{id} on {host} ended ({}), and S3 has its point", after.state_reason);
            self.broken("what has a recovery point goes back to it", story);
        }
        if after.intent == Intent::Live && !explained {
            let story = format!("{id}, {} on {host}, ended: {}", before.state, after.state_reason);
            self.broken("no session ends unasked", story);
        }
    }

    /// A host's machine has lost what ran on it.
    pub fn note_hurt(&self, host: usize) {
        lock(&self.checker).hurt.insert(host, Instant::now());
    }

    /// The record of a microVM as it is.
    pub fn record(&self, id: &str) -> Option<Microvm> {
        codec::decode(&self.keys.value(&format!("{RECORDS}{id}"))?).ok()
    }

    pub fn records(&self) -> Vec<(String, Microvm)> {
        let all = self.keys.under(RECORDS).into_iter();
        all.filter_map(|(key, value)| Some((key[RECORDS.len()..].to_owned(), codec::decode(&value).ok()?)))
            .collect()
    }

    /// A snapshot is whole on a disk, says its host.
    pub fn note_snapshot(&self, id: &str, number: SnapshotNumber, guest: Guest) {
        lock(&self.checker).suspends += 1;
        self.note_point(id, number, guest);
    }

    /// The same of a recovery point: the guest runs on.
    pub fn note_point(&self, id: &str, number: SnapshotNumber, guest: Guest) {
        lock(&self.checker).snapshots.insert((id.to_owned(), number), guest);
    }

    /// The engine of a microVM that sleeps has ended: what its guest did after the snapshot is lost.
    pub fn check_asleep(&self, id: &str, number: SnapshotNumber, guest: &Guest) {
        let slept = lock(&self.checker).snapshots.get(&(id.to_owned(), number)).cloned();
        if let Some(slept) = slept.filter(|slept| slept != guest) {
            let story = format!("{id} went on after {number}: {slept:?}, and then {guest:?}");
            self.broken("SUSPENDED means nothing runs", story);
        }
    }

    /// S3 has lost a snapshot.
    pub fn check_removed(&self, id: &str, number: SnapshotNumber) {
        let Some(record) = self.record(id).filter(|record| record.state != MicrovmState::Terminated) else {
            return;
        };
        let named = record.snapshot.filter(|copies| copies.remote);
        if named.is_some_and(|copies| SnapshotNumber::new(copies.generation, copies.sequence) == number) {
            let story = format!("{number} of {id} is gone, and its record names it");
            self.broken("nothing is removed from S3 that a record may name", story);
        }
    }

    /// A guest runs from now on, under a generation.
    pub fn check_started(&self, id: &str, host: usize, generation: u64, counter: u64) {
        let placed = lock(&self.checker).placements.get(&(id.to_owned(), generation)).cloned();
        let placed = placed.map(|placed| placed.host);
        if placed.as_ref().is_some_and(|placed| *placed != format!("host-{host}")) {
            let story = format!("{id} generation {generation} runs on host-{host}, not on {placed:?}");
            self.broken("a generation is held by one host", story);
        }
        let acknowledged = lock(&self.checker).acknowledged.get(id).copied().unwrap_or(0);
        if counter < acknowledged {
            let story = format!("{id} woke on host-{host} with {counter} of {acknowledged} requests");
            self.broken("no acknowledged suspend is lost", story);
        }
        self.check_alone(id);
    }

    /// At most one host would answer a request.
    pub fn check_alone(&self, id: &str) {
        let serving: Vec<usize> = self
            .machines
            .iter()
            .map(|machine| machine.index)
            .filter(|index| self.serves(*index, id))
            .collect();
        if serving.len() > 1 {
            self.broken("no two hosts run one microVM", format_args!("{id} is served by hosts {serving:?}"));
        }
    }

    /// Why the world is not at rest, as it must be once faults have stopped for long enough.
    pub fn unrest(&self) -> Option<Broken> {
        let open = lock(&self.checker).calls_open;
        if open > 0 {
            return found("every request has exactly one answer", format_args!("{open} calls have none"));
        }
        let records = self.records();
        records
            .iter()
            .find_map(|(id, record)| self.unrest_of_record(id, record))
            .or_else(|| self.bucket.ids().iter().find_map(|id| self.unrest_in_s3(id)))
            .or_else(|| {
                let mut machines = self.machines.iter().filter(|machine| !machine.is_gone());
                machines.find_map(|machine| self.unrest_of_host(machine))
            })
    }

    fn unrest_in_s3(&self, id: &str) -> Option<Broken> {
        let alive = self.record(id).is_some_and(|record| record.state != MicrovmState::Terminated);
        if alive {
            return None;
        }
        found("nothing is left behind", format_args!("S3 has snapshots of {id}, which has ended"))
    }

    fn unrest_of_host(&self, machine: &Machine) -> Option<Broken> {
        let index = machine.index;
        let held = self.held(index);
        for (id, state) in &held {
            let here = |record: &Microvm| record.placement.host.as_str() == format!("host-{index}");
            let record = self.record(id);
            if !record.is_some_and(|record| here(&record) && record.state != MicrovmState::Terminated) {
                return found("nothing is left behind", format_args!("host-{index} holds {id}, {state:?}"));
            }
        }
        let (engines, slots) = {
            let running = lock(&machine.running);
            (running.engines.len(), running.slots.len())
        };
        let awake = held.iter().filter(|(_, state)| *state == LocalState::Running).count();
        if engines == awake && slots == awake {
            return None;
        }
        let story = format!("host-{index}: {awake} microVMs run, {engines} engines, {slots} slots");
        found("SUSPENDED means nothing runs", story)
    }

    fn unrest_of_record(&self, id: &str, record: &Microvm) -> Option<Broken> {
        let place = format!("{} generation {}", record.placement.host, record.placement.generation);
        let index = record.placement.host.as_str().trim_start_matches("host-").parse().unwrap_or(usize::MAX);
        let held = self.held(index).into_iter().find(|(held, _)| held == id).map(|(_, state)| state);
        let gone = self.machines.get(index).is_none_or(|machine| machine.is_gone());
        match record.state {
            MicrovmState::Terminated => None,
            MicrovmState::Running if held == Some(LocalState::Running) => None,
            MicrovmState::Suspended => {
                let copies = record.snapshot.clone().unwrap_or_default();
                let number = SnapshotNumber::new(copies.generation, copies.sequence);
                let remote = copies.remote && self.bucket.holds(id, number);
                if copies.remote && !remote {
                    return found("what a record names is there", format!("S3 has no {number} of {id}"));
                }
                let local = copies.local && held == Some(LocalState::Suspended);
                if local || remote || gone {
                    return None;
                }
                let story = format!("{id} sleeps on {place}, which has it {held:?}; {copies:?}");
                found("what a record names is there", story)
            }
            state => {
                let story = format!("{id} is {state} on {place}, which has it {held:?}");
                found("everything comes to rest", story)
            }
        }
    }
}

fn found(invariant: &'static str, story: impl Display) -> Option<Broken> {
    Some(Broken { invariant, story: story.to_string() })
}
