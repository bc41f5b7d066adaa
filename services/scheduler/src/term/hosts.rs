//! Hosts: their leases, their reports, draining, bakes. What a host observes is
//! merged here; what it should not hold is named back to it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::host::v1::{Host, HostSpec, HostUsage, ObservedMicrovm, RecordedMicrovm, StaleMicrovm};
use clock::Difference;
use futures::StreamExt as _;
use model::state::{MicrovmEvent, MicrovmState};
use model::{HostId, MicrovmId};
use prost::Message as _;
use records::Event;

use super::Term;
use super::commit::{apply_event, go_back};
use super::drain::progress;
use super::memory::{Handle, Memory};
use super::vouchers::VouchersReply;
use crate::adapters::microvms as codec;
use crate::domain::hosts;
use crate::domain::microvm::{Intent, Microvm};
use crate::domain::observation::{MergeOutcome, Observation, RecordChange, merge};
use crate::refusal::Refusal;

/// Records written at a time for one report.
const MERGES_CONCURRENT: usize = 32;
/// How long a record may not be in a host's list yet after it changed, as a multiple of the clock difference that is allowed: from
/// a host that is ahead by all of it, a list that took twice as long does not look late.
const SETTLED: u32 = 2;
/// How often a merge that could not be recorded is tried again.
const RECORD_ATTEMPTS: usize = 3;

/// Prefix of the hosts' own records, each under its host's lease.
pub(crate) const HOSTS: &str = "hosts/";

const REASON_GONE: &str = "The host no longer holds this MicroVM.";
const REASON_SNAPSHOT_GONE: &str = "The host no longer holds this MicroVM's snapshot.";

const REASON_VOUCHED: &str = "It cannot reach etcd, and goes on by the schedulers' vouches.";

/// What a host is told after it registered or reported.
#[derive(Debug, Default, PartialEq)]
pub struct RegisterReply {
    pub register: bool,
    pub stale: Vec<StaleMicrovm>,
    /// What the records of the reported say by now, durably.
    pub recorded: Vec<RecordedMicrovm>,
    /// It wakes nothing by itself.
    pub draining: bool,
    pub vouchers: VouchersReply,
}

impl Term {
    /// A host says who it is and what it holds.
    pub async fn register(
        self: &Arc<Self>,
        host: HostId,
        spec: HostSpec,
        (usage, clock): (Option<HostUsage>, Option<SystemTime>),
        observed: Vec<ObservedMicrovm>,
        vouchers: Vec<String>,
    ) -> Result<RegisterReply, Refusal> {
        let late = self.compare_clock(&host, clock)?;
        let vouchers = self.record_vouchers(&host, vouchers).await?;
        let now = self.now();
        let address = spec.grpc_address.clone();
        tracing::info!(%host, address, "host registered");
        {
            let mut memory = self.memory();
            let entry = memory.hosts.entry(&host, now);
            entry.spec = spec;
            entry.registered = true;
            memory.hosts.report(&host, usage, now);
        }
        let (term, warmed) = (Arc::clone(self), host.clone());
        self.spawn(async move { term.context.agents.warm(&warmed, &address).await });
        Ok(RegisterReply { vouchers, ..self.merge_report(&host, observed, !late).await? })
    }

    pub async fn heartbeat(
        self: &Arc<Self>,
        host: HostId,
        (usage, clock): (Option<HostUsage>, Option<SystemTime>),
        observed: Vec<ObservedMicrovm>,
        complete: bool,
    ) -> Result<RegisterReply, Refusal> {
        let late = self.compare_clock(&host, clock)?;
        if !self.memory().hosts.report(&host, usage, self.now()) {
            return Ok(RegisterReply { register: true, ..RegisterReply::default() });
        }
        self.merge_report(&host, observed, complete && !late).await
    }

    /// Refuses a host whose clock, read as its report left, differs too much from ours. Its lease stays, and with it what it
    /// holds and serves; as soon as its clock is right, it reports all of that.
    ///
    /// True when the report may have been under way for long, and was made before a launch or wake that it does not have: what
    /// it has is merged, and what it has not is for the next complete list to judge.
    fn compare_clock(&self, host: &HostId, clock: Option<SystemTime>) -> Result<bool, Refusal> {
        let Some(clock) = clock else { return Ok(false) };
        let max = self.clock_difference_max();
        let difference = Difference::between(clock, self.wall());
        let (mut memory, now) = (self.memory(), self.now());
        match memory.hosts.compare_clock(host, difference, max, now) {
            Some(sentence) => Err(Refusal::HostClock(sentence)),
            None => Ok(memory.hosts.is_doubted(host)),
        }
    }

