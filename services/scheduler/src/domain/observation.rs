//! Takes in what a host observed. Observations are ordered by generation, then by number; what is older than
//! the record changes nothing, and what comes from an older placement is told to go.

use std::time::{Duration, SystemTime};

use api::common::v1::Metering;
use api::microvm::v1::{LastTransition, SnapshotCopies};
use model::state::{MicrovmEvent, MicrovmState};
use model::{HostId, MicrovmId, SnapshotNumber};

use super::microvm::{Intent, Microvm, Recovery, made_at};

/// How much earlier than now a state may have begun that a host has just told of. When it told later, because nobody led or
/// its clock is behind, the state counts from this long ago: no window is over before anybody knew that it was open.
pub const OBSERVED_LATE_MAX: Duration = Duration::from_secs(10);

/// What a host observed of one microVM.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub id: MicrovmId,
    pub generation: u64,
    /// Number of the observation within the generation.
    pub number: u64,
    pub state: MicrovmState,
    pub reason: String,
    /// When the state began, by the host's clock.
    pub state_time: Option<SystemTime>,
    pub snapshot: Option<SnapshotCopies>,
    pub metering: Option<Metering>,
    pub last_transition: Option<LastTransition>,
    /// When its host had it go back to a recovery point last, and when that point had been made.
    pub went_back: Option<(SystemTime, SystemTime)>,
}

/// What a change did to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordChange {
    None,
    /// Running totals and timings: kept in memory, written with the next change.
    Totals,
    /// It began to go to sleep: shown to everybody, written with the next change.
    /// The record says RUNNING until then, which is what it is again when its
    /// host does not get to the end. A new leader hears of it from the host again.
    Passing,
    Durable,
}

/// What an observation means for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeOutcome {
    /// The record was changed so.
    Merged(RecordChange),
    /// The host must drop it: placed elsewhere since, or ended.
    Stale,
    /// It cannot be: a newer generation than was ever given out, or a
    /// transition the table does not have. A human should look.
    Impossible,
}

/// Merges what `host` observed into the record.
///
/// News of a microVM reaches the scheduler in two ways: in the host's answer to a launch, suspend or wake,
/// and in the host's reports. Both carry the same numbered observations and both end here, so their order
/// does not matter. When a wake's answer is lost, the next report says RUNNING with the number that the
/// answer had, and whoever asked again finds it so. When a report overtakes the answer, the answer's number
/// is not newer and changes nothing.
pub fn merge(record: &mut Microvm, host: &HostId, seen: &Observation, now: SystemTime) -> MergeOutcome {
    let placement = &record.placement;
    if seen.generation > placement.generation {
        return MergeOutcome::Impossible;
    }
    if *host != placement.host {
        return MergeOutcome::Stale;
    }
    // Placed here anew, and the host has not heard of it yet.
    if seen.generation < placement.generation {
        let may_go = seen.state != MicrovmState::Terminated && !is_needed(record, seen);
        return if may_go { MergeOutcome::Stale } else { MergeOutcome::Merged(RecordChange::None) };
    }
    if record.state == MicrovmState::Terminated {
        let gone = seen.state == MicrovmState::Terminated;
        return if gone { MergeOutcome::Merged(RecordChange::None) } else { MergeOutcome::Stale };
    }
    if seen.number <= record.observation {
        // Totals only rise: however old the observation, the larger ones count.
        let risen = add_up(record, seen.metering);
        return MergeOutcome::Merged(if risen { RecordChange::Totals } else { RecordChange::None });
    }
    let before =
        (record.state, record.state_reason.clone(), record.snapshot.clone(), record.recovery.clone());
    let mut next = record.clone();
    if !apply_state(&mut next, seen, now) {
        return MergeOutcome::Impossible;
    }
    if is_behind(record, seen) {
        let point_time = made_at(seen.snapshot.as_ref()).unwrap_or(next.state_time);
        next.state_reason = undone(host, now.duration_since(point_time).unwrap_or_default());
        next.recovery = Some(Recovery { host: host.clone(), time: now, point_time });
    }
    *record = next;
    let mut totals = add_up(record, seen.metering);
    if seen.last_transition.is_some() && seen.last_transition != record.last_transition {
        totals = true;
        record.last_transition.clone_from(&seen.last_transition);
    }
    if record.state != MicrovmState::Terminated
        && let Some(copies) = &seen.snapshot
    {
        let runs = matches!(record.state, MicrovmState::Running | MicrovmState::Suspending);
        record.snapshot = Some(newer(record.snapshot.take(), copies, runs));
    }
    if let Some((time, point_time)) = seen.went_back
        && record.recovery.as_ref().is_none_or(|known| known.time < time)
    {
        record.recovery = Some(Recovery { host: host.clone(), time, point_time });
    }
    record.observation = seen.number;
    let after = (record.state, record.state_reason.clone(), record.snapshot.clone(), record.recovery.clone());
    if (before.0, after.0) == (MicrovmState::Running, MicrovmState::Suspending) && before.2 == after.2 {
        MergeOutcome::Merged(RecordChange::Passing)
    } else if after != before {
        MergeOutcome::Merged(RecordChange::Durable)
    } else if totals {
        MergeOutcome::Merged(RecordChange::Totals)
    } else {
        MergeOutcome::Merged(RecordChange::None)
    }
}

