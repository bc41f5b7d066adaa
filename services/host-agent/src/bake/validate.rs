//! The validate hook: called on a throwaway clone of the new snapshot, before anyone else can see it.

use std::time::{Duration, Instant};

use model::ids::MicrovmId;
use snapshot::FileKind;

use super::run::{BakeJob, alive};
use crate::domain::HostError;
use crate::domain::hooks::{Hook, HookName, Hooks};
use crate::microvm::{Restore, call_hook, connect_guest, engine_error, link_error, repair_request};
use crate::resources::{EngineHeld, SlotHeld};

/// Pause before a hook that answered 503 is called again.
const AGAIN_PAUSE: Duration = Duration::from_millis(250);
/// The answer that means "not yet".
const NOT_YET: u32 = 503;

/// Calls the hook, when the image has one.
pub async fn validate(job: &mut BakeJob) -> Result<(), HostError> {
    let Some(hook) = Hooks::from_wire(job.request.hooks.as_ref()).enabled(HookName::Validate) else {
        return Ok(());
    };
    job.progress.step("validate").await;
    let result = on_clone(job, hook).await;
    job.down().await;
    result
}

async fn on_clone(job: &mut BakeJob, hook: Hook) -> Result<(), HostError> {
    let disk = job.directory.join("disk.clone");
    let (from, to) = (job.file(FileKind::Disk), disk.clone());
    crate::adapters::files::blocking(move || {
        snapshot::disk::reflink(&from, &to)
            .map(drop)
            .map_err(|error| crate::adapters::image_snapshots::fetch_error(&error, &to))
    })
    .await?;
    let slot = job.host.take_slot(slot::Egress::Internet).await?;
    let dialer = slot.dialer();
    let spec = job.machine_spec(slot.name(), disk, "run-clone");
    job.resources.slot = SlotHeld::Taken(slot);
    let from = vmm::RestoreSpec {
        base_memory: job.file(FileKind::Memory),
        device_state: job.file(FileKind::Device),
        memory_difference: None,
    };
    let restored = job.host.engine.restore(&spec, &from).await.map_err(|error| engine_error(&error))?;
    let machine = restored.machine;
    job.resources.engine = EngineHeld::Machine(std::sync::Arc::clone(&machine));
    machine.resume().await.map_err(|error| engine_error(&error))?;
    let timeout = Duration::from_millis(job.host.config.timeouts.guest_connect_ms);
    let mut connection = alive(&machine, connect_guest(&dialer, timeout)).await?;
    let id = MicrovmId::from_uuid(uuid::Uuid::new_v4());
    let repair = repair_request(&id, 1, Restore::First)?;
    let link = connection.link.clone();
    alive(&machine, async { link.repair_identity(repair).await.map_err(|error| link_error(&error)) }).await?;
    // Its output belongs to the build's log; nobody else will ever read it.
    let _ = link.stream_logs(u64::MAX).await;
    let progress = job.progress.clone();
    let lines = tokio::spawn(async move {
        while let Some(event) = connection.events.recv().await {
            if let guest_link::Event::Logs { lines, .. } = event {
                progress.lines(lines).await;
            }
        }
    });
    let result = alive(&machine, until_valid(&link, hook)).await;
    lines.abort();
    result
}

async fn until_valid(link: &guest_link::Link, hook: Hook) -> Result<(), HostError> {
    let deadline = Instant::now() + hook.timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(AGAIN_PAUSE);
        let answer = call_hook(link, Hook { timeout: left, ..hook }, String::new()).await;
        match answer {
            Err(HostError::Hook { http_status: NOT_YET, .. }) if Instant::now() + AGAIN_PAUSE < deadline => {
                tokio::time::sleep(AGAIN_PAUSE).await;
            }
            other => return other,
        }
    }
}
