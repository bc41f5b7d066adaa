//! MicroVMs as tables.

use std::time::SystemTime;

use api::common::v1::{AwakeWhile, Phase};
use api::microvm::v1::{AwakeReason, Microvm, MicrovmState};

use crate::durations;
use crate::error::CliError;
use crate::output::{self, json};

/// Full name of the message shown here.
pub const MICROVM: &str = "torpor.microvm.v1.Microvm";

pub fn state(microvm: &Microvm) -> String {
    json::short_name(microvm.state().as_str_name(), "MicrovmState")
}

/// Why it is in its state; of one that sleeps, why it was put to sleep.
fn reason(microvm: &Microvm) -> String {
    match &microvm.last_transition {
        Some(last)
            if microvm.state() == MicrovmState::Suspended
                && microvm.state_reason.is_empty()
                && last.kind == "suspend" =>
        {
            last.reason.clone()
        }
        _ => microvm.state_reason.clone(),
    }
}

/// When a running microVM sleeps and what keeps it awake until then; empty when its host did not say or it never does.
pub fn awake(microvm: &Microvm, now: SystemTime) -> String {
    let Some(idleness) = &microvm.idleness else { return String::new() };
    let lease = match &idleness.lease_end_time {
        Some(end) => format!("has a lease until {}", durations::rfc3339(Some(end))),
        None => String::new(),
    };
    let Some(sleep) = &idleness.sleep_time else { return lease };
    let left = api::system_time(sleep).ok().and_then(|sleep| sleep.duration_since(now).ok());
    let left = durations::coarse(left.unwrap_or_default());
    match idleness.awake_reason() {
        AwakeReason::Lease => {
            let end = durations::rfc3339(idleness.lease_end_time.as_ref());
            format!("kept awake by a lease until {end}, sleeps in {left} if nobody calls")
        }
        AwakeReason::Stream | AwakeReason::Shell | AwakeReason::Cpu => {
            format!("{}, which is looked at again in {left}", idleness.message)
        }
        AwakeReason::Unspecified | AwakeReason::NoPolicy | AwakeReason::Activity => {
            let age = durations::age(idleness.activity_time.as_ref(), now);
            format!("sleeps in {left} if nobody calls ({} {age})", idleness.message)
        }
    }
}

pub fn microvms(microvms: &[Microvm]) -> Result<(), CliError> {
    let now = SystemTime::now();
    let row = |microvm: &Microvm| {
        [
            microvm.microvm_id.clone(),
            state(microvm),
            format!("{}:{}", microvm.image_name, microvm.image_version),
            output::memory(microvm.baseline_memory_mib, microvm.memory_mib),
            microvm.host_id.clone(),
            durations::age(microvm.start_time.as_ref(), now),
            durations::age(microvm.state_time.as_ref(), now),
            reason(microvm),
        ]
    };
    let empty = "no microVMs; start one: torpor run IMAGE";
    let header = ["id", "state", "image", "memory", "host", "started", "changed", "reason"];
    output::table(header, microvms, row, empty)
}

pub fn microvm(microvm: &Microvm) -> Result<(), CliError> {
    let snapshot = microvm.snapshot.clone().unwrap_or_default();
    let copies = match (snapshot.local, snapshot.remote) {
        (false, false) => String::new(),
        (local, remote) => {
            let places: Vec<&str> = [(local, "host"), (remote, "S3")]
                .into_iter()
                .filter(|(there, _)| *there)
                .map(|(_, n)| n)
                .collect();
            format!("{} on {}", output::bytes(snapshot.difference_bytes), places.join(" and "))
        }
    };
    output::fields(vec![
        ("id", microvm.microvm_id.clone()),
        ("state", state(microvm)),
        ("reason", reason(microvm)),
        ("awake", awake(microvm, SystemTime::now())),
        ("url", microvm.endpoint_url.clone()),
        ("image", format!("{} {}", microvm.image_name, microvm.image_version)),
        ("host", microvm.host_id.clone()),
        ("memory", output::memory(microvm.baseline_memory_mib, microvm.memory_mib)),
        ("idle policy", idle_policy(microvm)),
        ("longest life", durations::coarse(durations::of(microvm.maximum_duration.as_ref()))),
        ("started", durations::rfc3339(microvm.start_time.as_ref())),
        ("changed", durations::rfc3339(microvm.state_time.as_ref())),
        ("ended", durations::rfc3339(microvm.terminate_time.as_ref())),
        ("snapshot", copies),
        ("recovery points", recovery_points(microvm, SystemTime::now())),
        ("went back", went_back(microvm)),
        ("last step", last_transition(microvm)),
        ("used", metering(microvm)),
    ])
}

/// How often recovery points are made, and how old the one is that it would go back to now.
fn recovery_points(microvm: &Microvm, now: SystemTime) -> String {
    let often = match &microvm.checkpoint_interval {
        Some(interval) => format!("every {}", durations::coarse(durations::of(Some(interval)))),
        None if microvm.snapshot.as_ref().is_some_and(|snapshot| snapshot.goes_back) => {
            "on request".to_owned()
        }
        None => return String::new(),
    };
    let snapshot = microvm.snapshot.as_ref().filter(|snapshot| snapshot.remote);
    match snapshot.and_then(|snapshot| snapshot.time.as_ref()) {
        Some(time) => format!("{often}, the latest on S3 {}", durations::age(Some(time), now)),
        None => format!("{often}, none on S3 yet"),
    }
}

