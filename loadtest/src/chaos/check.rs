//! The invariants, checked by what clients see. Pure: what happened goes in, what is broken comes out.
//!
//! The app counts its requests, and each microVM has one client here, which sends one request at a time. So every count that
//! is answered lies above all that were answered before, unless the microVM's record says that it went back to a recovery
//! point; and it lies above by no more than the requests that were sent.

use std::collections::HashMap;

use api::common::v1::Metering;
use api::microvm::v1::{Microvm, MicrovmState, UsageRow};
use serde::Serialize;

/// Pieces of evidence that are kept of each invariant.
const EVIDENCE_MAX: usize = 5;
/// Totals are sums of fractions, which may come in another order.
const ROUNDING: f64 = 1e-6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Invariant {
    OneHost,
    SuspendsStay,
    OneAnswer,
    States,
    Totals,
    Kept,
    Answered,
    Upkeep,
}

#[derive(Debug, Clone, Serialize)]
pub struct Held {
    pub invariant: &'static str,
    pub checks: u64,
    pub broken: u64,
    pub evidence: Vec<String>,
}

/// What is known of one microVM.
#[derive(Debug, Default)]
struct Seen {
    /// Highest count that was answered since it went back last.
    count: u64,
    /// The same when a suspend was acknowledged last.
    asleep_at: Option<u64>,
    /// Requests that were sent and not answered, and how many of them the app has counted all the same.
    unanswered: u64,
    counted: u64,
    /// When its host was lost, as its record says it.
    recovery: Option<(i64, i32)>,
    state: MicrovmState,
    generation: u64,
    host: String,
    /// Whether S3 has a snapshot of it, with which it can go on elsewhere.
    remote: bool,
    /// Whether its end was asked for.
    ending: bool,
}

/// Whether an answer needs the microVM's record to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Fine,
    /// Not above what was answered before.
    Lower,
}

#[derive(Debug)]
pub struct Checker {
    held: Vec<Held>,
    microvms: HashMap<String, Seen>,
    totals: HashMap<(i64, String), Metering>,
    /// How often a microVM went back and said so.
    pub went_back: u64,
}

impl Default for Checker {
    fn default() -> Self {
        let names = [
            "one microVM runs on one host",
            "no acknowledged suspend is lost",
            "every request has one answer",
            "states move along their tables",
            "totals grow",
            "what was launched is kept",
            "requests of healthy hosts are answered",
            "upkeep fails no request and no call",
        ];
        let held = names.map(|invariant| Held { invariant, checks: 0, broken: 0, evidence: Vec::new() });
        Self { held: held.into(), microvms: HashMap::new(), totals: HashMap::new(), went_back: 0 }
    }
}

impl Checker {
    pub fn check(&mut self, invariant: Invariant, holds: bool, evidence: impl FnOnce() -> String) {
        let held = &mut self.held[invariant as usize];
        held.checks += 1;
        if !holds {
            held.broken += 1;
            if held.evidence.len() < EVIDENCE_MAX {
                held.evidence.push(evidence());
            }
        }
    }

    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// Its launch was acknowledged.
    pub fn launched(&mut self, id: &str) {
        self.microvms.entry(id.to_owned()).or_default();
    }

    pub fn ending(&mut self, id: &str) {
        self.seen(id).ending = true;
    }

    /// Its suspend was acknowledged, with this record. One that was lost while its suspend was on its way, and went back, sleeps
    /// at a count that nobody has heard.
    pub fn suspended(&mut self, id: &str, record: &Microvm) {
        let seen = self.seen(id);
        if recovery(record) == seen.recovery {
            seen.asleep_at = Some(seen.count);
        }
    }

    /// A request may have reached it, and its answer did not come.
    pub fn unanswered(&mut self, id: &str) {
        self.seen(id).unanswered += 1;
    }

    /// It answered. After [`Count::Lower`], [`Checker::lower`] must be called with its record.
    pub fn answered(&mut self, id: &str, count: u64) -> Count {
        let seen = self.seen(id);
        let before = seen.count;
        if count <= before {
            return Count::Lower;
        }
        seen.counted += count - before - 1;
        seen.count = count;
        let (counted, unanswered) = (seen.counted, seen.unanswered);
        self.check(Invariant::OneHost, true, String::new);
        self.check(Invariant::OneAnswer, counted <= unanswered, || {
            format!("{id} answered {count} after {before}: {counted} counts have no answer, {unanswered} requests have none")
        });
        self.above_suspend(id, count);
        Count::Fine
    }

    /// It answered a count that is not above the one before; its record may say why.
    pub fn lower(&mut self, id: &str, count: u64, record: &Microvm) {
        let recovery = recovery(record);
        let seen = self.seen(id);
        let (before, known) = (seen.count, seen.recovery);
        let says_so = recovery.is_some() && recovery != known;
        seen.recovery = recovery.or(known);
        seen.count = count;
        // What was under way may have been undone or not.
        seen.counted = 0;
        self.went_back += u64::from(says_so);
        self.check(Invariant::OneHost, says_so, || {
            format!(
                "{id} answered {count} after {before}, and its record says of no recovery since; host {}, generation {}",
                record.host_id, record.generation
            )
        });
        self.above_suspend(id, count);
    }

