//! The life of a fleet: everything up in order, kept up, everything down in
//! reverse. Whatever step fails, what was started is stopped again.

use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::components::{self, Component};
use super::plan::Plan;
use super::process::{self, ProcessId};
use super::reach;
use super::record::{ComponentRecord, FleetRecord, FleetState, ProcessState, unix_now};
use super::supervisor::{Shared, Tender};
use super::{authority, configuration, credentials, drain, lock, prerequisites, rights, storage};
use crate::error::{CliError, Kind};

/// Lines of a failed component's log that are shown.
const TAIL_LINES: usize = 15;

/// When the fleet is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Asked,
    /// As soon as it is up: to put to sleep what an earlier supervisor left.
    Up,
}

/// Runs a fleet from start to stop. `observe` sees every change of its record.
pub async fn run(
    mut plan: Plan,
    arguments: Vec<String>,
    until: Until,
    mut observe: impl FnMut(&FleetRecord) + Send + 'static,
) -> Result<(), CliError> {
    let asked = stop_signal()?;
    prerequisites::check(&plan)?;
    storage::directories(&plan)?;
    let _lock = lock::take(&plan.run_dir())?;
    for name in process::stop_stale(&plan.run_dir())? {
        crate::output::remark(format_args!("stopped {name}, left over from a supervisor that was killed"));
    }
    // Before anything is made of the plan, and after the last edge has left its port.
    let port_taken = reach::settle(&mut plan);
    let components = components::all(&plan);
    let shared = Shared::new(first_record(&plan, &components, port_taken, arguments), plan.run_dir());
    let mut changes = shared.watch();
    let observer = tokio::spawn(async move {
        loop {
            observe(&changes.borrow_and_update().clone());
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    let names =
        plan.wants("edge-proxy").then(|| tokio::spawn(reach::check_names(plan.domain.clone(), plan.edge(1))));
    let mut fleet = LocalFleet { plan, shared: shared.clone(), stages: Vec::new(), tasks: JoinSet::new() };
    let started = tokio::select! {
        result = fleet.start(components) => result,
        () = asked.cancelled() => Err(CliError::failed("stopped while starting")),
    };
    let up = started.is_ok();
    if up {
        let unresolved = match names {
            Some(names) => names.await.unwrap_or_default(),
            None => None,
        };
        shared.update(|record| {
            record.remarks.extend(unresolved);
            record.state = FleetState::Running;
            record.message.clear();
        });
        if until == Until::Asked {
            asked.cancelled().await;
        }
    }
    let problems = fleet.stop(up).await;
    let result = match (started, problems.is_empty()) {
        (Err(failure), _) => Err(failure),
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(CliError::failed(format!("stopped, but: {}", problems.join("; ")))
            .next("look for what holds it: fuser -vm, ip netns, pgrep -a qemu")),
    };
    shared.update(|record| record_end(record, &result));
    // Let the observer see the last word.
    drop((fleet, shared));
    let _ = observer.await;
    result
}

/// Writes down how a fleet ended.
fn record_end(record: &mut FleetRecord, result: &Result<(), CliError>) {
    match result {
        Ok(()) => {
            record.state = FleetState::Stopped;
            record.message.clear();
        }
        Err(failure) => {
            record.state = FleetState::Failed;
            record.message = failure.message.clone();
            record.next = failure.next.clone().unwrap_or_default();
        }
    }
}

/// A fleet that nothing has been started of.
pub(super) fn first_record(
    plan: &Plan,
    components: &[Component],
    remark: Option<String>,
    arguments: Vec<String>,
) -> FleetRecord {
    let waiting = |component: &Component| ComponentRecord {
        name: component.name.clone(),
        process: None,
        started: 0,
        restarts: 0,
        health: ProcessState::Waiting,
        ready_ms: None,
        detail: String::new(),
    };
    FleetRecord {
        state: FleetState::Starting,
        message: "preparing".to_owned(),
        next: String::new(),
        supervisor: ProcessId::own(),
        started: unix_now(),
        components: components.iter().map(waiting).collect(),
        endpoints: plan.endpoints(),
        remarks: remark.into_iter().collect(),
        arguments,
    }
}

fn stop_signal() -> Result<CancellationToken, CliError> {
    let asked = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A closed terminal must not end a fleet half-way; it goes on.
    let mut hangup = signal(SignalKind::hangup())?;
    let token = asked.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => token.cancel(),
                _ = interrupt.recv() => token.cancel(),
                _ = hangup.recv() => {}
            }
        }
    });
    Ok(asked)
}

