//! Making the driver of a microVM: new, or from the journal of an earlier agent.

use std::sync::Arc;

use api::microvm::v1::ActivityKind;
use model::ids::MicrovmId;
use tokio::sync::{mpsc, watch};

use super::activity::Activity;
use super::asleep::Asleep;
use super::checkpoint::Checkpoints;
use super::core::{Core, Notice};
use super::driver::{Driver, NOTICES_MAX};
use super::observed::observed;
use super::{Handle, View};
use crate::adapters::files;
use crate::adapters::journal::Journal;
use crate::adapters::logs::Log;
use crate::domain::{HostError, LocalState, Spec};
use crate::host::Host;

/// The state of a microVM from its journal.
pub fn build(
    host: &Arc<Host>,
    id: MicrovmId,
    journal: Journal,
    spec: Spec,
) -> Result<(Core, mpsc::Receiver<Notice>), HostError> {
    let files = host.data.microvm(id.as_str());
    let limits = &host.config.limits;
    let log =
        Log::open(&files.logs(), limits.log_file_bytes, limits.log_bytes_per_second, journal.log_start)?;
    let (notices, receiver) = mpsc::channel(NOTICES_MAX);
    let activity = Arc::new(Activity::new(journal.meter.endpoint_bytes));
    activity.begin(ActivityKind::Start, host);
    let observed = observed(&id, &journal, journal.meter.endpoint_bytes);
    let view =
        View { state: journal.state, generation: journal.generation, observed, gate: None, discarded: false };
    let core = Core {
        host: Arc::clone(host),
        _image: host.image_snapshots.note_use(&spec.snapshot.manifest_digest),
        id,
        spec,
        files,
        journal,
        view: watch::Sender::new(view),
        live: None,
        activity,
        log: Arc::new(log),
        notices,
        upload: None,
        removing: false,
        asleep: Asleep::default(),
        checkpoints: Checkpoints::default(),
    };
    core.apply_lease();
    Ok((core, receiver))
}

/// A microVM that this host has not held before.
pub fn create(
    host: &Arc<Host>,
    spec: Spec,
    generation: u64,
    state: LocalState,
) -> Result<(Driver, Handle), HostError> {
    let id = spec.id.clone();
    let files = host.data.microvm(id.as_str());
    files::remove(files.directory())?;
    files::make_directory(files.directory())?;
    let journal = Journal::new(&spec, generation, state, host.now_ms());
    let (mut core, notices) = build(host, id, journal, spec)?;
    core.save()?;
    Ok(Driver::new(core, notices))
}