    fn above_suspend(&mut self, id: &str, count: u64) {
        if let Some(asleep_at) = self.seen(id).asleep_at {
            self.check(Invariant::SuspendsStay, count > asleep_at, || {
                format!("{id} answered {count}, and its suspend at {asleep_at} was acknowledged")
            });
        }
    }

    /// Its record as a list shows it. `healthy` is false while its host is in trouble: what ran there may have ended.
    pub fn record(&mut self, microvm: &Microvm, healthy: bool) {
        let id = microvm.microvm_id.as_str();
        let Some(seen) = self.microvms.get_mut(id) else { return };
        let (state, before) = (microvm.state(), seen.state);
        let (generation, host) =
            (seen.generation, std::mem::replace(&mut seen.host, microvm.host_id.clone()));
        (seen.state, seen.generation) = (state, microvm.generation);
        seen.remote = microvm.snapshot.as_ref().is_some_and(|copies| copies.remote);
        let (ending, asleep) = (seen.ending, seen.asleep_at.is_some());
        self.check(Invariant::States, may_follow(before, state), || {
            format!("{id} was {} and is {}", before.as_str_name(), state.as_str_name())
        });
        let placed = microvm.generation > generation || host.is_empty() || host == microvm.host_id;
        self.check(Invariant::OneHost, microvm.generation >= generation && placed, || {
            format!(
                "{id} was on {host} in generation {generation} and is on {} in {}",
                microvm.host_id, microvm.generation
            )
        });
        if state == MicrovmState::Terminated && before != state {
            let why = || format!("{id} has ended by itself: {}", microvm.state_reason);
            self.check(Invariant::Kept, ending || !healthy, why);
            if before == MicrovmState::Suspended && asleep {
                self.check(Invariant::SuspendsStay, ending, why);
            }
        }
    }

    /// Every record of the run's image was read. `known` had been launched before that; `listed` says whether one of them
    /// was among the records.
    pub fn listed(&mut self, known: &[String], listed: impl Fn(&str) -> bool) {
        for id in known {
            self.check(Invariant::Kept, listed(id), || format!("{id} was launched and is not listed"));
        }
    }

    pub fn totals(&mut self, rows: &[UsageRow]) {
        for row in rows {
            let Some(now) = row.used else { continue };
            let day = row.day.as_ref().map_or(0, |day| day.seconds);
            let before = self.totals.insert((day, row.image_name.clone()), now).unwrap_or_default();
            self.check(Invariant::Totals, grows(&before, &now), || {
                format!("{} used {now:?} after {before:?}", row.image_name)
            });
        }
    }

    /// Host of a microVM and its state, as its record said last.
    pub fn place(&self, id: &str) -> Option<(String, MicrovmState)> {
        self.microvms.get(id).map(|seen| (seen.host.clone(), seen.state))
    }

    /// The microVMs whose records name a host, and that can go on elsewhere when it is lost.
    pub fn on_host(&self, host: &str) -> Vec<String> {
        let alive = |seen: &Seen| {
            seen.remote && seen.host == host && seen.state != MicrovmState::Terminated && !seen.ending
        };
        self.microvms.iter().filter(|(_, seen)| alive(seen)).map(|(id, _)| id.clone()).collect()
    }

    pub fn ids(&self) -> Vec<String> {
        self.microvms.keys().cloned().collect()
    }

    fn seen(&mut self, id: &str) -> &mut Seen {
        self.microvms.entry(id.to_owned()).or_default()
    }
}

fn recovery(record: &Microvm) -> Option<(i64, i32)> {
    let time = record.recovery.as_ref()?.time.as_ref()?;
    Some((time.seconds, time.nanos))
}

/// Whether one look at a record may show `now` after another one showed `before`: some states may lie between the two.
fn may_follow(before: MicrovmState, now: MicrovmState) -> bool {
    use MicrovmState::{Pending, Terminated, Terminating, Unspecified};
    match (before, now) {
        (_, Unspecified) => false,
        (Unspecified, _) => true,
        (Terminated, now) => now == Terminated,
        (Terminating, now) => matches!(now, Terminating | Terminated),
        (before, Pending) => before == Pending,
        _ => true,
    }
}