    fn clock_difference_max(&self) -> Duration {
        Duration::from_secs(self.config().host_clock_difference_max_seconds)
    }

    /// Merges a report and returns what the host must drop and what is recorded. Answers only when
    /// every change is durable: the host keeps what was not answered.
    async fn merge_report(
        self: &Arc<Self>,
        host: &HostId,
        observed: Vec<ObservedMicrovm>,
        complete: bool,
    ) -> Result<RegisterReply, Refusal> {
        let draining = self.memory().hosts.get(host).is_some_and(|host| host.draining);
        let mut reply = RegisterReply { draining, ..RegisterReply::default() };
        if observed.is_empty() && !complete {
            return Ok(reply);
        }
        let (term, host) = (Arc::clone(self), host.clone());
        self.detached(async move {
            let mut present = HashSet::new();
            let mut seen = Vec::new();
            for wire in observed {
                match observation(wire) {
                    Some(observation) => {
                        present.insert(observation.id.clone());
                        seen.push(observation);
                    }
                    None => tracing::warn!(%host, "an observation cannot be read and is ignored"),
                }
            }
            let merges = seen.into_iter().map(|seen| {
                let (term, host) = (Arc::clone(&term), host.clone());
                async move {
                    let outcome = term.observe(&host, &seen).await;
                    (seen, outcome)
                }
            });
            let mut merges = futures::stream::iter(merges).buffer_unordered(MERGES_CONCURRENT);
            while let Some((seen, outcome)) = merges.next().await {
                if outcome? == MergeOutcome::Stale {
                    let (microvm_id, generation) = (seen.id.to_string(), seen.generation);
                    reply.stale.push(StaleMicrovm { microvm_id, generation });
                }
                reply.recorded.extend(term.handle(&seen.id).ok().and_then(|it| recorded(&it.current())));
            }
            if complete {
                term.mark_missing(&host, &present).await?;
            }
            Ok(reply)
        })
        .await
    }

    /// Merges one observation; durable when this returns, but for a state on the way to another.
    pub(crate) async fn observe(
        self: &Arc<Self>,
        host: &HostId,
        seen: &Observation,
    ) -> Result<MergeOutcome, Refusal> {
        let Ok(handle) = self.handle(&seen.id) else {
            let unreadable = self.memory().unreadable.contains(&seen.id);
            let nothing = MergeOutcome::Merged(RecordChange::None);
            return Ok(if unreadable { nothing } else { MergeOutcome::Stale });
        };
        let now = self.now();
        // Most observations say nothing new: no lock, no write. But a write whose fate is not known yet may take the microVM from this
        // host, which goes on by what it is answered here: then that is waited for.
        let judge = || merge(&mut (*handle.current()).clone(), host, seen, now);
        let is_written = handle.revision.try_lock().is_ok();
        let outcome = judge();
        match outcome {
            MergeOutcome::Merged(RecordChange::None) | MergeOutcome::Stale if is_written => {
                return Ok(outcome);
            }
            MergeOutcome::Impossible => {
                tracing::error!(microvm = %seen.id, %host, generation = seen.generation, state = %seen.state,
                    "a host reports what cannot be; ignored");
                return Ok(outcome);
            }
            MergeOutcome::Merged(_) | MergeOutcome::Stale => {}
        }
        // Again under the lock: between the look above and the lock another report
        // may have said the same, or a launch may have moved the microVM.
        let change = |record: &mut Microvm| {
            Ok(match merge(record, host, seen, now) {
                MergeOutcome::Merged(change) => change,
                MergeOutcome::Stale | MergeOutcome::Impossible => RecordChange::None,
            })
        };
        self.update(&handle, change).await?;
        Ok(judge())
    }

    /// Merges what a host answered to a call. When the answer cannot be recorded,
    /// the host has done it all the same: its next report says so.
    pub(crate) async fn observe_answer(
        self: &Arc<Self>,
        host: &HostId,
        observed: Option<ObservedMicrovm>,
    ) -> Result<(), Refusal> {
        let Some(seen) = observed.and_then(observation) else {
            return Err(Refusal::Internal(format!("host {host} answered without an observation")));
        };
        let mut attempt = 1;
        loop {
            match self.observe(host, &seen).await {
                Ok(_) => return Ok(()),
                Err(refusal) if attempt == RECORD_ATTEMPTS || self.is_over() => return Err(refusal),
                Err(_) => attempt += 1,
            }
        }
    }

