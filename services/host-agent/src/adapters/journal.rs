//! What the agent must still know after it died: one JSON file per microVM, replaced as a whole.
//!
//! No write waits for the disk. They need to outlive this process, not a power cut, and the page cache does
//! that. A power cut ends every engine too, so that only what slept is left of the sessions; and a snapshot's
//! manifest, which is durable, has a copy of the journal as of its sleep in it. Of all there are, the one
//! written last counts: see `recover`.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use model::SnapshotNumber;
use serde::{Deserialize, Serialize};

use super::files;
use crate::domain::metering::Meter;
use crate::domain::transition::Transition;
use crate::domain::{HostError, LocalState, Spec};

const FORMAT: u32 = 3;
/// Most superseded copies that a journal names. What is beyond stays in S3 until the microVM's end.
const SUPERSEDED_MAX: usize = 32;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    pub format: u32,
    pub revision: u64,
    /// The spec, `MicrovmSpec` in base64. Holds the run hook's payload, which is why
    /// the file is readable by root alone.
    pub spec: String,
    pub generation: u64,
    /// Where it is in its life.
    pub state: LocalState,
    /// Why it ended or is ending; otherwise what its last failure was.
    pub reason: String,
    /// When the state began, in milliseconds since 1970.
    pub state_since_ms: u64,
    /// The engine, while there is one.
    pub process: Option<Process>,
    /// Its slot, while it has one.
    pub slot: Option<u32>,
    /// Its latest whole snapshot; 0 when there is none.
    pub sequence: u64,
    /// Generation that it was made under; 0 when there is none.
    #[serde(default)]
    pub snapshot_generation: u64,
    /// Size of that snapshot's difference in bytes.
    pub difference_bytes: u64,
    /// When it was made, in milliseconds since 1970; 0 when that is not known.
    #[serde(default)]
    pub snapshot_ms: u64,
    /// How long the guest stood still while that was made, in milliseconds; absent for that of a sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_still_ms: Option<u64>,
    /// Whether a recovery point has been asked for: from then on it goes back to its latest snapshot when its engine or host is
    /// lost, as one with a checkpoint interval does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes_back: bool,
    /// How it went back to a recovery point last.
    #[serde(default)]
    pub recovery: Option<Recovery>,
    /// The newest copy in S3, if there is one.
    pub remote: Option<RemoteCopy>,
    /// Copies in S3 that this placement made and newer ones have superseded, oldest first. The record may still name one of
    /// them: they are removed when it names a newer one.
    #[serde(default)]
    pub superseded: Vec<RemoteCopy>,
    /// Restores so far; the guest ignores a number it has seen.
    pub restore_count: u64,
    /// Number of the latest observation reported.
    pub observation: u64,
    pub meter: Meter,
    /// The latest launch, suspend or wake.
    pub transition: Transition,
    /// True when its end, once begun, leaves no report.
    pub discard: bool,
    /// End of its keep-awake lease, in milliseconds since 1970; 0 when it has none. A sleep ends it.
    #[serde(default)]
    pub awake_until_ms: u64,
    /// First line of the guest's own log numbering that belongs to this microVM.
    pub log_start: u64,
}

/// An engine process. The start time tells it from a later one with its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

/// A microVM whose engine was lost went back to a recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Number of the point.
    pub sequence: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
    /// When the point had been made, in milliseconds since 1970.
    pub point_ms: u64,
}

/// A snapshot of a microVM in S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteCopy {
    /// Generation that it was made under.
    #[serde(default)]
    pub generation: u64,
    pub sequence: u64,
    pub manifest_key: String,
    pub manifest_digest: String,
}

impl RemoteCopy {
    pub fn number(&self) -> SnapshotNumber {
        SnapshotNumber::new(self.generation, self.sequence)
    }
}

/// After going back to a point, how long a microVM must have run to go back to the same again: one that ends its engine each
/// time would do so for ever.
const SAME_POINT_AFTER: Duration = Duration::from_secs(60);

impl Journal {
    /// The first record of a microVM.
    pub fn new(spec: &Spec, generation: u64, state: LocalState, now_ms: u64) -> Self {
        Self {
            format: FORMAT,
            revision: 0,
            spec: encode_spec(spec),
            generation,
            state,
            reason: String::new(),
            state_since_ms: now_ms,
            process: None,
            slot: None,
            sequence: 0,
            snapshot_generation: 0,
            difference_bytes: 0,
            snapshot_ms: 0,
            stood_still_ms: None,
            goes_back: false,
            recovery: None,
            remote: None,
            superseded: Vec::new(),
            restore_count: 0,
            observation: 0,
            meter: Meter::default(),
            transition: Transition::default(),
            discard: false,
            awake_until_ms: 0,
            log_start: 0,
        }
    }