fn went_back(microvm: &Microvm) -> String {
    let Some(recovery) = &microvm.recovery else { return String::new() };
    let time =
        |time: &Option<prost_types::Timestamp>| time.as_ref().and_then(|time| api::system_time(time).ok());
    let lost = match (time(&recovery.time), time(&recovery.point_time)) {
        (Some(at), Some(point)) => durations::coarse(at.duration_since(point).unwrap_or_default()),
        _ => String::new(),
    };
    let (at, point) =
        (durations::rfc3339(recovery.time.as_ref()), durations::rfc3339(recovery.point_time.as_ref()));
    format!("at {at} to {point}, {lost} of work undone: {} was lost, or its engine there", recovery.host_id)
}

fn idle_policy(microvm: &Microvm) -> String {
    let Some(policy) = &microvm.idle_policy else {
        return "never sleeps by itself".to_owned();
    };
    let idle = durations::coarse(durations::of(policy.max_idle_duration.as_ref()));
    let suspended = durations::coarse(durations::of(policy.suspended_duration.as_ref()));
    let wakes = if policy.auto_resume_enabled { "wakes on request" } else { "wakes by torpor resume only" };
    let awake = policy.awake_while.map(awake_while).unwrap_or_default();
    format!("sleeps after {idle}{awake}, {wakes}, ends after {suspended} asleep")
}

fn awake_while(awake: AwakeWhile) -> String {
    let cpu = awake.cpu_percent.map(|percent| format!("its CPU use is {percent}% or more"));
    let all = [
        awake.stream.then(|| "a connection is open".to_owned()),
        awake.shell.then(|| "a shell is open".to_owned()),
        cpu,
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() { String::new() } else { format!(" but not while {}", all.join(" or ")) }
}

fn last_transition(microvm: &Microvm) -> String {
    let Some(last) = &microvm.last_transition else {
        return String::new();
    };
    let cause = if last.reason.is_empty() { String::new() } else { format!(", {}", last.reason) };
    format!("{}{cause} ({})", last.kind, phases(&last.phases))
}

/// Phases as "restore 120 ms, identity 8 ms".
fn phases(phases: &[Phase]) -> String {
    let shown = |phase: &Phase| {
        format!("{} {}", phase.name, durations::short(durations::of(phase.duration.as_ref())))
    };
    phases.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn metering(microvm: &Microvm) -> String {
    let Some(used) = &microvm.metering else {
        return String::new();
    };
    format!(
        "{:.1} vCPU-s, {:.1} GiB-s baseline, {:.1} GiB-s burst, {} through the endpoint",
        used.vcpu_seconds,
        used.baseline_gib_seconds,
        used.burst_gib_seconds,
        output::bytes(used.endpoint_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::microvm::v1::{Idleness, LastTransition};
    use std::time::Duration;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn when_it_sleeps_and_why_not_before() {
        let base = Idleness {
            sleep_time: at(142),
            activity_time: at(82),
            message: "bytes moved on a connection".to_owned(),
            ..Idleness::default()
        };
        let kept = |reason: AwakeReason, message: &str| Idleness {
            awake_reason: reason.into(),
            message: message.to_owned(),
            lease_end_time: (reason == AwakeReason::Lease).then_some(at(142)).flatten(),
            ..base.clone()
        };
        let mut shown = Vec::new();
        for idleness in [
            base.clone(),
            kept(AwakeReason::Lease, "kept awake by a lease"),
            kept(AwakeReason::Shell, "kept awake by an open shell"),
            Idleness { sleep_time: None, ..kept(AwakeReason::NoPolicy, "it has no idle policy") },
            Idleness { lease_end_time: at(142), sleep_time: None, ..base },
        ] {
            let microvm = Microvm { idleness: Some(idleness), ..Microvm::default() };
            shown.push(awake(&microvm, SystemTime::UNIX_EPOCH + Duration::from_secs(100)));
        }
        let expected = [
            "sleeps in 42s if nobody calls (bytes moved on a connection 18s ago)",
            "kept awake by a lease until 1970-01-01T00:02:22Z, sleeps in 42s if nobody calls",
            "kept awake by an open shell, which is looked at again in 42s",
            "",
            "has a lease until 1970-01-01T00:02:22Z",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn one_that_sleeps_says_why() {
        let last = LastTransition {
            kind: "suspend".to_owned(),
            reason: "its host was drained".to_owned(),
            ..LastTransition::default()
        };
        let mut microvm = Microvm { last_transition: Some(last), ..Microvm::default() };
        microvm.set_state(MicrovmState::Suspended);
        assert_eq!(reason(&microvm), "its host was drained");
        microvm.state_reason = "no room".to_owned();
        assert_eq!(reason(&microvm), "no room", "a wake that failed is the news");
        microvm.set_state(MicrovmState::Running);
        microvm.state_reason.clear();
        assert_eq!(reason(&microvm), "");
    }

    #[test]
    fn a_policy_in_words() {
        let awake = AwakeWhile { stream: true, shell: false, cpu_percent: Some(20) };
        assert_eq!(awake_while(awake), " but not while a connection is open or its CPU use is 20% or more");
        assert_eq!(awake_while(AwakeWhile::default()), "");
    }
}
