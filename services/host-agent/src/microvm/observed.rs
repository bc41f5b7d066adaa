//! What the host reports of a microVM, from its journal.

use std::time::Duration;

use api::host::v1::{ObservedMicrovm, WentBack};
use api::microvm::v1::{LastTransition, MicrovmState, SnapshotCopies};
use model::ids::MicrovmId;

use crate::adapters::journal::Journal;
use crate::domain::LocalState;
use crate::domain::metering::Meter;
use crate::domain::transition::Transition;
use crate::host::timestamp;

/// What a journal says to the scheduler.
pub fn observed(id: &MicrovmId, journal: &Journal, endpoint_bytes: u64) -> ObservedMicrovm {
    let state = match journal.state {
        LocalState::Launching => MicrovmState::Pending,
        LocalState::Running => MicrovmState::Running,
        LocalState::Suspending => MicrovmState::Suspending,
        // Until the guest is whole and its hook has answered, a wake may still be undone.
        LocalState::Suspended | LocalState::Waking => MicrovmState::Suspended,
        LocalState::Terminating => MicrovmState::Terminating,
        LocalState::Gone => MicrovmState::Terminated,
    };
    let remote = journal.uploaded();
    let snapshot = (journal.sequence > 0).then(|| SnapshotCopies {
        local: true,
        remote: remote.is_some(),
        difference_bytes: journal.difference_bytes,
        sequence: journal.sequence,
        generation: journal.snapshot_generation,
        manifest_key: remote.map(|remote| remote.manifest_key.clone()).unwrap_or_default(),
        manifest_digest: remote.map(|remote| remote.manifest_digest.clone()).unwrap_or_default(),
        time: (journal.snapshot_ms > 0).then(|| timestamp(journal.snapshot_ms)),
        goes_back: journal.goes_back,
        stood_still: journal.stood_still_ms.map(|ms| api::duration_proto(Duration::from_millis(ms))),
    });
    ObservedMicrovm {
        microvm_id: id.to_string(),
        generation: journal.generation,
        state: state.into(),
        state_reason: journal.reason.clone(),
        state_time: Some(timestamp(journal.state_since_ms)),
        observation: journal.observation,
        snapshot,
        metering: Some(metering(&journal.meter, endpoint_bytes)),
        last_transition: Some(LastTransition {
            kind: journal.transition.kind.clone(),
            phases: phases(&journal.transition),
            cause: journal.transition.cause.code,
            reason: journal.transition.cause.reason.clone(),
        }),
        activity_time: None,
        went_back: journal.recovery.map(|recovery| WentBack {
            time: Some(timestamp(recovery.time_ms)),
            point_time: Some(timestamp(recovery.point_ms)),
        }),
    }
}

/// Totals as the wire has them.
pub fn metering(meter: &Meter, endpoint_bytes: u64) -> api::common::v1::Metering {
    api::common::v1::Metering {
        vcpu_seconds: meter.vcpu_seconds(),
        baseline_gib_seconds: meter.baseline_gib_seconds,
        burst_gib_seconds: meter.burst_gib_seconds,
        snapshot_bytes_read: meter.snapshot_bytes_read,
        snapshot_bytes_written: meter.snapshot_bytes_written,
        endpoint_bytes,
    }
}

/// Steps as the wire has them.
pub fn phases(transition: &Transition) -> Vec<api::common::v1::Phase> {
    transition
        .phases
        .iter()
        .map(|phase| api::common::v1::Phase {
            name: phase.name.clone(),
            start: Some(api::duration_proto(phase.start)),
            duration: Some(api::duration_proto(phase.duration)),
        })
        .collect()
}
