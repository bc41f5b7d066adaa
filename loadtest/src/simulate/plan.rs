//! What happens to a world: drawn from the seed before it begins, so that a part of it can be left out.

use std::time::Duration;

use clap::ValueEnum;

use super::world::Node;
use crate::chance::Chance;

/// Time in which faults begin.
pub const FAULTS: Duration = Duration::from_secs(60);

/// Of a thousand worlds, how many are watched after they have come to rest.
const LINGERING: u64 = 125;

/// A fault that is in the simulated surroundings on purpose, so that the checker has to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// etcd says that it has written a record, and has not.
    WriteForgotten,
    /// A lease ends before its holder believes so.
    LeaseEndsEarly,
    /// S3 says that it has a snapshot, and has not.
    UploadLies,
    /// A host says SUSPENDED before the snapshot is on its disk.
    SuspendEarly,
    /// A host removes a copy from S3 before the record names its successor.
    RemovedEarly,
    /// A host wakes from the snapshot before the last.
    WakesOlder,
    /// A host's engine outlives the microVM.
    EngineLeft,
    /// etcd does transactions whose conditions do not hold.
    ConditionsIgnored,
    /// A watch of etcd passes over a change now and then.
    WatchSkips,
    /// A host does what an older generation asks for.
    AnyGeneration,
    /// A host serves without a lease.
    ServesUnleased,
    /// A guest runs on while its snapshot is written, until its engine ends.
    RunsAsleep,
}

/// What is done to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies now, and starts again after a while.
    Kill(Node, Duration),
    /// The process dies after so many of its steps.
    Fuse(Node, u32, Duration),
    /// The host's machine loses its power, and is back after a while.
    PowerCut(usize, Duration),
    /// The host's machine never comes back.
    Gone(usize),
    Cut(Node, Node, Duration),
    /// The host reaches neither etcd nor a scheduler; requests reach it.
    Alone(usize, Duration),
    Down(Node, Duration),
    /// The node's watches of etcd bring nothing, and it does not notice.
    Deaf(Node, Duration),
    /// So many of a thousand messages are lost, and they are as late as that.
    Lossy(u64, Duration, Duration),
    /// Milliseconds, ahead or back.
    ClockStep(Node, i64),
    SlowDisk(usize, u32, Duration),
    FailingDisk(usize, u64, Duration),
    Drain(usize, Duration),
    Compact,
}

/// A fault and when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub at: Duration,
    pub fault: Fault,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub schedulers: usize,
    pub hosts: usize,
    pub clients: usize,
    /// Whether hosts go on without etcd by the schedulers' vouches.
    pub vouches: bool,
    /// Whether the world is watched for long after it has come to rest.
    pub lingers: bool,
    pub faults: Vec<Due>,
    pub plant: Option<Plant>,
}

impl Plan {
    pub fn draw(seed: u64, plant: Option<Plant>) -> Self {
        let mut chance = Chance::new(seed, 2);
        let mut count = |most: u64, least: u64| usize::try_from(chance.within(least..most)).unwrap_or(1);
        let (schedulers, hosts, clients) = (count(4, 1), count(5, 2), count(5, 2));
        let (faults, vouches) = (count(14, 2), count(2, 0) == 1);
        let mut faults: Vec<Due> = (0..faults)
            .map(|_| Due {
                at: chance.millis(2_000..u64::try_from(FAULTS.as_millis()).unwrap_or(60_000)),
                fault: fault(&mut chance, schedulers, hosts),
            })
            .collect();
        faults.sort_by_key(|due| due.at);
        // One machine less is all that the rest has room for.
        let mut gone = 0;
        faults.retain(|due| {
            gone += u32::from(matches!(due.fault, Fault::Gone(_)));
            !matches!(due.fault, Fault::Gone(_)) || gone == 1
        });
        let lingers = Chance::new(seed, 3).per_mille(LINGERING);
        Self { seed, schedulers, hosts, clients, vouches, lingers, faults, plant }
    }
}

fn fault(chance: &mut Chance, schedulers: usize, hosts: usize) -> Fault {
    let count = |number: usize| u64::try_from(number).unwrap_or(1);
    let pick = |chance: &mut Chance, of: usize| usize::try_from(chance.within(0..count(of))).unwrap_or(0);
    let host = pick(chance, hosts);
    let scheduler = Node::Scheduler(pick(chance, schedulers));
    let process = if chance.per_mille(500) { scheduler } else { Node::Host(host) };
    let short = chance.millis(100..6_000);
    let long = chance.millis(1_000..25_000);
    match chance.within(0..100) {
        0..12 => Fault::Kill(process, short),
        12..29 => Fault::Fuse(process, u32::try_from(chance.within(0..120)).unwrap_or(0), short),
        29..34 => Fault::Alone(host, chance.millis(5_000..30_000)),
        34..42 => Fault::PowerCut(host, long),
        42..45 => Fault::Gone(host),
        45..52 => Fault::Cut(Node::Host(host), Node::Etcd, long),
        52..58 => Fault::Cut(Node::Host(host), scheduler, long),
        58..62 => Fault::Cut(scheduler, Node::Etcd, long),
        62..66 => Fault::Cut(Node::Host(host), Node::S3, long),
        66..69 => Fault::Down(Node::Etcd, chance.millis(200..15_000)),
        69..72 => Fault::Down(Node::S3, long),
        72..80 => {
            let lossy = chance.within(5..150);
            Fault::Lossy(lossy, chance.millis(1..400), long)
        }
        80..85 => {
            let by = i64::try_from(chance.within(0..40_000)).unwrap_or(0) - 20_000;
            Fault::ClockStep(process, by)
        }
        85..89 => Fault::SlowDisk(host, u32::try_from(chance.within(5..100)).unwrap_or(5), long),
        89..93 => Fault::FailingDisk(host, chance.within(100..700), long),
        93..96 => Fault::Drain(host, long),
        96..98 => Fault::Deaf(scheduler, long),
        _ => Fault::Compact,
    }
}