struct LocalFleet {
    plan: Plan,
    shared: Arc<Shared>,
    /// What was started, a stage at a time, with the token that stops it.
    stages: Vec<(Vec<String>, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl LocalFleet {
    async fn start(&mut self, components: Vec<Component>) -> Result<(), CliError> {
        prerequisites::check_ports(&self.plan)?;
        authority::ensure(&self.plan)?;
        configuration::write(&self.plan)?;
        storage::install_programs(&self.plan)?;
        if self.plan.wants("host-agent-1") {
            storage::mount_hosts(&self.plan)?;
            let remark = storage::over_promised(&self.plan)?;
            self.shared.update(|record| record.remarks.extend(remark));
        }
        let context = client::Context::load(&self.plan.data_dir)?;
        let identity = context.identity()?;
        let mut components = components.into_iter().peekable();
        while let Some(stage) = components.peek().map(|component| component.stage) {
            let stop = CancellationToken::new();
            let mut names = Vec::new();
            while let Some(component) = components.next_if(|component| component.stage == stage) {
                names.push(component.name.clone());
                let log = self.plan.log(&component.name);
                let tender = Tender::new(component, self.shared.clone(), identity.clone(), log, stop.clone());
                self.tasks.spawn(tender.run());
            }
            self.shared.update(|record| record.message = format!("starting {}", names.join(", ")));
            self.stages.push((names.clone(), stop));
            self.wait_healthy(&names).await?;
            if names.iter().any(|name| name == "etcd") {
                // Before a service starts: each is let in by its rights.
                let store = rights::enforce(&self.plan).await?;
                credentials::record_root(&self.plan, &store).await?;
            }
        }
        if self.plan.wants("scheduler") && self.plan.wants("host-agent-1") {
            self.shared.update(|record| record.message = "waiting for the hosts to register".to_owned());
            drain::undrain(&context, usize::from(self.plan.hosts))
                .await
                .map_err(|failure| failure.during("the hosts are not ready"))?;
        }
        Ok(())
    }

    async fn wait_healthy(&self, names: &[String]) -> Result<(), CliError> {
        let mut changes = self.shared.watch();
        loop {
            let record = changes.borrow_and_update().clone();
            let mut stage = record.components.iter().filter(|component| names.contains(&component.name));
            if let Some(failed) = stage.clone().find(|component| component.health == ProcessState::Failed) {
                let log = self.plan.log(&failed.name);
                return Err(CliError::new(
                    Kind::Failed,
                    format!("{} could not be started: {}\n{}", failed.name, failed.detail, tail(&log)),
                )
                .next(format!("its whole log: {}", log.display())));
            }
            // Healthy once is enough: it may already be on its way back.
            if stage.all(|component| component.ready_ms.is_some()) {
                return Ok(());
            }
            changes.changed().await.map_err(|_| CliError::failed("the supervisor's tasks are gone"))?;
        }
    }

    /// Stops everything, last started first. Returns what is left behind.
    async fn stop(&mut self, was_up: bool) -> Vec<String> {
        let mut problems = Vec::new();
        self.shared.update(|record| {
            record.state = FleetState::Stopping;
            record.message = "putting microVMs to sleep".to_owned();
        });
        if was_up && self.plan.wants("scheduler") && self.plan.wants("host-agent-1") {
            match client::Context::load(&self.plan.data_dir) {
                Ok(context) => problems.extend(drain::drain(&context).await),
                Err(error) => problems.push(error.to_string()),
            }
        }
        while let Some((names, stop)) = self.stages.pop() {
            self.shared.update(|record| record.message = format!("stopping {}", names.join(", ")));
            stop.cancel();
            self.wait_stopped(&names).await;
        }
        while self.tasks.join_next().await.is_some() {}
        self.shared.update(|record| record.message = "unmounting".to_owned());
        problems.extend(storage::unmount_all(&self.plan.data_dir));
        problems
    }

    async fn wait_stopped(&self, names: &[String]) {
        let mut changes = self.shared.watch();
        loop {
            let record = changes.borrow_and_update().clone();
            let stopped = |component: &ComponentRecord| {
                matches!(component.health, ProcessState::Stopped | ProcessState::Failed)
                    || !names.contains(&component.name)
            };
            if record.components.iter().all(stopped) || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

pub fn tail(log: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const TAIL_BYTES: u64 = 16 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines[start..].iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}
