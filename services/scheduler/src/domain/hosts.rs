//! The hosts: what they are, what is placed on them, whether they are there.
//!
//! Load is the scheduler's own account, from its records and reservations; a
//! host's report lags and serves people. Only of its disk nobody else can know:
//! there the report counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use api::host::v1::{HostSpec, HostState, HostUsage};
use clock::Difference;
use model::HostId;

use super::placement::{Candidate, Demand, NoRoom, choose};

#[derive(Debug, Clone, Default)]
pub struct Host {
    /// What it is; default until it says.
    pub spec: HostSpec,
    /// Lease of its record, as last seen; 0 when none has been.
    pub lease: i64,
    pub usage: HostUsage,
    pub heartbeat_time: Option<SystemTime>,
    /// Whether it registered with this leader.
    pub registered: bool,
    /// When its lease was first seen missing; `None` while it is there.
    pub lease_gone: Option<SystemTime>,
    pub draining: bool,
    /// Whether what its drain puts to sleep is woken on other hosts.
    pub wake_elsewhere: bool,
    /// Whether its clock differs too much from the leader's, as far as it has said what it shows.
    clock_differs: Option<bool>,
    /// Its clock agreed before and was behind in the last report: that may have been late.
    clock_doubted: bool,
    /// Why its reports are refused, a sentence.
    pub refused: Option<String>,
    /// MicroVMs that hold memory on it.
    pub held: u64,
    /// Memory they hold, MiB.
    pub held_mib: u64,
    /// Sizes of their disks, bytes.
    pub held_disk: u64,
    cached: HashSet<String>,
}

impl Host {
    /// Whether it takes placements, in the API's words.
    pub fn state(&self) -> HostState {
        match (self.lease_gone, self.draining, self.held) {
            (Some(_), _, _) => HostState::Lost,
            (None, _, _) if self.refused.is_some() => HostState::Refused,
            (None, true, 0) => HostState::Drained,
            (None, true, _) => HostState::Draining,
            (None, false, _) => HostState::Ready,
        }
    }

    /// Whether its lease has been gone for at least `grace`.
    pub fn gone_for(&self, grace: Duration, now: SystemTime) -> bool {
        self.lease_gone.is_some_and(|since| since + grace <= now)
    }
}

/// What a microVM holds on its host while it does not sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Baseline memory, MiB.
    pub memory_mib: u64,
    /// Size of its disk, bytes.
    pub disk_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bake {
    pub host: HostId,
    /// How much, MiB.
    pub memory_mib: u64,
    pub expires: SystemTime,
}

/// Every host that has a lease, a report, or a microVM.
#[derive(Debug, Default)]
pub struct Hosts {
    hosts: BTreeMap<HostId, Host>,
    bakes: HashMap<String, Bake>,
    /// The schedulers by whose promises a host goes on without its lease; of hosts that go by none there is nothing.
    vouchers: HashMap<HostId, Vec<String>>,
}

impl Hosts {
    pub fn get(&self, id: &HostId) -> Option<&Host> {
        self.hosts.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts.iter()
    }

    /// A host, made up as absent since `now` if it was never heard of: records
    /// may name a host that did not come back.
    pub fn entry(&mut self, id: &HostId, now: SystemTime) -> &mut Host {
        self.hosts.entry(id.clone()).or_insert_with(|| Host { lease_gone: Some(now), ..Host::default() })
    }

    /// The schedulers by whose promises, all of them, a host goes on without its lease.
    pub fn vouchers(&self, id: &HostId) -> &[String] {
        self.vouchers.get(id).map_or(&[], Vec::as_slice)
    }

    pub fn set_vouchers(&mut self, id: &HostId, vouchers: Vec<String>) {
        if vouchers.is_empty() {
            self.vouchers.remove(id);
        } else {
            self.vouchers.insert(id.clone(), vouchers);
        }
    }

    /// The host's lease is there, with what it says it is. True when its tunnel address changed.
    pub fn lease_seen(&mut self, id: &HostId, spec: HostSpec, now: SystemTime) -> bool {
        let host = self.entry(id, now);
        host.lease_gone = None;
        let moved = host.spec.tunnel_address != spec.tunnel_address;
        host.lease = spec.lease;
        host.spec = HostSpec { lease: 0, ..spec };
        moved
    }

