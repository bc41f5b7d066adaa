//! The world: its nodes, their clocks, the processes on them, and the trace of what happens.
//!
//! Everything runs on one thread and on a clock that stands still while anything can run, so what happens next depends on the seed
//! alone. A process is a set of tasks behind one token: when it is killed its tasks are dropped where they stand, and what is
//! still running for it reaches nothing any more.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use clock::Clock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::agent::Agent;
use super::checker::Checker;
use super::etcd::Keys;
use super::machine::Machine;
use super::net::Net;
use super::plan::{Plan, Plant};
use super::s3::Bucket;
use crate::chance::Chance;

/// Time of day at which every world begins.
const BEGIN_UNIX_SECONDS: u64 = 1_700_000_000;
/// Longest trace that is kept for people, in lines.
const LINES_MAX: usize = 200_000;

/// A place that can be cut off, slow or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    Etcd,
    S3,
    Scheduler(usize),
    Host(usize),
    Clients,
}

impl Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd => f.pad("etcd"),
            Self::S3 => f.pad("s3"),
            Self::Scheduler(index) => f.pad(&format!("scheduler-{index}")),
            Self::Host(index) => f.pad(&format!("host-{index}")),
            Self::Clients => f.pad("clients"),
        }
    }
}

impl Node {
    /// Where its process is served.
    pub fn address(self) -> String {
        format!("{self}:1")
    }

    /// What is served at an address.
    fn at(address: &str) -> Option<Self> {
        let (name, index) = address.strip_suffix(":1")?.split_once('-')?;
        let index = index.parse().ok()?;
        match name {
            "scheduler" => Some(Self::Scheduler(index)),
            "host" => Some(Self::Host(index)),
            _ => None,
        }
    }
}

/// One life of a program on a node.
#[derive(Clone)]
pub struct Process {
    pub node: Node,
    pub killed: CancellationToken,
}

impl Process {
    pub fn new(node: Node) -> Self {
        Self { node, killed: CancellationToken::new() }
    }

    /// Runs a task of the process, which is dropped where it stands when the process is killed.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let killed = self.killed.clone();
        tokio::spawn(async move {
            tokio::select! { biased; () = killed.cancelled() => {}, () = task => {} }
        });
    }
}

/// What answers at an address.
#[derive(Clone)]
pub struct Server {
    pub process: Process,
    pub routes: Routes,
}

/// What happened, in order: a digest of all of it, and the lines.
struct Trace {
    digest: u64,
    lines: Vec<String>,
}

pub struct World {
    pub plan: Plan,
    pub began: Instant,
    pub chance: Mutex<Chance>,
    /// None when nobody wants to read it: most worlds only live, and lines cost a tenth of that.
    trace: Option<Mutex<Trace>>,
    pub net: Mutex<Net>,
    pub keys: Keys,
    pub bucket: Bucket,
    pub machines: Vec<Arc<Machine>>,
    pub checker: Mutex<Checker>,
    pub agents: Mutex<BTreeMap<usize, Arc<Agent>>>,
    servers: Mutex<BTreeMap<Node, Server>>,
    clocks: Mutex<BTreeMap<Node, Clock>>,
    /// Steps that a node may still take before its process is killed, and how long it stays dead then.
    fuses: Mutex<BTreeMap<Node, (u32, Duration)>>,
    /// When a node may start again.
    down_until: Mutex<BTreeMap<Node, Instant>>,
}

pub type Shared = Arc<World>;

