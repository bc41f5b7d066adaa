//! A simulated host's agent: what it holds, how it begins, and what it tells the scheduler.
//!
//! The product's own: admission, fences, the journal and the tombstones, recovery, metering, what is observed, the lease and the
//! reporter. A stand-in: what carries a transition out (`driver`), since engines, slots and files are simulated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use api::common::v1::Architecture;
use api::host::v1::{HostSpec, HostUsage, ObservedMicrovm, RecordedMicrovm};
use api::hostagent::v1::host_agent_service_server::HostAgentServiceServer;
use api::microvm::v1::MicrovmState;
use backoff::Backoff;
use clock::{Clock, Steady};
use futures::future::BoxFuture;
use host_agent::simulated::{
    Dropped, EndReport, Event, Fence, Holdings, HostError, Journal, LeaseSeat, LocalState, Remote, Reporter,
    Signals, Spec, Standing, Tombstone, Vouches, fence, keep_lease, next, observed, observed_end,
};
use model::SnapshotNumber;
use records::Store;
use rpc::{Identity, Replicas, Role};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::driver::Order;
use super::etcd::Connection;
use super::machine::{Machine, SLOTS};
use super::net::dialer;
use super::plan::Plant;
use super::service::Service;
use super::world::{Node, Process, Shared, World, lock};
use super::{ENGINE, ROOT, s3};

/// Life of a host's lease beyond its last keepalive.
const LEASE: Duration = Duration::from_secs(3);
/// How often the ended are looked through.
const TIDY: Duration = Duration::from_secs(5);
/// Memory of a host, MiB.
const MEMORY_MIB: u64 = 8192;

/// The answer to a command.
pub type Outcome = Result<ObservedMicrovm, HostError>;
/// Those who wait for a transition's outcome, in their order.
pub type Waiters = Vec<oneshot::Sender<Outcome>>;

/// A microVM on a host, as its agent has it in memory.
pub struct Held {
    pub spec: Spec,
    pub journal: Journal,
    /// What others were shown last.
    pub shown: ObservedMicrovm,
    /// Its engine's process.
    pub process: Option<u32>,
    /// While a transition is under way.
    pub under_way: Option<Waiters>,
    pub cancel: CancellationToken,
    /// The end that interrupted what is under way, and whether it is not to be reported.
    pub asked_end: Option<(String, bool)>,
    /// The newest generation that must be dropped.
    pub stale: u64,
    pub removing: bool,
    pub uploading: CancellationToken,
    /// Since when the next point is waited for.
    pub interval: Option<Instant>,
}

pub struct Cell {
    pub id: String,
    pub held: Mutex<Held>,
}

impl Cell {
    pub fn new(spec: Spec, journal: Journal) -> Arc<Self> {
        let id = spec.id.to_string();
        let shown = observed(&spec.id, &journal, 0);
        let held = Held {
            spec,
            journal,
            shown,
            process: None,
            under_way: None,
            cancel: CancellationToken::new(),
            asked_end: None,
            stale: 0,
            removing: false,
            uploading: CancellationToken::new(),
            interval: None,
        };
        Arc::new(Self { id, held: Mutex::new(held) })
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut lock(&self.held))
    }

    pub fn state(&self) -> LocalState {
        self.with(|held| held.journal.state)
    }
}

pub struct Agent {
    pub world: Shared,
    pub process: Process,
    pub machine: Arc<Machine>,
    pub index: usize,
    pub clock: Clock,
    steady: Steady,
    pub live: Mutex<BTreeMap<String, Arc<Cell>>>,
    pub ended: Mutex<BTreeMap<String, EndReport>>,
    dropped: Mutex<Dropped>,
    pub unreadable: Mutex<Vec<String>>,
    draining: AtomicBool,
    changes: watch::Sender<u64>,
    pub standing: watch::Sender<Standing>,
}

pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Agent {
    /// Starts the agent of a machine: recovers what it finds there, then serves and reports.
    pub fn start(world: &Shared, index: usize) {
        let process = Process::new(Node::Host(index));
        let clock = world.clock(Node::Host(index));
        let agent = Arc::new(Self {
            world: Arc::clone(world),
            machine: Arc::clone(&world.machines[index]),
            index,
            steady: Steady::new(clock.clone(), None),
            clock,
            process: process.clone(),
            live: Mutex::default(),
            ended: Mutex::default(),
            dropped: Mutex::default(),
            unreadable: Mutex::default(),
            draining: AtomicBool::new(false),
            changes: watch::Sender::new(0),
            standing: watch::Sender::new(Standing::default()),
        });
        world.tell(process.node, "starts");
        agent.recover();
        lock(&world.agents).insert(index, Arc::clone(&agent));
        world.serve(&process, Routes::new(HostAgentServiceServer::new(Service(Arc::clone(&agent)))));
        let spec = agent.spec();
        let store = Store::over(Arc::new(Connection::new(world, &process)), ROOT);
        let seat = LeaseSeat::default();
        process.spawn(keep_lease(store, spec.clone(), LEASE, (agent.standing.clone(), Arc::clone(&seat))));
        let schedulers: Vec<String> =
            (0..world.plan.schedulers).map(|index| Node::Scheduler(index).address()).collect();
        let dialer = dialer(world, &process, Identity::of_host(&spec.host_id));
        let vouchers = if world.plan.vouches { schedulers.clone() } else { Vec::new() };
        let vouches = Vouches::new(
            (&spec.host_id, &agent.clock),
            (&agent.standing, &seat, LEASE),
            (dialer.clone(), &vouchers),
        );
        let (Ok(vouches), Ok(schedulers)) = (vouches, Replicas::new(dialer, &schedulers, Role::Scheduler))
        else {
            return;
        };
        if world.plan.vouches {
            process.spawn(vouches.keep());
        }
        let signals = Signals {
            clock: agent.clock.clone(),
            changes: agent.changes.clone(),
            standing: agent.standing.clone(),
            pauses: Backoff::new(Duration::from_millis(200), Duration::from_secs(2)),
            vouchers,
        };
        process.spawn(Reporter::new(signals, Arc::clone(&agent), spec, schedulers).run());
        process.spawn(Arc::clone(&agent).keep_tidy());
        process.spawn(Arc::clone(&agent).fall_asleep());
        process.spawn(Arc::clone(&agent).make_points());
        for cell in lock(&agent.live).values() {
            agent.start_upload(cell);
        }
    }

    fn spec(&self) -> HostSpec {
        HostSpec {
            host_id: self.process.node.to_string(),
            grpc_address: self.process.node.address(),
            tunnel_address: self.process.node.address(),
            architecture: Architecture::X8664.into(),
            chipset: "EMULATED".to_owned(),
            engines: vec![ENGINE.to_owned()],
            platform_fingerprint: "simulated".to_owned(),
            memory_capacity_mib: MEMORY_MIB,
            slot_capacity: SLOTS,
            agent_version: String::new(),
            lease: 0,
        }
    }

    pub fn now(&self) -> SystemTime {
        self.steady.now()
    }

    pub fn now_ms(&self) -> u64 {
        unix_ms(self.now())
    }

    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.clock.uptime().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn is_fenced(&self) -> bool {
        self.standing.borrow().is_fenced() && !self.world.is_planted(Plant::ServesUnleased)
    }

    pub fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn get(&self, id: &str) -> Option<Arc<Cell>> {
        lock(&self.live).get(id).cloned()
    }

    /// What somebody who does not make it asks something of.
    pub fn held(&self, id: &str) -> Result<Arc<Cell>, HostError> {
        self.get(id).ok_or_else(|| match lock(&self.ended).get(id) {
            Some(entry) => HostError::Ended { reason: entry.tombstone.reason.clone() },
            None => HostError::NotHere { id: id.to_owned() },
        })
    }

    /// Whether a request for a microVM would get to its guest now.
    pub fn serves(&self, id: &str) -> bool {
        let Some(cell) = self.get(id) else { return false };
        let open = |held: &mut Held| {
            held.journal.state == LocalState::Running && held.stale < held.journal.generation
        };
        !self.is_fenced() && cell.with(open)
    }

    /// Enters a state by an event, which must be possible.
    pub fn enter(&self, held: &mut Held, event: Event, reason: &str) {
        let from = held.journal.state;
        let Some(to) = next(from, event) else {
            let story = format!("{event:?} in {from:?} of {} on {}", held.spec.id, self.process.node);
            return self.world.broken("states move along their tables", story);
        };
        held.journal.state = to;
        reason.clone_into(&mut held.journal.reason);
        held.journal.state_since_ms = self.now_ms();
        let generation = held.journal.generation;
        let line = format!("{} generation {generation} {from:?} -> {to:?} {reason}", held.spec.id);
        self.world.tell(self.process.node, line);
    }

    /// Numbers a new observation and shows it.
    pub fn publish(&self, cell: &Cell) {
        cell.with(|held| {
            held.journal.observation += 1;
            held.shown = observed(&held.spec.id, &held.journal, 0);
        });
        self.changed();
    }

    /// As `Microvms::note_dropped`.
    pub fn note_dropped(&self, id: &str, generation: u64) {
        lock(&self.dropped).note(id, generation, self.clock.uptime());
    }

    /// As `Host::check_lease`.
    pub fn check_lease(&self, sent_under: i64) -> Result<(), HostError> {
        let counts = sent_under == 0 || self.standing.borrow().counts(sent_under);
        counts.then_some(()).ok_or(HostError::LeaseChanged)
    }

    /// A microVM that ended or was dropped under this or a newer generation never starts again.
    pub fn refuse_ended(&self, id: &str, generation: u64) -> Result<(), HostError> {
        if lock(&self.dropped).is_late(id, generation, self.clock.uptime()) {
            return Err(HostError::NotHere { id: id.to_owned() });
        }
        let mut ended = lock(&self.ended);
        let Some(entry) = ended.get(id) else { return Ok(()) };
        match fence(entry.tombstone.generation, generation) {
            Fence::Stale | Fence::Same => Err(HostError::Ended { reason: entry.tombstone.reason.clone() }),
            Fence::Newer => {
                ended.remove(id);
                lock(&self.machine.disk).ended.remove(id);
                Ok(())
            }
        }
    }

    /// The answer to the end of a microVM that is not here.
    pub fn gone(&self, id: &str, generation: u64, reason: &str, discard: bool) -> ObservedMicrovm {
        let mut ended = lock(&self.ended);
        if discard {
            ended.remove(id);
            lock(&self.machine.disk).ended.remove(id);
            return ObservedMicrovm {
                microvm_id: id.to_owned(),
                generation,
                state: MicrovmState::Terminated.into(),
                state_reason: reason.to_owned(),
                ..Default::default()
            };
        }
        let entry = ended.entry(id.to_owned()).or_insert_with(|| {
            let tombstone = Tombstone {
                generation,
                reason: reason.to_owned(),
                ended_ms: self.now_ms(),
                observation: 1,
                meter: Default::default(),
            };
            lock(&self.machine.disk).ended.insert(id.to_owned(), tombstone.clone());
            EndReport::unknown(tombstone)
        });
        observed_end(id, &entry.tombstone)
    }

    fn record_ended(&self, id: &str) {
        if let Some(entry) = lock(&self.ended).get_mut(id) {
            entry.record_ended();
        }
    }

    async fn keep_tidy(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TIDY).await;
            let due: Vec<String> = {
                let ended = lock(&self.ended);
                let due = ended.iter().filter(|(_, entry)| entry.remote == Remote::Due);
                due.map(|(id, _)| id.clone()).collect()
            };
            for id in due {
                if s3::remove_all(&self.world, &self.process, &id, Duration::ZERO).await.is_err() {
                    break;
                }
                if let Some(entry) = lock(&self.ended).get_mut(&id) {
                    entry.remote = Remote::Removed;
                }
            }
        }
    }
}