    pub fn spec(&self) -> Result<Spec, HostError> {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&self.spec)
            .map_err(|error| HostError::Internal(format!("the spec in the journal is damaged: {error}")))?;
        Spec::decode(&bytes)
    }

    pub fn set_spec(&mut self, spec: &Spec) {
        self.spec = encode_spec(spec);
    }

    /// The latest whole snapshot.
    pub fn number(&self) -> SnapshotNumber {
        SnapshotNumber::new(self.snapshot_generation, self.sequence)
    }

    /// The latest whole snapshot's copy in S3, when there is one.
    pub fn uploaded(&self) -> Option<&RemoteCopy> {
        self.remote.as_ref().filter(|remote| remote.number() == self.number())
    }

    /// Notes that there is no engine any more.
    pub fn no_engine(&mut self) {
        self.meter.close_engine();
        self.process = None;
        self.slot = None;
    }

    /// Notes what an agent left out that did not know of generations of snapshots: `made` is that of the latest one.
    pub fn complete(&mut self, made: u64) {
        if self.snapshot_generation == 0 {
            self.snapshot_generation = made;
        }
        if let Some(remote) = &mut self.remote
            && (remote.generation, remote.sequence) == (0, self.sequence)
        {
            remote.generation = self.snapshot_generation;
        }
    }

    /// Notes a copy that a newer one supersedes. One that an earlier placement made is not this one's to remove.
    pub fn supersede(&mut self, copy: RemoteCopy) {
        if copy.generation != self.generation || self.superseded.contains(&copy) {
            return;
        }
        self.superseded.push(copy);
        if self.superseded.len() > SUPERSEDED_MAX {
            let left = self.superseded.remove(0);
            tracing::warn!(
                manifest = left.manifest_key,
                limit = SUPERSEDED_MAX,
                "it stays in S3 until the microVM's end"
            );
        }
    }

    /// The superseded copies that a record which names `named` does not need: it was given this placement and never goes back.
    pub fn unneeded(&self, generation: u64, named: SnapshotNumber) -> Vec<RemoteCopy> {
        let ours = generation == self.generation;
        let older = |copy: &&RemoteCopy| ours && copy.generation == generation && copy.number() < named;
        self.superseded.iter().filter(older).cloned().collect()
    }

    /// Notes that a snapshot made under this placement, at a time in milliseconds since 1970, is the session now.
    pub fn slept(&mut self, sequence: u64, difference_bytes: u64, made_ms: u64) {
        self.snapshot_made(sequence, difference_bytes, made_ms);
        self.stood_still_ms = None;
        self.awake_until_ms = 0;
    }

    /// Notes that a recovery point made under this placement is what the session can go back to. The guest stood still for
    /// so long.
    pub fn point_made(&mut self, sequence: u64, difference_bytes: u64, made_ms: u64, stood_still: Duration) {
        self.snapshot_made(sequence, difference_bytes, made_ms);
        self.stood_still_ms = Some(u64::try_from(stood_still.as_millis()).unwrap_or(u64::MAX));
    }

    fn snapshot_made(&mut self, sequence: u64, difference_bytes: u64, made_ms: u64) {
        self.sequence = sequence;
        self.snapshot_generation = self.generation;
        self.difference_bytes = difference_bytes;
        self.snapshot_ms = made_ms;
        self.meter.snapshot_bytes_written += difference_bytes;
    }

    /// Whether its snapshots are recovery points, too: its checkpoints are made by themselves, or one has been asked for.
    pub fn has_points(&self, spec: &Spec) -> bool {
        spec.checkpoint_interval.is_some() || self.goes_back
    }

    /// Whether it may go back to its latest snapshot when its engine is lost.
    pub fn may_go_back(&self, spec: &Spec, now_ms: u64) -> bool {
        let ran = |before: Recovery| Duration::from_millis(now_ms.saturating_sub(before.time_ms));
        let again = self.recovery.filter(|before| before.sequence == self.sequence);
        self.has_points(spec)
            && self.sequence > 0
            && again.is_none_or(|before| ran(before) >= SAME_POINT_AFTER)
    }

    /// Notes that it goes back to its latest snapshot; how old that is.
    pub fn go_back(&mut self, now_ms: u64) -> Duration {
        let point_ms = self.snapshot_ms;
        self.recovery = Some(Recovery { sequence: self.sequence, time_ms: now_ms, point_ms });
        Duration::from_millis(now_ms.saturating_sub(point_ms))
    }

    pub fn write(&mut self, path: &Path) -> Result<(), HostError> {
        self.revision += 1;
        let text =
            serde_json::to_vec(self).map_err(|error| HostError::Internal(format!("journal: {error}")))?;
        files::replace(path, &text, false)
    }

    /// Reads one; `None` when there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, HostError> {
        let Some(journal) = read_json::<Self>(path)? else { return Ok(None) };
        if journal.format != FORMAT {
            return Err(HostError::Internal(format!(
                "{}: format {} is not known",
                path.display(),
                journal.format
            )));
        }
        Ok(Some(journal))
    }
}

/// Reads a file of JSON; `None` when there is none.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, HostError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::io(path, &error)),
    };
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|error| HostError::Internal(format!("{}: {error}", path.display())))
}

fn encode_spec(spec: &Spec) -> String {
    base64::engine::general_purpose::STANDARD.encode(spec.encoded())
}

/// What is left of a microVM that has ended: its last report, until nobody asks any more. Those of older agents have more in them.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tombstone {
    pub generation: u64,
    pub reason: String,
    /// When it ended, in milliseconds since 1970.
    pub ended_ms: u64,
    pub observation: u64,
    pub meter: Meter,
}

impl Tombstone {
    /// Writes it durably into the microVM's directory among the ended.
    pub fn write(&self, directory: &Path) -> Result<(), HostError> {
        let text =
            serde_json::to_vec(self).map_err(|error| HostError::Internal(format!("tombstone: {error}")))?;
        files::replace(&directory.join("tombstone.json"), &text, true)
    }

    /// Reads one; `None` when there is no file.
    pub fn read(directory: &Path) -> Result<Option<Self>, HostError> {
        read_json(&directory.join("tombstone.json"))
    }
}

#[cfg(test)]
mod tests;
