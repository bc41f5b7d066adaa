//! The validate hook: called on a throwaway clone of the new snapshot, before
//! anyone else can see it.

use std::time::{Duration, Instant};

use model::ids::MicrovmId;
use snapshot::FileKind;

use super::run::{Workshop, alive};
use crate::domain::Failure;
use crate::domain::hooks::{Hook, HookName, Hooks};
use crate::microvm::{call_hook, connect_guest, engine_failure, link_failure, repair_request};
use crate::resources::{EngineHeld, SlotHeld};

/// Pause before a hook that answered 503 is called again.
const AGAIN_PAUSE: Duration = Duration::from_millis(250);
/// The answer that means "not yet".
const NOT_YET: u32 = 503;

/// Calls the hook, when the image has one.
///
/// # Errors
/// [`Failure::Hook`] when it did not answer 200 in its window; the clone is gone
/// either way.
pub async fn validate(workshop: &mut Workshop) -> Result<(), Failure> {
    let Some(hook) = Hooks::from_wire(workshop.request.hooks.as_ref()).enabled(HookName::Validate) else {
        return Ok(());
    };
    workshop.progress.step("validate").await;
    let result = on_clone(workshop, hook).await;
    workshop.down().await;
    result
}

async fn on_clone(workshop: &mut Workshop, hook: Hook) -> Result<(), Failure> {
    let disk = workshop.directory.join("disk.clone");
    let (from, to) = (workshop.file(FileKind::Disk), disk.clone());
    crate::adapters::files::blocking(move || {
        snapshot::disk::reflink(&from, &to)
            .map(drop)
            .map_err(|error| crate::adapters::bases::fetch_failure(&error, &to))
    })
    .await?;
    let slot = workshop.host.take_slot(slot::Egress::Internet).await?;
    let dialer = slot.dialer();
    let spec = workshop.machine_spec(slot.name(), disk, "run-clone");
    workshop.resources.slot = SlotHeld::Taken(slot);
    let from = vmm::RestoreSpec {
        base_memory: workshop.file(FileKind::Memory),
        device_state: workshop.file(FileKind::Device),
        memory_difference: None,
    };
    let restored =
        workshop.host.engine.restore(&spec, &from).await.map_err(|error| engine_failure(&error))?;
    let machine = restored.machine;
    workshop.resources.engine = EngineHeld::Machine(std::sync::Arc::clone(&machine));
    machine.resume().await.map_err(|error| engine_failure(&error))?;
    let timeout = Duration::from_millis(workshop.host.config.timeouts.guest_connect_ms);
    let mut connection = alive(&machine, connect_guest(&dialer, timeout)).await?;
    let id = MicrovmId::from_uuid(uuid::Uuid::new_v4());
    let repair = repair_request(&id, 1, true)?;
    let link = connection.link.clone();
    alive(&machine, async { link.repair_identity(repair).await.map_err(|error| link_failure(&error)) })
        .await?;
    // Its output belongs to the build's log; nobody else will ever read it.
    let _ = link.stream_logs(u64::MAX).await;
    let progress = workshop.progress.clone();
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

async fn until_valid(link: &guest_link::Link, hook: Hook) -> Result<(), Failure> {
    let deadline = Instant::now() + hook.timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(AGAIN_PAUSE);
        let answer = call_hook(link, Hook { timeout: left, ..hook }, String::new()).await;
        match answer {
            Err(Failure::Hook { http_status: NOT_YET, .. }) if Instant::now() + AGAIN_PAUSE < deadline => {
                tokio::time::sleep(AGAIN_PAUSE).await;
            }
            other => return other,
        }
    }
}