/// Whether what a host holds of an older placement is of use to the newer one on the same host: it may be the only copy of
/// the snapshot that the record names, and the command that is on its way must not find it dropped. What is not of use
/// goes: an edge that has not heard of the placements since would wake it, with a memory of before them.
fn is_needed(record: &Microvm, seen: &Observation) -> bool {
    if record.state == MicrovmState::Terminated {
        return false;
    }
    record.snapshot.as_ref().is_none_or(|named| {
        let is_named = seen.snapshot.as_ref().is_some_and(|held| number(held) == number(named));
        is_named || !named.remote
    })
}

/// Whether a microVM that ran sleeps in the snapshot that it had woken from, and its host does not know of that: a host writes
/// that one has woken without waiting for its disk, so one that loses power a moment later finds it asleep.
fn is_behind(record: &Microvm, seen: &Observation) -> bool {
    let knows = |time| record.recovery.as_ref().is_some_and(|known| time <= known.time);
    let is_same =
        |known: &SnapshotCopies| seen.snapshot.as_ref().is_some_and(|one| number(one) == number(known));
    record.intent == Intent::Live
        && record.state == MicrovmState::Running
        && seen.state == MicrovmState::Suspended
        && seen.went_back.is_none_or(|(time, _)| knows(time))
        && record.snapshot.as_ref().is_some_and(is_same)
}

/// What people are told of it; `age` is the snapshot's.
fn undone(host: &HostId, age: Duration) -> String {
    let seconds = age.as_secs();
    format!(
        "Host {host} stopped before it had written that this woke. It is again as it slept {seconds} s ago."
    )
}

/// Brings the record's state to the observed one. False when the table has no way there.
fn apply_state(record: &mut Microvm, seen: &Observation, now: SystemTime) -> bool {
    use MicrovmEvent as E;
    use MicrovmState as S;
    // An end that was decided stays decided, whatever the host was doing meanwhile.
    if record.intent == Intent::End && seen.state != S::Terminated {
        return true;
    }
    let events: &[E] = match (record.state, seen.state) {
        (_, S::Terminated) => &[E::Ended],
        (_, S::Terminating) => &[E::TerminateBegan],
        // Steps in between that were too quick to be reported.
        (S::Pending, S::Suspending) => &[E::Started, E::SuspendBegan],
        (S::Pending, S::Suspended) => &[E::Started, E::SuspendDone],
        (S::Suspended, S::Suspending) => &[E::Started, E::SuspendBegan],
        (S::Suspending, S::Running) => &[E::SuspendFailed],
        (_, S::Running) => &[E::Started],
        (_, S::Suspending) => &[E::SuspendBegan],
        (_, S::Suspended) => &[E::SuspendDone],
        (S::Pending, S::Pending) => &[],
        (_, S::Pending) => return false,
    };
    let at = seen.state_time.map_or(now, |time| began(record, time, now));
    // Why an end was asked for is ours to say; the host's word counts otherwise.
    let ours = record.intent == Intent::End && !record.state_reason.is_empty();
    let reason = if ours { record.state_reason.clone() } else { seen.reason.clone() };
    events.iter().all(|event| record.apply_event(*event, &reason, at).is_ok())
}