    /// Deals with microVMs that a host's complete list does not have.
    ///
    /// A list is older than it looks: the host made it, then a launch or wake came and was answered, then the
    /// list arrived here. So a record that changed a moment ago, and a microVM with an operation under way,
    /// are left alone; the next complete list judges them.
    async fn mark_missing(
        self: &Arc<Self>,
        host: &HostId,
        present: &HashSet<MicrovmId>,
    ) -> Result<(), Refusal> {
        let now = self.now();
        let (missing, unreadable): (Vec<Arc<Handle>>, HashSet<MicrovmId>) = {
            let memory = self.memory();
            let missing = memory.on_host(host).into_iter().filter(|handle| !present.contains(&handle.id));
            let usage = memory.hosts.get(host).map(|host| &host.usage);
            let unreadable = usage.into_iter().flat_map(|usage| &usage.unreadable_microvm_ids);
            (missing.collect(), unreadable.filter_map(|id| id.parse().ok()).collect())
        };
        let settled = self.clock_difference_max() * SETTLED;
        for handle in missing {
            // What is being launched, woken or ended is not the list's to decide.
            if !handle.is_idle() {
                continue;
            }
            let change = |record: &mut Microvm| {
                let latest = record.state_time.max(record.placement.time);
                if record.placement.host != *host || latest + settled > now || record.intent == Intent::End {
                    return Ok(RecordChange::None);
                }
                missing_change(record, unreadable.contains(&record.id), now)
            };
            let before = handle.current();
            let (after, changed) = self.update(&handle, change).await?;
            if changed && before.state != MicrovmState::Suspended && after.state == MicrovmState::Suspended {
                self.wake_recovered(&handle);
            }
            if after.state == MicrovmState::Terminated {
                self.remove_snapshots_of(&before);
            }
        }
        Ok(())
    }

    pub(crate) fn apply_host_records(self: &Arc<Self>, event: Event) {
        let now = self.now();
        let id = |key: &str| key[HOSTS.len()..].parse::<HostId>().ok();
        match event {
            Event::Put(key, value) => self.lease_seen(&key, &value.value, now),
            Event::Delete(key) => {
                if let Some(host) = id(&key) {
                    tracing::warn!(%host, "host lease is gone");
                    self.memory().hosts.lease_lost(&host, now);
                }
            }
            Event::Snapshot(entries) => {
                let leased: HashSet<HostId> = entries.iter().filter_map(|(key, _)| id(key)).collect();
                {
                    let mut memory = self.memory();
                    for host in memory.hosts.leased() {
                        if !leased.contains(&host) {
                            tracing::warn!(%host, "host lease is gone");
                            memory.hosts.lease_lost(&host, now);
                        }
                    }
                }
                for (key, value) in entries {
                    self.lease_seen(&key, &value.value, now);
                }
            }
        }
    }

    fn lease_seen(self: &Arc<Self>, key: &str, value: &[u8], now: SystemTime) {
        let spec = HostSpec::decode(value).ok();
        let host = spec.as_ref().and_then(|spec| spec.host_id.parse::<HostId>().ok());
        // etcd lets a host write its own key only, so the key says whose the record is.
        let host = host.filter(|host| key.strip_prefix(HOSTS) == Some(host.as_str()));
        let (Some(spec), Some(host)) = (spec, host) else {
            tracing::error!(key, "a host's record cannot be read, or is of another host, and is ignored");
            return;
        };
        let address = spec.grpc_address.clone();
        {
            let mut memory = self.memory();
            let moved = memory.hosts.lease_seen(&host, spec, now);
            // Edges route by the address in the microVM's entry.
            for handle in if moved { memory.on_host(&host) } else { Vec::new() } {
                memory.announce(&handle);
            }
        }
        tracing::info!(%host, address, "host lease is there");
        let term = Arc::clone(self);
        self.spawn(async move { term.context.agents.warm(&host, &address).await });
    }

    /// A host as callers see it.
    pub fn host(&self, id: &HostId) -> Result<Host, Refusal> {
        let memory = self.memory();
        memory
            .hosts
            .get(id)
            .map(|host| self.describe(&memory, id, host))
            .ok_or_else(|| Refusal::HostNotFound(id.clone()))
    }

    /// Up to `limit` hosts after `after`, by id.
    pub fn list_hosts(&self, after: Option<&HostId>, limit: usize) -> Vec<Host> {
        let memory = self.memory();
        let behind = memory.hosts.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        behind.take(limit).map(|(id, host)| self.describe(&memory, id, host)).collect()
    }

