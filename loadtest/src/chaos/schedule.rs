//! Which faults come in which order, by the seed alone: the same seed on a fleet of the same shape means the same faults.

use std::fmt;

use clap::ValueEnum;

use crate::chance::Chance;

/// Kinds of faults, as they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A process is killed; its supervisor starts it again.
    Kill,
    /// A process stands still for a while and then goes on where it was.
    Stop,
    /// The packets of a scheduler, an edge or a member of etcd are dropped for a while; it runs on.
    Partition,
    /// S3 stands still for most of the time, for a while.
    SlowS3,
    /// A file takes what a host's disk has free; the host's reserve for suspends stays.
    FullDisk,
    /// A host-agent stands still and its engines are killed; what has a recovery point goes on elsewhere.
    Lose,
    /// The wall clock of this machine is stepped by up to two minutes, ahead or back, and put right after a while. Every process of
    /// the machine sees it, so it is made only when it is asked for.
    Clock,
    /// Upkeep: `torpor certs rotate`, all its steps.
    Rotate,
    /// Upkeep: a scheduler, an edge, an image-builder or a host-agent is ended properly and started again.
    Restart,
    /// Upkeep: one host after the other is drained, its host-agent started anew, and the host taken back.
    Upgrade,
}

impl Kind {
    /// Whether it is made only when it is asked for: upkeep, which an operator does to a fleet that is well, and what more than
    /// the fleet would notice.
    fn is_extra(self) -> bool {
        matches!(self, Self::Clock | Self::Rotate | Self::Restart | Self::Upgrade)
    }
}

/// Whose loss it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Victim {
    Leader,
    Standby,
    Edge,
    Builder,
    Member,
    Host,
    S3,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leading scheduler",
            Self::Standby => "standby scheduler",
            Self::Edge => "edge",
            Self::Builder => "image-builder",
            Self::Member => "etcd member",
            Self::Host => "host",
            Self::S3 => "S3",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    Kill(Victim),
    Stop(Victim),
    Cut(Victim),
    SlowS3,
    FullDisk,
    Lose,
    Clock,
    Rotate,
    Restart(Victim),
    Upgrade,
}

impl Fault {
    /// Whether every request and call has to succeed all the same.
    pub fn is_upkeep(self) -> bool {
        matches!(self, Self::Rotate | Self::Restart(_) | Self::Upgrade)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "kill {victim}"),
            Self::Stop(victim) => write!(f, "stop {victim}"),
            Self::Cut(victim) => write!(f, "partition {victim}"),
            Self::SlowS3 => f.write_str("slow S3"),
            Self::FullDisk => f.write_str("full disk"),
            Self::Lose => f.write_str("lose host"),
            Self::Clock => f.write_str("step clock"),
            Self::Rotate => f.write_str("rotate certificates"),
            Self::Restart(victim) => write!(f, "restart {victim}"),
            Self::Upgrade => f.write_str("upgrade hosts"),
        }
    }
}

/// How many of each the fleet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub schedulers: usize,
    pub edges: usize,
    pub builders: usize,
    pub members: usize,
    pub hosts: usize,
    /// Whether each host has a file system of its own.
    pub own_disks: bool,
}

/// Numbers of their own for each `stream` of a seed.
pub fn chance(seed: u64, stream: u64) -> Chance {
    Chance::from_state(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f))
}

/// The faults in their order, without end: every one that the fleet can stand once, shuffled, and then again.
#[derive(Debug)]
pub struct Schedule {
    deck: Vec<Fault>,
    left: Vec<Fault>,
    chance: Chance,
}

impl Schedule {
    /// `kinds` empty means all faults, and no upkeep.
    pub fn new(seed: u64, kinds: &[Kind], shape: &Shape) -> Self {
        Self { deck: faults(kinds, shape), left: Vec::new(), chance: chance(seed, 0) }
    }

    pub fn is_empty(&self) -> bool {
        self.deck.is_empty()
    }

    /// The next fault, and what chooses its victim and its pauses.
    pub fn next(&mut self) -> (Fault, Chance) {
        if self.left.is_empty() {
            self.left.clone_from(&self.deck);
        }
        let place = self.chance.within(0..self.left.len().max(1) as u64);
        let fault = self.left.swap_remove(usize::try_from(place).unwrap_or_default());
        (fault, chance(self.chance.draw(), 1))
    }
}