/// When a state began, as far as a host's clock is believed: not in the future, not before the state that it followed, and not
/// long before anybody heard of it.
fn began(record: &Microvm, by_host: SystemTime, now: SystemTime) -> SystemTime {
    let earliest = now.checked_sub(OBSERVED_LATE_MAX).unwrap_or(now).max(record.state_time);
    by_host.max(earliest).min(now)
}

/// Brings the record's totals to what was used before this placement and what its host counts. True when one has risen.
fn add_up(record: &mut Microvm, seen: Option<Metering>) -> bool {
    let Some(seen) = seen else { return false };
    let (before, known) = (record.metering_before.unwrap_or_default(), record.metering.unwrap_or_default());
    let totals = known.largest(before.plus(seen));
    let risen = record.metering != Some(totals);
    record.metering = Some(totals);
    risen
}

/// Copies of the newer snapshot; of the same one, a remote copy that was seen once stays known. A record may lack the generation:
/// then the number tells. Of a microVM that runs, a newer one counts when S3 has it: until then it goes on from the one before
/// when its host is lost.
fn newer(known: Option<SnapshotCopies>, seen: &SnapshotCopies, runs: bool) -> SnapshotCopies {
    match known {
        Some(known) if number(&known) > number(seen) => known,
        Some(known) if runs && known.remote && !seen.remote && number(&known) < number(seen) => {
            SnapshotCopies { local: false, goes_back: seen.goes_back, ..known }
        }
        Some(known)
            if known.sequence == seen.sequence
                && (known.generation == 0 || known.generation == seen.generation)
                && known.remote
                && !seen.remote =>
        {
            SnapshotCopies { local: seen.local, generation: seen.generation, ..known }
        }
        _ => seen.clone(),
    }
}

fn number(copies: &SnapshotCopies) -> SnapshotNumber {
    SnapshotNumber::new(copies.generation, copies.sequence)
}

#[cfg(test)]
mod tests {
    use super::super::microvm::tests::sample;
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn seen(record: &Microvm, number: u64, state: MicrovmState) -> Observation {
        Observation {
            id: record.id.clone(),
            generation: record.placement.generation,
            number,
            state,
            reason: String::new(),
            state_time: Some(at(number)),
            snapshot: None,
            metering: None,
            last_transition: None,
            went_back: None,
        }
    }

