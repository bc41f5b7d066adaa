//! Microvms that have ended here: their reports, until the scheduler has recorded them, and what S3 still has of them.
//!
//! An end on this host says nothing about S3. The record may name a copy that another host wakes from, because the scheduler
//! has placed the microVM there while this host was cut off. So nothing is removed before the scheduler has answered that its
//! record says TERMINATED; then nothing is needed any more, whichever host made it.

use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};

use api::host::v1::ObservedMicrovm;
use api::microvm::v1::MicrovmState;
use model::ids::MicrovmId;

use super::Microvms;
use crate::adapters::files;
use crate::adapters::journal::Tombstone;
use crate::domain::HostError;
use crate::domain::dropped::Dropped;
use crate::domain::fence::{Fence, fence};
use crate::domain::metering::Meter;
use crate::host::timestamp;
use crate::microvm;

/// A microVM that has ended here.
pub struct EndReport {
    pub tombstone: Tombstone,
    /// True once the scheduler has answered a report that named it.
    pub known: bool,
    pub remote: Remote,
}

/// What is to become of an ended microVM's objects in S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// The scheduler has not said that its record has ended: they may be another host's to wake from.
    NotOurs,
    /// To be removed. An agent that dies before it has done so reports the end again, and is told again.
    Due,
    Removed,
}

impl EndReport {
    /// One that the scheduler has not been told of.
    pub fn unknown(tombstone: Tombstone) -> Self {
        Self { tombstone, known: false, remote: Remote::NotOurs }
    }

    /// True when nobody is to hear of it any more and nothing of it is left to do.
    pub fn is_settled(&self) -> bool {
        self.known && self.remote != Remote::Due
    }

    /// The record says TERMINATED.
    pub fn record_ended(&mut self) {
        self.known = true;
        if self.remote == Remote::NotOurs {
            self.remote = Remote::Due;
        }
    }
}

impl Microvms {
    /// Keeps the report of a microVM that has ended.
    pub fn remember_end(&self, id: String, tombstone: Tombstone) {
        self.ended().insert(id, EndReport::unknown(tombstone));
    }

    /// Why a microVM has ended, if this host still knows.
    pub fn end_reason(&self, id: &str) -> Option<String> {
        self.ended().get(id).map(|ended| ended.tombstone.reason.clone())
    }

    /// From now on a launch or wake of this placement comes too late.
    pub(super) fn note_dropped(&self, id: &str, generation: u64) {
        self.dropped().note(id, generation, self.host.clock.uptime());
    }

    fn dropped(&self) -> MutexGuard<'_, Dropped> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A microVM that ended or was dropped under this or a newer generation never starts again.
    pub(super) fn refuse_ended(&self, id: &str, generation: u64) -> Result<(), HostError> {
        if self.dropped().is_late(id, generation, self.host.clock.uptime()) {
            return Err(HostError::NotHere { id: id.to_owned() });
        }
        let mut ended = self.ended();
        let Some(entry) = ended.get(id) else { return Ok(()) };
        match fence(entry.tombstone.generation, generation) {
            Fence::Stale | Fence::Same => Err(HostError::Ended { reason: entry.tombstone.reason.clone() }),
            Fence::Newer => {
                ended.remove(id);
                files::discard(&self.end_place(id));
                Ok(())
            }
        }
    }

    /// The answer to the end of a microVM that is not here. Without `discard` it is reported, so that the scheduler's answer
    /// can say when S3 may be cleared.
    pub(super) fn gone(
        &self,
        id: &MicrovmId,
        generation: u64,
        reason: &str,
        discard: bool,
    ) -> ObservedMicrovm {
        let mut ended = self.ended();
        if discard {
            ended.remove(id.as_str());
            files::discard(&self.end_place(id.as_str()));
            return ObservedMicrovm {
                microvm_id: id.to_string(),
                generation,
                state: MicrovmState::Terminated.into(),
                state_reason: reason.to_owned(),
                ..Default::default()
            };
        }
        let entry = ended.entry(id.to_string()).or_insert_with(|| {
            let tombstone = Tombstone {
                generation,
                reason: reason.to_owned(),
                ended_ms: self.host.now_ms(),
                observation: 1,
                meter: Meter::default(),
            };
            let place = self.end_place(id.as_str());
            if let Err(error) = files::make_directory(&place).and_then(|()| tombstone.write(&place)) {
                tracing::error!(microvm = %id, %error, "an end is not recorded");
            }
            EndReport::unknown(tombstone)
        });
        observed_end(id.as_str(), &entry.tombstone)
    }

    /// The scheduler has answered a report of these.
    pub(super) fn ends_known(&self, observed: &[ObservedMicrovm]) {
        let mut ended = self.ended();
        for one in observed.iter().filter(|one| one.state() == MicrovmState::Terminated) {
            if let Some(entry) = ended.get_mut(&one.microvm_id)
                && entry.tombstone.generation == one.generation
            {
                entry.known = true;
            }
        }
    }

    /// The record of this microVM says TERMINATED, durably.
    pub(super) fn record_ended(&self, id: &str) {
        if let Some(entry) = self.ended().get_mut(id) {
            entry.record_ended();
        }
    }

    pub(super) fn end_place(&self, id: &str) -> PathBuf {
        self.host.data.ended().join(id)
    }
}

/// The report of an end.
pub fn observed_end(id: &str, tombstone: &Tombstone) -> ObservedMicrovm {
    ObservedMicrovm {
        microvm_id: id.to_owned(),
        generation: tombstone.generation,
        state: MicrovmState::Terminated.into(),
        state_reason: tombstone.reason.clone(),
        state_time: Some(timestamp(tombstone.ended_ms)),
        observation: tombstone.observation,
        metering: Some(microvm::metering(&tombstone.meter, tombstone.meter.endpoint_bytes)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tombstone() -> Tombstone {
        Tombstone { generation: 1, reason: "x".into(), ended_ms: 1, observation: 1, meter: Meter::default() }
    }

    #[test]
    fn s3_is_cleared_only_once_the_record_has_ended() {
        let mut entry = EndReport::unknown(tombstone());
        assert_eq!((entry.remote, entry.is_settled()), (Remote::NotOurs, false));
        // Answered, and the microVM lives elsewhere: the report is over, S3 is not this host's.
        entry.known = true;
        assert_eq!((entry.remote, entry.is_settled()), (Remote::NotOurs, true));
        entry.record_ended();
        assert_eq!((entry.remote, entry.is_settled()), (Remote::Due, false));
        entry.remote = Remote::Removed;
        entry.record_ended();
        assert_eq!((entry.remote, entry.is_settled()), (Remote::Removed, true), "told again, done once");
    }
}
