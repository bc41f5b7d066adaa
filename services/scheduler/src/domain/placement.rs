//! Chooses a host. Pure and deterministic: the same hosts and the same demand give the same answer.
//!
//! A host qualifies when it takes placements, runs the snapshot's engine on a matching platform, and has
//! room. Among those the best [`Score`] wins: first a host that has the snapshot in its cache (a launch from
//! the local disk is an order of magnitude faster than one from S3), then the least loaded.

use std::cmp::Reverse;

use api::common::v1::Architecture;
use model::HostId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Baseline memory, MiB.
    pub memory_mib: u64,
    pub disk: DiskDemand,
    /// Engine that must run it; empty means any (a bake).
    pub engine: String,
    /// CPU it needs; unspecified means any.
    pub architecture: Architecture,
    /// Platform fingerprint its snapshot needs; empty means any.
    pub fingerprint: String,
    pub exclude: Vec<HostId>,
}

/// Room on a host's disk. Disks of guests are sparse: each is reckoned with a part of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskDemand {
    /// Size of the guest's disk, bytes; 0 of a bake, for which its host looks itself.
    pub bytes: u64,
    /// Bytes of guests' disks that a host may have for each that is free; at least 1.
    pub overcommit: u32,
}

/// A host, as far as placement looks at it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    pub id: &'a HostId,
    pub ready: bool,
    pub architecture: Architecture,
    pub engines: &'a [String],
    pub fingerprint: &'a str,
    /// Memory it may hand out, MiB.
    pub memory_capacity_mib: u64,
    /// Memory handed out and reserved, MiB.
    pub memory_held_mib: u64,
    pub slot_capacity: u64,
    pub slots_held: u64,
    /// Bytes free on its disk; `None` while it has not said.
    pub disk_free: Option<u64>,
    /// Bytes of the disks of what runs there.
    pub disk_held: u64,
    /// Whether it says that its disk has no room for anything new.
    pub disk_short: bool,
    /// Whether its cache has the snapshot.
    pub cached: bool,
}

/// Higher is better; the order of the fields is the order of importance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score<'a> {
    cached: bool,
    /// Load after the placement, permille of the scarcer resource.
    load: Reverse<u64>,
    /// Ties go to the first id, so that the answer never depends on chance.
    id: Reverse<&'a HostId>,
}

/// Why no host qualified: how many failed at which question, asked in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoRoom {
    /// Hosts that take no placements.
    pub not_ready: usize,
    pub unsuitable: usize,
    pub full: usize,
    /// Hosts without room on the disk.
    pub short_of_disk: usize,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "No host has room: {} full, {} short of disk, {} unsuitable, {} not ready",
            self.full, self.short_of_disk, self.unsuitable, self.not_ready
        )
    }
}

/// The best host for a demand.
pub fn choose<'a>(
    candidates: impl Iterator<Item = Candidate<'a>>,
    demand: &Demand,
) -> Result<&'a HostId, NoRoom> {
    let mut refused = NoRoom::default();
    let mut best: Option<Score<'a>> = None;
    for candidate in candidates {
        if !candidate.ready || demand.exclude.contains(candidate.id) {
            refused.not_ready += 1;
        } else if !suits(&candidate, demand) {
            refused.unsuitable += 1;
        } else if !fits(&candidate, demand) {
            refused.full += 1;
        } else if !has_disk(&candidate, demand.disk) {
            refused.short_of_disk += 1;
        } else {
            let score = score(&candidate, demand);
            if best.as_ref().is_none_or(|best| score > *best) {
                best = Some(score);
            }
        }
    }
    best.map(|score| score.id.0).ok_or(refused)
}

fn suits(host: &Candidate<'_>, demand: &Demand) -> bool {
    (demand.engine.is_empty() || host.engines.contains(&demand.engine))
        && (demand.architecture == Architecture::Unspecified || demand.architecture == host.architecture)
        && (demand.fingerprint.is_empty() || demand.fingerprint == host.fingerprint)
}

fn fits(host: &Candidate<'_>, demand: &Demand) -> bool {
    host.slots_held < host.slot_capacity
        && host
            .memory_held_mib
            .checked_add(demand.memory_mib)
            .is_some_and(|after| after <= host.memory_capacity_mib)
}

/// What is free must do for what all that runs may come to write, the new one included. What has been written already is not
/// free, so it is reckoned twice; that errs on the side of room.
fn has_disk(host: &Candidate<'_>, demand: DiskDemand) -> bool {
    let may_come = host.disk_held.saturating_add(demand.bytes) / u64::from(demand.overcommit.max(1));
    !host.disk_short && host.disk_free.is_none_or(|free| may_come <= free)
}