    #[test]
    fn effects_table() {
        use MergeOutcome::{Impossible, Merged, Stale};
        use MicrovmState as S;
        use RecordChange as C;
        let host: HostId = "h1".parse().unwrap();
        let other: HostId = "h2".parse().unwrap();
        let record = sample(1, at(0));
        let mut running = record.clone();
        running.observation = 5;
        running.state = S::Running;
        let mut ending = running.clone();
        ending.intent = Intent::End;
        ending.state = S::Terminating;
        let mut ended = running.clone();
        ended.apply_event(MicrovmEvent::Ended, "x", at(6)).unwrap();
        let generation =
            |record: &Microvm, generation, state| Observation { generation, ..seen(record, 9, state) };
        for (name, record, host, observation, effect, state) in [
            ("launched", &record, &host, seen(&record, 1, S::Running), Merged(C::Durable), S::Running),
            ("quick sleep", &record, &host, seen(&record, 3, S::Suspended), Merged(C::Durable), S::Suspended),
            (
                "launch failed",
                &record,
                &host,
                seen(&record, 1, S::Terminated),
                Merged(C::Durable),
                S::Terminated,
            ),
            ("seen already", &running, &host, seen(&running, 5, S::Suspended), Merged(C::None), S::Running),
            ("the same again", &running, &host, seen(&running, 6, S::Running), Merged(C::None), S::Running),
            (
                "suspending",
                &running,
                &host,
                seen(&running, 6, S::Suspending),
                Merged(C::Passing),
                S::Suspending,
            ),
            (
                "older placement",
                &running,
                &host,
                generation(&running, 0, S::Running),
                Merged(C::None),
                S::Running,
            ),
            ("wrong host", &running, &other, seen(&running, 9, S::Running), Stale, S::Running),
            ("from nowhere", &running, &host, generation(&running, 2, S::Running), Impossible, S::Running),
            ("back to pending", &running, &host, seen(&running, 9, S::Pending), Impossible, S::Running),
            ("being ended", &ending, &host, seen(&ending, 9, S::Running), Merged(C::None), S::Terminating),
            ("end done", &ending, &host, seen(&ending, 9, S::Terminated), Merged(C::Durable), S::Terminated),
            ("alive after its end", &ended, &host, seen(&ended, 9, S::Running), Stale, S::Terminated),
            (
                "gone after its end",
                &ended,
                &host,
                seen(&ended, 9, S::Terminated),
                Merged(C::None),
                S::Terminated,
            ),
        ] {
            let mut record = record.clone();
            assert_eq!(merge(&mut record, host, &observation, at(99)), effect, "{name}");
            assert_eq!(record.state, state, "{name}");
        }
    }

    #[test]
    fn what_an_older_placement_has_left_on_the_same_host_goes_unless_it_is_needed() {
        let host: HostId = "h1".parse().unwrap();
        let copies = |generation, remote: bool| SnapshotCopies {
            local: !remote,
            remote,
            generation,
            sequence: 2,
            ..Default::default()
        };
        let older = |record: &Microvm, state| Observation {
            generation: 1,
            snapshot: Some(copies(1, true)),
            ..seen(record, 9, state)
        };
        let mut record = sample(1, at(0));
        record.state = MicrovmState::Suspended;
        record.placement.generation = 3;
        let mut ended = record.clone();
        ended.apply_event(MicrovmEvent::Ended, "x", at(6)).unwrap();
        let (kept, goes) = (MergeOutcome::Merged(RecordChange::None), MergeOutcome::Stale);
        for (name, record, named, state, expected) in [
            ("the copy that is named", &record, copies(1, true), MicrovmState::Suspended, kept),
            ("one whose successor is nowhere else", &record, copies(2, false), MicrovmState::Suspended, kept),
            ("one whose successor is in S3", &record, copies(2, true), MicrovmState::Suspended, goes),
            ("one that runs", &record, copies(2, true), MicrovmState::Running, goes),
            ("one that has gone", &record, copies(2, true), MicrovmState::Terminated, kept),
            ("one that has ended since", &ended, copies(1, true), MicrovmState::Suspended, goes),
        ] {
            let mut record = Microvm { snapshot: Some(named), ..record.clone() };
            let before = record.clone();
            let observation = older(&record, state);
            assert_eq!(merge(&mut record, &host, &observation, at(99)), expected, "{name}");
            assert_eq!((record.state, record.snapshot), (before.state, before.snapshot), "{name}");
        }
    }

