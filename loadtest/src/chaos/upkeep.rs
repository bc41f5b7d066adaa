//! Upkeep: what an operator does to a fleet that serves all the while. It takes the place of a fault, and nothing may fail for it.

use std::process::Stdio;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use api::host::v1::{DrainHostRequest, Host, HostState, ListHostsRequest, UndrainHostRequest};
use client::Call as _;
use nix::sys::signal::Signal;
use rpc::CallBounds;

use super::fleet::{HOST, Part, Process};
use super::storm::{Storm, host_id};

/// Longest rotation: three steps, each waited for.
const ROTATION_MAX: Duration = Duration::from_secs(300);
/// Longest drain of one host.
const DRAIN_MAX: Duration = Duration::from_secs(180);
/// How often it is asked how far a drain has come.
const PAUSE: Duration = Duration::from_millis(500);
/// An operator's call, which a new leader may have to answer.
const CALL: CallBounds = CallBounds {
    attempt: Duration::from_secs(10),
    total: Duration::from_secs(60),
    retry: Duration::from_secs(30),
};
/// More hosts than `torpor up` has.
const HOSTS_MAX: u32 = 100;

impl Storm<'_> {
    /// Runs `torpor certs rotate`, all its steps.
    pub(super) async fn rotate(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let mut rotation = tokio::process::Command::new(self.fleet.program());
        rotation.arg("--data-dir").arg(self.fleet.data_dir()).args(["certs", "rotate"]);
        // One that is broken off goes on with the next.
        rotation.stdin(Stdio::null()).kill_on_drop(true);
        let ended = tokio::time::timeout(ROTATION_MAX, rotation.output());
        let ended = ended.await.context("torpor certs rotate does not end")?.context("torpor")?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "torpor certs rotate: {}", said.trim());
        Ok(started.elapsed())
    }

    /// Has a process end properly, and waits until the supervisor has started another that is well.
    pub(super) async fn restart(&self, part: &Part, process: Process) -> anyhow::Result<Duration> {
        let started = Instant::now();
        process.signal(Signal::SIGTERM);
        let is_back = || self.fleet.is_back(&part.name, process).unwrap_or(false);
        ensure!(self.until(async || is_back()).await, "{} does not come back", part.name);
        Ok(started.elapsed())
    }

    /// Drains one host after the other, starts its host-agent anew, and takes it back.
    pub(super) async fn upgrade(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        // One that an earlier upgrade did not come to take back.
        self.take_back().await?;
        for part in self.fleet.parts(HOST)? {
            let host = host_id(&part.name);
            *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = Some(host.clone());
            self.drain(&host).await?;
            let process = part.process.with_context(|| format!("{} does not run", part.name))?;
            self.restart(&part, process).await?;
            self.take_back().await?;
            // The next one's microVMs need room here.
            let ready = self.until(async || self.is_ready(&host).await).await;
            ensure!(ready && self.well().await.is_some(), "{host} is not ready again");
        }
        Ok(started.elapsed())
    }

    /// Takes back the host that is drained, if one is.
    pub(super) async fn take_back(&self) -> anyhow::Result<()> {
        let host_id = self.drained.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(host_id) = host_id else { return Ok(()) };
        let undrained =
            UndrainHostRequest { host_id: host_id.clone() }.send(&self.load.schedulers, CALL).await;
        undrained.with_context(|| format!("{host_id} is left drained; torpor hosts undrain {host_id}"))?;
        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// As `torpor hosts drain --wait` does.
    async fn drain(&self, host_id: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let request = DrainHostRequest { host_id: host_id.to_owned(), wake_elsewhere: true };
            let host = request.send(&self.load.schedulers, CALL).await?.host.unwrap_or_default();
            let progress = host.drain.clone().unwrap_or_default();
            if host.state() != HostState::Lost
                && progress.running + progress.only_here + progress.to_wake == 0
            {
                return Ok(());
            }
            if started.elapsed() > DRAIN_MAX {
                let reasons: Vec<_> = progress.left.into_iter().map(|left| left.reason).collect();
                bail!("{host_id} is not drained after {DRAIN_MAX:?}: {}", reasons.join("; "));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether a host takes placements.
    pub(super) async fn is_ready(&self, host_id: &str) -> bool {
        let request = ListHostsRequest { page_size: HOSTS_MAX, ..ListHostsRequest::default() };
        let ready = |host: &Host| host.state() == HostState::Ready && is_named(host, host_id);
        let answer = request.send(&self.load.schedulers, CALL).await;
        answer.is_ok_and(|answer| answer.hosts.iter().any(ready))
    }
}

fn is_named(host: &Host, host_id: &str) -> bool {
    host.spec.as_ref().is_some_and(|spec| spec.host_id == host_id)
}