    fn describe(&self, memory: &Memory, id: &HostId, host: &hosts::Host) -> Host {
        let vouched = host.lease_gone.is_some() && self.context.vouches.is_given(id);
        let reason = host.refused.clone().or_else(|| vouched.then(|| REASON_VOUCHED.to_owned()));
        Host {
            spec: Some(HostSpec { host_id: id.to_string(), ..host.spec.clone() }),
            usage: Some(host.usage.clone()),
            state: host.state().into(),
            heartbeat_time: host.heartbeat_time.map(api::timestamp),
            state_reason: reason.unwrap_or_default(),
            drain: host.draining.then(|| progress(memory, id, host.wake_elsewhere)),
        }
    }

    /// Where a host's gRPC server listens; `None` while its lease is gone.
    pub(crate) fn grpc_address(&self, host: &HostId) -> Option<String> {
        let memory = self.memory();
        let host = memory.hosts.get(host).filter(|host| host.lease_gone.is_none())?;
        (!host.spec.grpc_address.is_empty()).then(|| host.spec.grpc_address.clone())
    }

    /// The lease of a host's record, as last seen; 0 when none has been.
    pub(crate) fn host_lease(&self, host: &HostId) -> i64 {
        self.memory().hosts.get(host).map_or(0, |host| host.lease)
    }

    /// Whether a host has stopped serving by now, wherever it is: what slept there may wake elsewhere.
    pub(crate) fn is_fenced(&self, host: &HostId, now: SystemTime) -> bool {
        self.may_give_up(&self.memory(), host, self.config().fence_grace(), now)
    }

    /// Whether a host is given up.
    pub(crate) fn is_lost(&self, host: &HostId) -> bool {
        let (memory, grace) = (self.memory(), self.config().lost_grace());
        memory.hosts.get(host).is_none() || self.may_give_up(&memory, host, grace, self.now())
    }
}

/// Key of a host's own record.
pub(crate) fn key(host: &HostId) -> String {
    format!("{HOSTS}{host}")
}

/// What the record of a microVM says from now on that its host does not hold. One that sleeps and whose files are there, but
/// `unreadable`, is kept: an operator may bring it back.
fn missing_change(record: &mut Microvm, unreadable: bool, now: SystemTime) -> Result<RecordChange, Refusal> {
    match record.state {
        MicrovmState::Running | MicrovmState::Suspending if record.has_recovery_point() => {
            go_back(record, REASON_GONE, now)
        }
        MicrovmState::Running | MicrovmState::Suspending => {
            apply_event(record, MicrovmEvent::Ended, REASON_GONE, now)
        }
        MicrovmState::Suspended if !record.has_remote_copy() && unreadable => Ok(RecordChange::None),
        MicrovmState::Suspended if !record.has_remote_copy() => {
            apply_event(record, MicrovmEvent::Ended, REASON_SNAPSHOT_GONE, now)
        }
        // S3 has it: it wakes from there.
        MicrovmState::Suspended => match &mut record.snapshot {
            Some(copies) if copies.local => {
                copies.local = false;
                Ok(RecordChange::Durable)
            }
            _ => Ok(RecordChange::None),
        },
        MicrovmState::Pending | MicrovmState::Terminating | MicrovmState::Terminated => {
            Ok(RecordChange::None)
        }
    }
}

/// What a record says to a host of what S3 has; nothing when there is nothing in S3 and it has not ended. What is in memory of
/// snapshots and ends is durable.
fn recorded(record: &Microvm) -> Option<RecordedMicrovm> {
    let ended = record.state == MicrovmState::Terminated;
    let copy = record.snapshot.as_ref().filter(|copies| copies.remote);
    (ended || copy.is_some()).then(|| RecordedMicrovm {
        microvm_id: record.id.to_string(),
        generation: record.placement.generation,
        snapshot_generation: copy.map_or(0, |copy| copy.generation),
        snapshot_sequence: copy.map_or(0, |copy| copy.sequence),
        ended,
    })
}

/// From the wire; `None` when it says nothing that can be understood.
fn observation(wire: ObservedMicrovm) -> Option<Observation> {
    Some(Observation {
        id: wire.microvm_id.parse().ok()?,
        generation: wire.generation,
        number: wire.observation,
        state: codec::model_state(wire.state())?,
        state_time: wire.state_time.as_ref().and_then(|time| api::system_time(time).ok()),
        reason: wire.state_reason,
        snapshot: wire.snapshot,
        metering: wire.metering,
        last_transition: wire.last_transition,
        went_back: wire.went_back.and_then(|back| {
            let time = |time: Option<prost_types::Timestamp>| api::system_time(&time?).ok();
            Some((time(back.time)?, time(back.point_time)?))
        }),
    })
}