    #[test]
    fn one_that_sleeps_in_the_snapshot_that_it_woke_from_has_gone_back_and_says_so() {
        let host: HostId = "h1".parse().unwrap();
        let mut record = sample(1, at(0));
        let copies = |sequence, made| SnapshotCopies {
            local: true,
            generation: 1,
            sequence,
            time: Some(api::timestamp(at(made))),
            ..Default::default()
        };
        let with = |record: &Microvm, number, state, snapshot| Observation {
            snapshot: Some(snapshot),
            ..seen(record, number, state)
        };
        for (number, state, copies) in [
            (1, MicrovmState::Suspended, copies(1, 1)),
            (2, MicrovmState::Running, copies(1, 1)),
            (3, MicrovmState::Suspended, copies(2, 3)),
            (4, MicrovmState::Running, copies(2, 3)),
        ] {
            let observation = with(&record, number, state, copies);
            merge(&mut record, &host, &observation, at(number));
            assert_eq!((record.state, &record.recovery), (state, &None), "{number}");
        }
        let behind = with(&record, 50, MicrovmState::Suspended, copies(2, 3));
        // One that its host has had go back says why by itself.
        let told = Observation { went_back: Some((at(49), at(3))), reason: "why".into(), ..behind.clone() };
        let mut knows = record.clone();
        merge(&mut knows, &host, &told, at(50));
        assert_eq!((knows.state_reason.as_str(), knows.recovery.unwrap().time), ("why", at(49)));

        assert_eq!(merge(&mut record, &host, &behind, at(50)), MergeOutcome::Merged(RecordChange::Durable));
        assert_eq!(record.state, MicrovmState::Suspended);
        let reason =
            "Host h1 stopped before it had written that this woke. It is again as it slept 47 s ago.";
        assert_eq!(record.state_reason, reason);
        let recovery = record.recovery.clone().unwrap();
        assert_eq!((recovery.time, recovery.point_time), (at(50), at(3)));
    }

    #[test]
    fn a_failed_suspend_says_why_and_our_reason_for_an_end_stays() {
        let host: HostId = "h1".parse().unwrap();
        let mut record = sample(1, at(0));
        for (number, state) in [(1, MicrovmState::Running), (2, MicrovmState::Suspending)] {
            let observation = seen(&record, number, state);
            merge(&mut record, &host, &observation, at(9));
        }
        let failed = Observation { reason: "disk full".into(), ..seen(&record, 3, MicrovmState::Running) };
        assert_eq!(merge(&mut record, &host, &failed, at(9)), MergeOutcome::Merged(RecordChange::Durable));
        assert_eq!((record.state, record.state_reason.as_str()), (MicrovmState::Running, "disk full"));
        record.intent = Intent::End;
        record.apply_event(MicrovmEvent::TerminateBegan, "ours", at(9)).unwrap();
        let ended = Observation { reason: "theirs".into(), ..seen(&record, 4, MicrovmState::Terminated) };
        merge(&mut record, &host, &ended, at(9));
        assert_eq!(record.state_reason, "ours");
    }

    #[test]
    fn a_hosts_clock_moves_no_state_far() {
        let host: HostId = "h1".parse().unwrap();
        for (by_host, expected) in [
            (Some(1_000), 1_000),
            // Three hours ahead; three hours behind; told of late; not said.
            (Some(11_800), 1_005),
            (Some(0), 995),
            (Some(994), 995),
            (None, 1_005),
        ] {
            let mut record = sample(1, at(0));
            let running =
                Observation { state_time: Some(at(500)), ..seen(&record, 1, MicrovmState::Running) };
            merge(&mut record, &host, &running, at(500));
            let state_time = by_host.map(at);
            let asleep = Observation { state_time, ..seen(&record, 2, MicrovmState::Suspended) };
            merge(&mut record, &host, &asleep, at(1_005));
            assert_eq!(record.state_time, at(expected), "{by_host:?}");
        }
        // Not before the state that it follows.
        let mut record = sample(1, at(0));
        for (number, state, now) in [(1, MicrovmState::Running, 100), (2, MicrovmState::Suspended, 103)] {
            let told = Observation { state_time: Some(at(10)), ..seen(&record, number, state) };
            merge(&mut record, &host, &told, at(now));
        }
        assert_eq!(record.state_time, at(93), "the sleep");
        let mut record = sample(1, at(100));
        let told = Observation { state_time: Some(at(10)), ..seen(&record, 1, MicrovmState::Running) };
        merge(&mut record, &host, &told, at(103));
        assert_eq!(record.state_time, at(100));
    }

