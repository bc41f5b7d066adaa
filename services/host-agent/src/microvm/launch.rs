//! Launching a microVM from its image's snapshot, and what a wake shares with it: the image, and becoming RUNNING. The
//! journal says RUNNING before the gate opens: a session whose answers have left
//! the host must not be forgotten by the next agent.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::core::{Core, Live};
use super::guest::Restore;
use super::start::Plan;
use crate::adapters::files;
use crate::adapters::image_snapshots::ImageSnapshotLease;
use crate::domain::HostError;
use crate::domain::hooks::{self, HookName};
use crate::domain::local_state::Event;
use crate::domain::transition::Cause;
use crate::failpoint;
use crate::stopwatch::Stopwatch;

impl Core {
    /// Starts the microVM for the first time. Called in `Launching`; ends in
    /// RUNNING, or fails with everything given back and the state unchanged.
    pub async fn launch(&mut self, cancel: &CancellationToken) -> Result<(), HostError> {
        let watch = Stopwatch::start("launch", Cause::requested());
        self.journal.restore_count = 1;
        self.save()?;
        failpoint::hit("launch-begun");
        let base = self.base(&watch).await?;
        self.journal.log_start = base.log_start();
        self.log.start_guest_at(base.log_start());
        let payload = &self.spec.run_hook_payload;
        let hook = self
            .spec
            .hooks
            .enabled(HookName::Run)
            .map(|hook| (hook, hooks::run_body(self.id.as_str(), payload)));
        let device_state = base.device_state();
        let plan =
            Plan { restore: Restore::First, device_state, own: None, hook, base, turn: None, memory: None };
        let read = files::occupied_bytes(&plan.device_state);
        let live = self.start(&watch, plan, cancel).await?;
        self.journal.meter.snapshot_bytes_read += read;
        self.run(&watch, live, "launched").await
    }

    /// The guest is well: journal, then gate. The write outlives this process at once and a power cut a
    /// moment later: a power cut in between ends the guest too, and leaves the microVM as it last slept, or
    /// as never launched. A journal that cannot be written fails the start, because a restart would not know
    /// of the session.
    pub async fn run(&mut self, watch: &Stopwatch, live: Live, what: &str) -> Result<(), HostError> {
        let before = (self.journal.state, self.journal.reason.clone(), self.journal.state_since_ms);
        self.enter(Event::IsRunning, "");
        if let Err(failure) = watch.phase("journal", async { self.save() }).await {
            (self.journal.state, self.journal.reason, self.journal.state_since_ms) = before;
            self.release(live).await;
            return Err(failure);
        }
        failpoint::hit(if what == "launched" { "launch-journaled" } else { "wake-journaled" });
        self.asleep.rejoin(&live.gate);
        self.live = Some(live);
        self.finished(watch.finish());
        self.publish();
        self.log.append(what);
        let path = self.files.journal();
        tokio::task::spawn_blocking(move || {
            let directory = path.parent().map(Path::to_owned).unwrap_or_default();
            // A newer journal, or none any more, is just as well.
            let _ = files::sync(&path).and_then(|()| files::sync(&directory));
        });
        Ok(())
    }

    pub async fn base(&self, watch: &Stopwatch) -> Result<ImageSnapshotLease, HostError> {
        watch.phase("image", self.host.image_snapshots.ensure(&self.spec.snapshot)).await
    }
}