thread_local! {
    static BEGAN: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// What has passed in the world of this thread.
fn passed() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed())
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(plan: Plan, readable: bool) -> Shared {
        let began = Instant::now();
        BEGAN.set(Some(began));
        let machines = (0..plan.hosts).map(|index| Arc::new(Machine::new(index))).collect();
        let trace = readable.then(|| Trace { digest: 0xcbf2_9ce4_8422_2325, lines: Vec::new() });
        Arc::new(Self {
            chance: Mutex::new(Chance::new(plan.seed, 1)),
            began,
            trace: trace.map(Mutex::new),
            net: Mutex::new(Net::default()),
            keys: Keys::default(),
            bucket: Bucket::default(),
            machines,
            checker: Mutex::new(Checker::default()),
            agents: Mutex::default(),
            servers: Mutex::default(),
            clocks: Mutex::default(),
            fuses: Mutex::default(),
            down_until: Mutex::default(),
            plan,
        })
    }

    /// Notes what happens.
    pub fn tell(&self, who: impl Display, what: impl Display) {
        let Some(trace) = &self.trace else { return };
        let at = self.began.elapsed().as_micros();
        let line = format!("{:>4}.{:06} {who:<12} {what}", at / 1_000_000, at % 1_000_000);
        let mut trace = lock(trace);
        for byte in line.bytes() {
            trace.digest = (trace.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if trace.lines.len() < LINES_MAX {
            trace.lines.push(line);
        }
    }

    /// The digest of the trace, and its lines; nothing when nobody wanted to read it.
    pub fn trace(&self) -> (u64, Vec<String>) {
        let trace = self.trace.as_ref().map(lock);
        trace.map_or((0, Vec::new()), |mut trace| (trace.digest, std::mem::take(&mut trace.lines)))
    }

    pub fn draw<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut lock(&self.chance))
    }

    pub fn is_planted(&self, plant: Plant) -> bool {
        self.plan.plant == Some(plant)
    }

    /// The clock of a node's machine.
    pub fn clock(&self, node: Node) -> Clock {
        let mut clocks = lock(&self.clocks);
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN_UNIX_SECONDS);
        let made = || {
            let clock = Clock::following(begin + passed(), passed);
            // Each machine has a boot of its own.
            let boots = match node {
                Node::Scheduler(index) => 1 + index,
                Node::Host(index) => 101 + index,
                Node::Etcd | Node::S3 | Node::Clients => 0,
            };
            (0..boots).for_each(|_| clock.reboot());
            clock
        };
        clocks.entry(node).or_insert_with(made).clone()
    }

    pub fn serve(&self, process: &Process, routes: Routes) {
        let server = Server { process: process.clone(), routes };
        lock(&self.servers).insert(process.node, server);
    }

    pub fn server(&self, address: &str) -> Option<Server> {
        let servers = lock(&self.servers);
        servers.get(&Node::at(address)?).filter(|server| !server.process.killed.is_cancelled()).cloned()
    }

    /// Whether a node's process lives.
    pub fn is_up(&self, node: Node) -> bool {
        lock(&self.servers).get(&node).is_some_and(|server| !server.process.killed.is_cancelled())
    }

    /// Kills what runs on a node. True when something did.
    pub fn kill(&self, node: Node, why: &str) -> bool {
        let server = lock(&self.servers).remove(&node);
        lock(&self.fuses).remove(&node);
        let Some(server) = server else { return false };
        self.tell(node, format_args!("killed: {why}"));
        server.process.killed.cancel();
        if let Node::Host(index) = node {
            lock(&self.agents).remove(&index);
        }
        true
    }

    /// Has a node's process die after so many steps more.
    pub fn light_fuse(&self, node: Node, steps: u32, down: Duration) {
        lock(&self.fuses).insert(node, (steps, down));
    }

    /// Keeps a node from starting again for a while.
    pub fn stay_down(&self, node: Node, time: Duration) {
        lock(&self.down_until).insert(node, Instant::now() + time);
    }

    pub fn may_start(&self, node: Node) -> bool {
        lock(&self.down_until).get(&node).is_none_or(|until| *until <= Instant::now())
    }

    pub fn let_all_start(&self) {
        lock(&self.down_until).clear();
        lock(&self.fuses).clear();
    }

    /// Has every clock show the world's time of day.
    pub fn set_clocks_right(&self) {
        let right = SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN_UNIX_SECONDS) + passed();
        for clock in lock(&self.clocks).values() {
            clock.set_wall(right);
        }
    }

    /// Lets go of everything: what is in here refers to each other.
    pub fn end(&self) {
        for server in std::mem::take(&mut *lock(&self.servers)).into_values() {
            server.process.killed.cancel();
        }
        for agent in std::mem::take(&mut *lock(&self.agents)).into_values() {
            lock(&agent.live).clear();
        }
    }

    /// A step that a process takes in the world outside its memory: here it may die. One that is dead never comes back from it.
    pub async fn step(&self, process: &Process) {
        let burnt = {
            let mut fuses = lock(&self.fuses);
            match fuses.get_mut(&process.node) {
                Some((0, down)) => Some(*down),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some(down) = burnt.filter(|_| !process.killed.is_cancelled()) {
            self.stay_down(process.node, down);
            self.kill(process.node, "it died between two steps");
        }
        if process.killed.is_cancelled() {
            pending::<()>().await;
        }
    }

    /// Fails the run: an invariant is broken.
    pub fn broken(&self, invariant: &'static str, story: impl Display) {
        self.tell("BROKEN", format_args!("{invariant}: {story}"));
        lock(&self.checker).broken(invariant, story.to_string());
    }
}