/// A replica is stopped or cut off only where another one is left to answer: otherwise nothing is learned by it.
fn faults(kinds: &[Kind], shape: &Shape) -> Vec<Fault> {
    let wanted = |kind: Kind| kinds.contains(&kind) || (kinds.is_empty() && !kind.is_extra());
    let mut all = Vec::new();
    for (victim, count, others) in [
        (Victim::Leader, shape.schedulers, 2),
        (Victim::Standby, shape.schedulers.saturating_sub(1), 1),
        (Victim::Edge, shape.edges, 2),
        (Victim::Builder, shape.builders, 2),
        (Victim::Member, shape.members, 3),
        (Victim::Host, shape.hosts, 2),
    ] {
        if wanted(Kind::Kill) && count > 0 {
            all.push(Fault::Kill(victim));
        }
        if wanted(Kind::Stop) && count >= others {
            all.push(Fault::Stop(victim));
        }
        // etcd's members are restarted by a rotation. A service that is there once keeps its clients waiting.
        if wanted(Kind::Restart) && count >= others && victim != Victim::Member {
            all.push(Fault::Restart(victim));
        }
        // The others run as root, whose packets cannot be told from anybody's.
        let has_group = matches!(victim, Victim::Leader | Victim::Edge | Victim::Member);
        if wanted(Kind::Partition) && count >= others && has_group {
            all.push(Fault::Cut(victim));
        }
    }
    if wanted(Kind::SlowS3) {
        all.push(Fault::SlowS3);
    }
    if wanted(Kind::FullDisk) && shape.own_disks && shape.hosts > 1 {
        all.push(Fault::FullDisk);
    }
    let several_hosts = shape.hosts > 1;
    for (kind, possible, fault) in [
        (Kind::Lose, several_hosts, Fault::Lose),
        (Kind::Clock, true, Fault::Clock),
        (Kind::Rotate, true, Fault::Rotate),
        (Kind::Upgrade, several_hosts, Fault::Upgrade),
    ] {
        if wanted(kind) && possible {
            all.push(fault);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { schedulers: 2, edges: 2, builders: 2, members: 3, hosts: 3, own_disks: true };

    fn first(seed: u64, kinds: &[Kind], shape: &Shape, count: usize) -> Vec<Fault> {
        let mut schedule = Schedule::new(seed, kinds, shape);
        (0..count).map(|_| schedule.next().0).collect()
    }

    #[test]
    fn a_seed_means_the_same_faults_and_every_fault_comes() {
        let deck = faults(&[], &SHAPE);
        assert_eq!(deck.len(), 18);
        let faults = first(7, &[], &SHAPE, 36);
        assert_eq!(faults, first(7, &[], &SHAPE, 36));
        assert_ne!(faults, first(8, &[], &SHAPE, 36));
        assert!(!faults.iter().any(|fault| fault.is_upkeep()), "{faults:?}");
        assert!(!faults.contains(&Fault::Clock));
        assert_eq!(first(7, &[Kind::Clock], &SHAPE, 1), [Fault::Clock]);
        for half in faults.chunks(18) {
            assert!(deck.iter().all(|fault| half.contains(fault)), "{half:?}");
        }
    }

    #[test]
    fn upkeep_comes_when_it_is_asked_for() {
        let upkeep = faults(&[Kind::Rotate, Kind::Restart, Kind::Upgrade], &SHAPE);
        assert!(upkeep.iter().all(|fault| fault.is_upkeep()), "{upkeep:?}");
        assert_eq!(upkeep.len(), 7, "{upkeep:?}");
        let alone = Shape { schedulers: 1, edges: 1, builders: 1, members: 1, hosts: 1, own_disks: true };
        assert_eq!(faults(&[Kind::Rotate, Kind::Restart, Kind::Upgrade], &alone), [Fault::Rotate]);
    }

    #[test]
    fn nothing_is_stopped_that_is_there_only_once() {
        let alone = Shape { schedulers: 1, edges: 1, builders: 1, members: 1, hosts: 1, own_disks: true };
        let faults = faults(&[], &alone);
        assert!(
            faults.iter().all(|fault| !matches!(
                fault,
                Fault::Stop(_) | Fault::Cut(_) | Fault::FullDisk | Fault::Lose
            )),
            "{faults:?}"
        );
        assert!(faults.contains(&Fault::Kill(Victim::Leader)));
        assert!(!faults.contains(&Fault::Kill(Victim::Standby)));
        assert_eq!(first(1, &[Kind::SlowS3], &alone, 2), [Fault::SlowS3; 2]);
    }
}