fn grows(before: &Metering, now: &Metering) -> bool {
    let seconds = |metering: &Metering| {
        [metering.vcpu_seconds, metering.baseline_gib_seconds, metering.burst_gib_seconds]
    };
    let bytes = |metering: &Metering| {
        [metering.snapshot_bytes_read, metering.snapshot_bytes_written, metering.endpoint_bytes]
    };
    seconds(before).iter().zip(seconds(now)).all(|(before, now)| now >= before * (1.0 - ROUNDING))
        && bytes(before).iter().zip(bytes(now)).all(|(before, now)| now >= *before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::microvm::v1::Recovery;
    use std::time::{Duration, UNIX_EPOCH};

    fn microvm(state: MicrovmState, host: &str, generation: u64, recovered: Option<u64>) -> Microvm {
        let time = |seconds| Some(api::timestamp(UNIX_EPOCH + Duration::from_secs(seconds)));
        Microvm {
            microvm_id: "a".to_owned(),
            state: state.into(),
            host_id: host.to_owned(),
            generation,
            recovery: recovered.map(|at| Recovery { time: time(at), ..Recovery::default() }),
            ..Microvm::default()
        }
    }

    fn broken(checker: &Checker) -> Vec<&'static str> {
        checker.held().iter().filter(|held| held.broken > 0).map(|held| held.invariant).collect()
    }

    #[test]
    fn a_counter_that_goes_on_breaks_nothing() {
        let mut checker = Checker::default();
        checker.launched("a");
        for count in [1, 2, 3] {
            assert_eq!(checker.answered("a", count), Count::Fine);
        }
        checker.suspended("a", &microvm(MicrovmState::Suspended, "h1", 1, None));
        checker.unanswered("a");
        assert_eq!(checker.answered("a", 5), Count::Fine, "the one without an answer was counted");
        assert!(broken(&checker).is_empty());
        checker.answered("a", 7);
        assert_eq!(broken(&checker), ["every request has one answer"]);
    }

    #[test]
    fn what_goes_back_must_say_so_and_keeps_what_slept() {
        let mut checker = Checker::default();
        for count in 1..=5 {
            checker.answered("a", count);
        }
        checker.suspended("a", &microvm(MicrovmState::Suspended, "h1", 1, None));
        checker.answered("a", 6);
        checker.answered("a", 7);
        assert_eq!(checker.answered("a", 7), Count::Lower);
        checker.lower("a", 7, &microvm(MicrovmState::Running, "h2", 2, Some(100)));
        assert!(broken(&checker).is_empty());
        assert_eq!(checker.went_back, 1);
        // Its host is lost while its suspend is asked for, which is carried out after it has gone back to 6.
        checker.suspended("a", &microvm(MicrovmState::Suspended, "h3", 3, Some(150)));
        assert_eq!(checker.answered("a", 7), Count::Lower);
        checker.lower("a", 7, &microvm(MicrovmState::Running, "h3", 3, Some(150)));
        assert!(broken(&checker).is_empty());
        // The same recovery does not explain a second time.
        assert_eq!(checker.answered("a", 7), Count::Lower);
        checker.lower("a", 7, &microvm(MicrovmState::Running, "h3", 3, Some(150)));
        assert_eq!(broken(&checker), ["one microVM runs on one host"]);
        checker.lower("a", 5, &microvm(MicrovmState::Running, "h3", 3, Some(200)));
        assert_eq!(broken(&checker), ["one microVM runs on one host", "no acknowledged suspend is lost"]);
    }

    #[test]
    fn records_move_with_their_generation_and_along_the_table() {
        use MicrovmState::{Pending, Running, Suspended, Terminated};
        let mut checker = Checker::default();
        checker.launched("a");
        for record in [
            microvm(Pending, "", 0, None),
            microvm(Running, "h1", 1, None),
            microvm(Suspended, "h1", 1, None),
            microvm(Running, "h2", 2, None),
        ] {
            checker.record(&record, true);
        }
        assert!(broken(&checker).is_empty());
        checker.record(&microvm(Running, "h1", 2, None), true);
        assert_eq!(broken(&checker), ["one microVM runs on one host"]);
        checker.record(&microvm(Pending, "h1", 2, None), true);
        assert!(broken(&checker).contains(&"states move along their tables"));
        checker.record(&microvm(Terminated, "h1", 2, None), false);
        assert!(!broken(&checker).contains(&"what was launched is kept"), "its host was in trouble");
        checker.listed(&["a".to_owned()], |_| false);
        assert!(broken(&checker).contains(&"what was launched is kept"));
    }

    #[test]
    fn totals_that_shrink_are_broken() {
        let row = |vcpu_seconds, endpoint_bytes| UsageRow {
            used: Some(Metering { vcpu_seconds, endpoint_bytes, ..Metering::default() }),
            ..UsageRow::default()
        };
        let mut checker = Checker::default();
        checker.totals(&[row(1.0, 10)]);
        checker.totals(&[row(1.0, 10)]);
        checker.totals(&[row(1.5, 12)]);
        assert!(broken(&checker).is_empty());
        checker.totals(&[row(1.6, 11)]);
        assert_eq!(broken(&checker), ["totals grow"]);
    }
}