    pub fn lease_lost(&mut self, id: &HostId, now: SystemTime) {
        let host = self.entry(id, now);
        host.lease_gone.get_or_insert(now);
    }

    /// The hosts whose lease is there.
    pub fn leased(&self) -> Vec<HostId> {
        let leased = self.hosts.iter().filter(|(_, host)| host.lease_gone.is_none());
        leased.map(|(id, _)| id.clone()).collect()
    }

    /// Takes in a report. False when the host must register first.
    pub fn report(&mut self, id: &HostId, usage: Option<HostUsage>, now: SystemTime) -> bool {
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.registered) else {
            return false;
        };
        host.heartbeat_time = Some(now);
        if let Some(usage) = usage {
            host.cached = usage.cached_manifest_keys.iter().cloned().collect();
            host.usage = usage;
        }
        true
    }

    /// Notes how a host's clock differs from the leader's, which may be by `max`. Returns the sentence when the host is refused
    /// for it. A leader that most hosts disagree with refuses none: its own clock is the wrong one then.
    pub fn compare_clock(
        &mut self,
        id: &HostId,
        difference: Difference,
        max: Duration,
        now: SystemTime,
    ) -> Option<String> {
        let differs = difference.by > max;
        let host = self.entry(id, now);
        // A report that this process reads late, because it was paused, looks as if its host's clock were behind. The next one
        // tells.
        let late = differs && !difference.ahead && host.clock_differs == Some(false) && !host.clock_doubted;
        host.clock_doubted = late;
        if late {
            return None;
        }
        host.clock_differs = Some(differs);
        let refused = (differs && self.outvote().is_none()).then(|| {
            format!(
                "The clock of the host {id} is {difference} compared with the scheduler's; \
                 host_clock_difference_max_seconds allows {}s. Set the clocks of both machines by NTP; the host is taken as \
                 soon as they agree.",
                max.as_secs()
            )
        });
        self.entry(id, now).refused.clone_from(&refused);
        refused
    }

    /// Whether a host's last report may have been made long before it was read: a list in it says nothing of what is there now.
    pub fn is_doubted(&self, id: &HostId) -> bool {
        self.hosts.get(id).is_some_and(|host| host.clock_doubted)
    }

    /// How many hosts' clocks differ from the leader's, of how many that are known, when those are most and more than one.
    pub fn outvote(&self) -> Option<(usize, usize)> {
        let present = self.hosts.values().filter(|host| host.lease_gone.is_none());
        let said: Vec<bool> = present.filter_map(|host| host.clock_differs).collect();
        let differ = said.iter().filter(|differs| **differs).count();
        (differ > 1 && differ * 2 > said.len()).then_some((differ, said.len()))
    }

    /// Books what a microVM holds on a host, or gives it back.
    pub fn book(&mut self, id: &HostId, holding: Holding, taken: bool, now: SystemTime) {
        let host = self.entry(id, now);
        let Holding { memory_mib, disk_bytes } = holding;
        if taken {
            host.held += 1;
            host.held_mib += memory_mib;
            host.held_disk += disk_bytes;
        } else {
            let booked = host.held > 0 && host.held_mib >= memory_mib && host.held_disk >= disk_bytes;
            assert!(booked, "gave back more than was booked on {id}");
            host.held -= 1;
            host.held_mib -= memory_mib;
            host.held_disk -= disk_bytes;
        }
    }

    /// The best host for a demand; `manifest_key` is the snapshot it would like to find in the cache.
    pub fn choose(&self, demand: &Demand, manifest_key: &str, now: SystemTime) -> Result<HostId, NoRoom> {
        let mut baking: HashMap<&HostId, (u64, u64)> = HashMap::new();
        for bake in self.bakes.values().filter(|bake| bake.expires > now) {
            let held = baking.entry(&bake.host).or_default();
            *held = (held.0 + 1, held.1 + bake.memory_mib);
        }
        let candidates = self.hosts.iter().map(|(id, host)| {
            let (bakes, bakes_mib) = baking.get(id).copied().unwrap_or_default();
            Candidate {
                id,
                ready: host.state() == HostState::Ready,
                architecture: host.spec.architecture(),
                engines: &host.spec.engines,
                fingerprint: &host.spec.platform_fingerprint,
                memory_capacity_mib: host.spec.memory_capacity_mib,
                memory_held_mib: host.held_mib + bakes_mib,
                slot_capacity: u64::from(host.spec.slot_capacity),
                slots_held: host.held + bakes,
                disk_free: (host.usage.disk_capacity_bytes > 0).then_some(host.usage.disk_free_bytes),
                disk_held: host.held_disk,
                disk_short: host.usage.disk_short,
                cached: !manifest_key.is_empty() && host.cached.contains(manifest_key),
            }
        });
        choose(candidates, demand).cloned()
    }

    /// Reserves room for a bake. Asking again for the same build gives the same
    /// host, with the time counted anew, as long as that host takes placements.
    pub fn place_bake(
        &mut self,
        build_id: &str,
        demand: &Demand,
        reservation: Duration,
        now: SystemTime,
    ) -> Result<HostId, NoRoom> {
        self.bakes.retain(|_, bake| bake.expires > now);
        let held = self.bakes.get(build_id).map(|bake| bake.host.clone());
        let stands = held.filter(|host| self.get(host).is_some_and(|host| host.state() == HostState::Ready));
        let host = match stands {
            Some(host) => host,
            None => {
                self.bakes.remove(build_id);
                self.choose(demand, "", now)?
            }
        };
        let bake = Bake { host: host.clone(), memory_mib: demand.memory_mib, expires: now + reservation };
        self.bakes.insert(build_id.to_owned(), bake);
        Ok(host)
    }

    /// Gives a bake's reservation back; nothing happens when there is none.
    pub fn release_bake(&mut self, build_id: &str) {
        self.bakes.remove(build_id);
    }

    pub fn bakes(&self) -> usize {
        self.bakes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::placement::DiskDemand;
    use super::*;
    use api::common::v1::Architecture;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn spec(id: &str, memory: u64) -> HostSpec {
        HostSpec {
            host_id: id.into(),
            engines: vec!["qemu".into()],
            memory_capacity_mib: memory,
            slot_capacity: 4,
            tunnel_address: "t".into(),
            ..Default::default()
        }
    }

    fn demand(memory_mib: u64) -> Demand {
        Demand {
            memory_mib,
            disk: DiskDemand { bytes: 64, overcommit: 2 },
            engine: String::new(),
            architecture: Architecture::Unspecified,
            fingerprint: String::new(),
            exclude: vec![],
        }
    }

    #[test]
    fn a_bake_holds_its_room_until_it_ends_or_expires() {
        let mut hosts = Hosts::default();
        let (a, b): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        hosts.lease_seen(&a, spec("a", 1024), at(0));
        hosts.lease_seen(&b, spec("b", 1024), at(0));
        let minute = Duration::from_secs(60);
        let place =
            |hosts: &mut Hosts, build: &str, now| hosts.place_bake(build, &demand(1024), minute, at(now));
        assert_eq!(place(&mut hosts, "one", 0), Ok(a.clone()));
        assert_eq!(place(&mut hosts, "one", 1), Ok(a.clone()), "the same reservation");
        assert_eq!(place(&mut hosts, "two", 1), Ok(b.clone()));
        assert!(place(&mut hosts, "three", 2).is_err());
        hosts.release_bake("two");
        assert_eq!(place(&mut hosts, "three", 2), Ok(b.clone()));
        assert_eq!(place(&mut hosts, "four", 61), Ok(a.clone()), "the first has expired");
        hosts.lease_lost(&b, at(61));
        assert!(place(&mut hosts, "three", 61).is_err(), "a reservation on a lost host is void");
    }

    #[test]
    fn a_lease_gone_and_back_counts_from_its_first_absence() {
        let mut hosts = Hosts::default();
        let a: HostId = "a".parse().unwrap();
        assert!(hosts.lease_seen(&a, spec("a", 1024), at(0)));
        assert!(!hosts.lease_seen(&a, spec("a", 1024), at(0)), "same address");
        hosts.lease_lost(&a, at(10));
        hosts.lease_lost(&a, at(20));
        let grace = Duration::from_secs(15);
        assert!(!hosts.get(&a).unwrap().gone_for(grace, at(24)));
        assert!(hosts.get(&a).unwrap().gone_for(grace, at(25)));
        assert_eq!(hosts.get(&a).unwrap().state(), HostState::Lost);
        hosts.lease_seen(&a, spec("a", 1024), at(26));
        assert_eq!(hosts.get(&a).unwrap().state(), HostState::Ready);
        assert!(!hosts.report(&a, None, at(27)), "must register first");
    }

    #[test]
    fn a_clock_that_differs_is_refused_unless_it_is_the_leaders() {
        let mut hosts = Hosts::default();
        let ids: Vec<HostId> = ["a", "b", "c"].iter().map(|id| id.parse().unwrap()).collect();
        for id in &ids {
            hosts.lease_seen(id, spec(id.as_str(), 1024), at(0));
        }
        let max = Duration::from_secs(10);
        let mut says = |id: &HostId, shows: u64| {
            let refused = hosts.compare_clock(id, Difference::between(at(shows), at(10_800)), max, at(0));
            (refused, hosts.get(id).unwrap().state(), hosts.outvote())
        };
        let (refused, state, outvote) = says(&ids[0], 0);
        let sentence = refused.unwrap();
        assert!(sentence.starts_with("The clock of the host a is 3h 0m 0s behind compared"), "{sentence}");
        assert_eq!((state, outvote), (HostState::Refused, None), "one host alone is no majority");
        assert_eq!(says(&ids[1], 10_790), (None, HostState::Ready, None), "as far as allowed");
        // Two of three: the leader is the one that is wrong.
        assert_eq!(says(&ids[2], 0), (None, HostState::Ready, Some((2, 3))));
        assert_eq!(says(&ids[0], 0), (None, HostState::Ready, Some((2, 3))));
        assert_eq!(says(&ids[0], 10_810), (None, HostState::Ready, None));
        assert_eq!(says(&ids[2], 0).1, HostState::Refused);
        assert_eq!(says(&ids[2], 10_800).1, HostState::Ready);
        // One late report of a host that agreed is doubted, two are not.
        assert_eq!(says(&ids[2], 0).1, HostState::Ready);
        assert_eq!(says(&ids[2], 10_800).1, HostState::Ready);
        assert_eq!(says(&ids[2], 0).1, HostState::Ready);
        assert_eq!(says(&ids[2], 0).1, HostState::Refused);
        assert_eq!(says(&ids[1], 0).1, HostState::Ready);
        assert_eq!(ids.iter().map(|id| hosts.is_doubted(id)).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn booking_decides_who_is_full_and_when_a_drain_is_done() {
        let mut hosts = Hosts::default();
        let a: HostId = "a".parse().unwrap();
        hosts.lease_seen(&a, spec("a", 1024), at(0));
        let holding = Holding { memory_mib: 1024, disk_bytes: 64 };
        hosts.book(&a, holding, true, at(0));
        let refused = hosts.choose(&demand(1), "", at(0));
        assert_eq!(refused, Err(NoRoom { full: 1, ..NoRoom::default() }));
        hosts.entry(&a, at(0)).draining = true;
        assert_eq!(hosts.get(&a).unwrap().state(), HostState::Draining);
        hosts.book(&a, holding, false, at(0));
        assert_eq!(hosts.get(&a).unwrap().state(), HostState::Drained);
    }

    #[test]
    fn what_a_host_says_of_its_disk_counts() {
        let mut hosts = Hosts::default();
        let a: HostId = "a".parse().unwrap();
        hosts.lease_seen(&a, spec("a", 4096), at(0));
        hosts.entry(&a, at(0)).registered = true;
        let report = |hosts: &mut Hosts, usage: HostUsage| assert!(hosts.report(&a, Some(usage), at(1)));
        let short = Err(NoRoom { short_of_disk: 1, ..NoRoom::default() });
        assert_eq!(hosts.choose(&demand(1), "", at(1)), Ok(a.clone()), "it has not said anything yet");
        let usage = HostUsage { disk_capacity_bytes: 100, disk_free_bytes: 40, ..Default::default() };
        report(&mut hosts, usage.clone());
        assert_eq!(hosts.choose(&demand(1), "", at(1)), Ok(a.clone()));
        hosts.book(&a, Holding { memory_mib: 1, disk_bytes: 64 }, true, at(1));
        assert_eq!(hosts.choose(&demand(1), "", at(1)), short, "two disks of 64 may come to write 64");
        hosts.book(&a, Holding { memory_mib: 1, disk_bytes: 64 }, false, at(1));
        report(&mut hosts, HostUsage { disk_short: true, ..usage });
        assert_eq!(hosts.choose(&demand(1), "", at(1)), short);
    }
}