impl Holdings for Agent {
    fn unreported(&self) -> Vec<ObservedMicrovm> {
        let live = lock(&self.live);
        let kept = |held: &mut Held| (!held.journal.discard).then(|| held.shown.clone());
        let shown = live.values().filter_map(|cell| cell.with(kept));
        let mut all: Vec<ObservedMicrovm> =
            shown.filter(|one| one.state() != MicrovmState::Terminated).collect();
        let ended = lock(&self.ended);
        let ends = ended.iter().filter(|(_, entry)| !entry.known);
        all.extend(ends.map(|(id, entry)| observed_end(id, &entry.tombstone)));
        all
    }

    fn usage(&self) -> HostUsage {
        HostUsage { unreadable_microvm_ids: lock(&self.unreadable).clone(), ..HostUsage::default() }
    }

    fn answered(&self, observed: &[ObservedMicrovm], recorded: &[RecordedMicrovm]) {
        for one in observed.iter().filter(|one| one.state() == MicrovmState::Terminated) {
            if let Some(entry) = lock(&self.ended).get_mut(&one.microvm_id)
                && entry.tombstone.generation == one.generation
            {
                entry.known = true;
            }
        }
        for one in recorded {
            if one.ended {
                self.record_ended(&one.microvm_id);
            } else if let Some(cell) = self.get(&one.microvm_id) {
                let named = SnapshotNumber::new(one.snapshot_generation, one.snapshot_sequence);
                self.recorded(&cell, one.generation, named);
            }
        }
    }

    fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    fn close_stale(&self, id: &str, generation: u64) {
        if let Some(cell) = self.get(id) {
            cell.with(|held| held.stale = held.stale.max(generation));
        }
    }

    fn drop_stale(self: Arc<Self>, id: String, generation: u64, ended: bool) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(cell) = self.get(&id) else { return };
            self.world.tell(self.process.node, format_args!("{id} generation {generation} is stale"));
            self.note_dropped(&id, generation);
            let reason = "The scheduler placed it elsewhere.".to_owned();
            let order = Order::End { reason, discard: true };
            let dropped = self.command(&cell, order, Some(generation)).await;
            if dropped.is_ok() && ended && !self.process.killed.is_cancelled() {
                self.gone(&id, generation, "It has ended.", false);
                self.record_ended(&id);
            }
        })
    }
}

impl World {
    /// Whether a host would answer a request for a microVM.
    pub fn serves(&self, index: usize, id: &str) -> bool {
        let agent = lock(&self.agents).get(&index).cloned();
        agent.is_some_and(|agent| !agent.process.killed.is_cancelled() && agent.serves(id))
    }

    /// What a host's agent holds.
    pub fn held(&self, index: usize) -> Vec<(String, LocalState)> {
        let Some(agent) = lock(&self.agents).get(&index).cloned() else { return Vec::new() };
        let cells: Vec<Arc<Cell>> = lock(&agent.live).values().cloned().collect();
        cells.into_iter().map(|cell| (cell.id.clone(), cell.state())).collect()
    }
}
