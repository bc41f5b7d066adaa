//! MicroVMs as tables.

use std::time::SystemTime;

use api::common::v1::Phase;
use api::microvm::v1::Microvm;

use crate::durations;
use crate::error::CliError;
use crate::output::{self, json};

/// Full name of the message shown here.
pub const MICROVM: &str = "torpor.microvm.v1.Microvm";

pub fn state(microvm: &Microvm) -> String {
    json::short_name(microvm.state().as_str_name(), "MicrovmState")
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
            microvm.state_reason.clone(),
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
        ("reason", microvm.state_reason.clone()),
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
        ("last step", last_transition(microvm)),
        ("used", metering(microvm)),
    ])
}

fn idle_policy(microvm: &Microvm) -> String {
    let Some(policy) = &microvm.idle_policy else {
        return "never sleeps by itself".to_owned();
    };
    let idle = durations::coarse(durations::of(policy.max_idle_duration.as_ref()));
    let suspended = durations::coarse(durations::of(policy.suspended_duration.as_ref()));
    let wakes = if policy.auto_resume_enabled { "wakes on request" } else { "wakes by torpor resume only" };
    format!("sleeps after {idle}, {wakes}, ends after {suspended} asleep")
}

fn last_transition(microvm: &Microvm) -> String {
    let Some(last) = &microvm.last_transition else {
        return String::new();
    };
    format!("{} ({})", last.kind, phases(&last.phases))
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