    #[test]
    fn totals_never_shrink_and_add_up_over_placements() {
        let host: HostId = "h1".parse().unwrap();
        let used = |vcpu_seconds, endpoint_bytes| {
            Some(Metering { vcpu_seconds, endpoint_bytes, ..Default::default() })
        };
        let mut record = sample(1, at(0));
        let tell = |record: &mut Microvm, number, metering, expected| {
            let told = Observation { metering, ..seen(record, number, MicrovmState::Running) };
            merge(record, &host, &told, at(99));
            assert_eq!(record.metering, expected, "{number}");
        };
        tell(&mut record, 1, used(5.0, 10), used(5.0, 10));
        // An agent that came back with less, an answer that was overtaken, and news without a number of its own.
        tell(&mut record, 2, used(3.0, 12), used(5.0, 12));
        tell(&mut record, 1, used(6.0, 1), used(6.0, 12));
        tell(&mut record, 2, used(7.0, 12), used(7.0, 12));
        // The next host counts from zero.
        record.place("h1".parse().unwrap(), String::new(), at(100));
        tell(&mut record, 1, used(1.0, 2), used(8.0, 14));
        tell(&mut record, 2, None, used(8.0, 14));
    }

    #[test]
    fn a_remote_copy_once_seen_stays_known() {
        let copies = |generation, sequence, remote| SnapshotCopies {
            local: true,
            remote,
            generation,
            sequence,
            ..Default::default()
        };
        for (known, seen, expected) in [
            (None, copies(1, 1, false), copies(1, 1, false)),
            (Some(copies(1, 1, true)), copies(1, 1, false), copies(1, 1, true)),
            (Some(copies(1, 1, true)), copies(1, 2, false), copies(1, 2, false)),
            (Some(copies(1, 2, false)), copies(1, 1, true), copies(1, 2, false)),
            // A later placement's is newer, whatever the number.
            (Some(copies(1, 6, true)), copies(2, 5, false), copies(2, 5, false)),
            (Some(copies(2, 5, false)), copies(1, 6, true), copies(2, 5, false)),
            // A record that was written before records had generations.
            (Some(copies(0, 4, true)), copies(1, 4, false), copies(1, 4, true)),
            (Some(copies(0, 4, true)), copies(1, 5, false), copies(1, 5, false)),
        ] {
            assert_eq!(newer(known, &seen, false), expected);
        }
        // While it runs, the point in S3 counts until the next is there.
        let pointed = |copies: SnapshotCopies| SnapshotCopies { goes_back: true, ..copies };
        for (known, seen, expected) in [
            (copies(1, 1, true), copies(1, 2, false), SnapshotCopies { local: false, ..copies(1, 1, true) }),
            (
                copies(1, 1, true),
                pointed(copies(1, 2, false)),
                pointed(SnapshotCopies { local: false, ..copies(1, 1, true) }),
            ),
            (copies(1, 1, true), copies(1, 2, true), copies(1, 2, true)),
            (copies(1, 1, false), copies(1, 2, false), copies(1, 2, false)),
            (copies(1, 1, true), copies(1, 1, false), copies(1, 1, true)),
        ] {
            assert_eq!(newer(Some(known), &seen, true), expected);
        }
    }

    proptest! {
        /// However observations arrive, doubled and out of order, a record never
        /// goes back to an older one and never leaves TERMINATED.
        #[test]
        fn records_never_go_back(steps in proptest::collection::vec((0u64..3, 0u64..20, 0usize..6), 0..60)) {
            let host: HostId = "h1".parse().unwrap();
            let mut record = sample(1, at(0));
            for (generation, number, state) in steps {
                let before = record.clone();
                let observation = Observation {
                    generation,
                    ..seen(&record, number, MicrovmState::ALL[state])
                };
                let effect = merge(&mut record, &host, &observation, at(99));
                prop_assert!(record.observation >= before.observation);
                prop_assert!(record.placement == before.placement);
                if before.state == MicrovmState::Terminated {
                    prop_assert_eq!(record.state, MicrovmState::Terminated);
                }
                if generation != 1 || effect == MergeOutcome::Stale || effect == MergeOutcome::Impossible {
                    prop_assert_eq!(record.state, before.state);
                }
            }
        }
    }
}