fn score<'a>(host: &Candidate<'a>, demand: &Demand) -> Score<'a> {
    let permille = |used: u64, capacity: u64| used.saturating_mul(1000) / capacity.max(1);
    let memory = permille(host.memory_held_mib + demand.memory_mib, host.memory_capacity_mib);
    let slots = permille(host.slots_held + 1, host.slot_capacity);
    Score { cached: host.cached, load: Reverse(memory.max(slots)), id: Reverse(host.id) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    struct Host {
        id: HostId,
        ready: bool,
        engine: String,
        capacity: (u64, u64),
        held: (u64, u64),
        disk: Option<(u64, u64)>,
        cached: bool,
    }

    fn candidates(hosts: &[Host]) -> Vec<Candidate<'_>> {
        hosts
            .iter()
            .map(|host| Candidate {
                id: &host.id,
                ready: host.ready,
                architecture: Architecture::X8664,
                engines: std::slice::from_ref(&host.engine),
                fingerprint: "f",
                memory_capacity_mib: host.capacity.0,
                memory_held_mib: host.held.0,
                slot_capacity: host.capacity.1,
                slots_held: host.held.1,
                disk_free: host.disk.map(|(free, _)| free),
                disk_held: host.disk.map_or(0, |(_, held)| held),
                disk_short: host.disk == Some((0, 0)),
                cached: host.cached,
            })
            .collect()
    }

    fn demand(memory_mib: u64) -> Demand {
        Demand {
            memory_mib,
            disk: DiskDemand { bytes: 8, overcommit: 4 },
            engine: "qemu".into(),
            architecture: Architecture::Unspecified,
            fingerprint: String::new(),
            exclude: vec![],
        }
    }

    fn fleet() -> impl Strategy<Value = Vec<Host>> {
        let host = (
            any::<bool>(),
            prop_oneof!["qemu", "firecracker"],
            (0u64..8192, 0u64..8),
            (0u64..8192, 0u64..8),
            proptest::option::of((0u64..8, 0u64..32)),
            any::<bool>(),
        );
        proptest::collection::vec(host, 0..12).prop_map(|hosts| {
            let numbered = hosts.into_iter().enumerate();
            numbered
                .map(|(number, (ready, engine, capacity, held, disk, cached))| Host {
                    id: format!("h{number:02}").parse().unwrap(),
                    ready,
                    engine,
                    capacity,
                    held,
                    disk,
                    cached,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn never_over_capacity_and_cached_first(hosts in fleet(), memory in 1u64..4096) {
            let demand = demand(memory);
            let qualifies = |host: &Host| {
                host.ready
                    && host.engine == "qemu"
                    && host.held.0 + memory <= host.capacity.0
                    && host.held.1 < host.capacity.1
                    && host.disk.is_none_or(|(free, held)| (held + 8) / 4 <= free)
            };
            match choose(candidates(&hosts).into_iter(), &demand) {
                Ok(chosen) => {
                    let chosen = hosts.iter().find(|host| host.id == *chosen).unwrap();
                    prop_assert!(qualifies(chosen));
                    prop_assert!(chosen.cached || !hosts.iter().any(|host| host.cached && qualifies(host)));
                }
                Err(refused) => {
                    prop_assert!(!hosts.iter().any(qualifies));
                    let NoRoom { not_ready, unsuitable, full, short_of_disk } = refused;
                    prop_assert_eq!(full + short_of_disk + unsuitable + not_ready, hosts.len());
                }
            }
        }

        #[test]
        fn the_order_of_the_hosts_does_not_matter(hosts in fleet(), memory in 1u64..4096) {
            let forwards = candidates(&hosts);
            let mut backwards = forwards.clone();
            backwards.reverse();
            prop_assert_eq!(
                choose(forwards.into_iter(), &demand(memory)),
                choose(backwards.into_iter(), &demand(memory))
            );
        }
    }

    #[test]
    fn a_host_without_room_on_its_disk_gets_nothing() {
        let id: HostId = "a".parse().unwrap();
        let check = |free: Option<u64>, held, short, fits: bool| {
            let candidate = Candidate {
                id: &id,
                ready: true,
                architecture: Architecture::X8664,
                engines: &["qemu".to_owned()],
                fingerprint: "f",
                memory_capacity_mib: 100,
                memory_held_mib: 0,
                slot_capacity: 9,
                slots_held: 0,
                disk_free: free,
                disk_held: held,
                disk_short: short,
                cached: false,
            };
            let refused = NoRoom { short_of_disk: 1, ..NoRoom::default() };
            let expected = if fits { Ok(&id) } else { Err(refused) };
            assert_eq!(choose(std::iter::once(candidate), &demand(1)), expected, "{free:?} {held} {short}");
        };
        // Its own disk of 8 counts with 2.
        check(Some(2), 0, false, true);
        check(Some(1), 0, false, false);
        check(Some(5), 12, false, true);
        check(Some(4), 12, false, false);
        check(Some(1000), 0, true, false);
        check(None, 12, false, true);
    }

    #[test]
    fn platform_and_earlier_attempts_count() {
        let host = |name: &str| Host {
            id: name.parse().unwrap(),
            ready: true,
            engine: "qemu".into(),
            capacity: (4096, 4),
            held: (0, 0),
            disk: None,
            cached: false,
        };
        let hosts = [host("a"), host("b")];
        let chosen = |demand: &Demand| choose(candidates(&hosts).into_iter(), demand).cloned();
        assert_eq!(chosen(&demand(512)), Ok("a".parse().unwrap()));
        let again = Demand { exclude: vec!["a".parse().unwrap()], ..demand(512) };
        assert_eq!(chosen(&again), Ok("b".parse().unwrap()));
        let elsewhere = Demand { fingerprint: "other".into(), ..demand(512) };
        assert_eq!(chosen(&elsewhere), Err(NoRoom { unsuitable: 2, ..NoRoom::default() }));
        let arm = Demand { architecture: Architecture::Arm64, ..demand(512) };
        assert_eq!(chosen(&arm), Err(NoRoom { unsuitable: 2, ..NoRoom::default() }));
    }
}
