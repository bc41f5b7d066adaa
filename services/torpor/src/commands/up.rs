//! `torpor up`: the fleet in the foreground, or a supervisor in the background
//! that this command watches until everything is healthy.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::fleet::Up;
use crate::error::{CliError, Kind};
use crate::fleet::bringup::{self, Until};
use crate::fleet::plan::Plan;
use crate::fleet::record::{FleetRecord, FleetState, ProcessState};
use crate::fleet::{lock, prerequisites, storage};
use crate::output;

/// How often the supervisor's record is read while it starts.
const WATCH_PAUSE: Duration = Duration::from_millis(40);
/// Longest wait for a fleet to come up, after which it is stopped.
const UP_TIMEOUT: Duration = Duration::from_secs(180);

pub async fn run(data_dir: &Path, arguments: &Up) -> Result<(), CliError> {
    let plan = Plan::new(data_dir, arguments)?;
    let own_arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.detach && !arguments.supervised {
        return detach(&plan, own_arguments).await;
    }
    if arguments.supervised {
        // A session of our own: the terminal's signals are for the command that started us.
        let _ = nix::unistd::setsid();
    }
    let summary = (!arguments.supervised).then(|| plan.clone());
    let mut progress = Progress::default();
    bringup::run(plan, own_arguments, Until::Asked, move |record| {
        let came_up = progress.show(record);
        if let (true, Some(plan)) = (came_up, &summary) {
            greet(plan, record);
            output::remark("Ctrl-C puts everything to sleep and stops it.");
        }
    })
    .await
}

async fn detach(plan: &Plan, arguments: Vec<String>) -> Result<(), CliError> {
    prerequisites::check(plan)?;
    storage::directories(plan)?;
    drop(lock::take(&plan.run_dir())?);
    let log = plan.log("supervisor");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments.iter().filter(|argument| *argument != "--detach"))
        .arg("--supervised")
        .env("TORPOR_DATA_DIR", &plan.data_dir)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    let started = Instant::now();
    let mut progress = Progress::default();
    loop {
        let record = FleetRecord::load(&plan.run_dir()).filter(|record| record.supervisor.pid == child.id());
        if let Some(record) = &record {
            if progress.show(record) {
                output::remark(format_args!("up in {:.1} s", started.elapsed().as_secs_f64()));
                greet(plan, record);
                return Ok(());
            }
            if record.state == FleetState::Failed {
                let _ = child.wait();
                return Err(record.error());
            }
        }
        if let Some(status) = child.try_wait()? {
            let tail = bringup::tail(&log);
            return Err(CliError::failed(format!("the supervisor ended with {status}\n{tail}")));
        }
        if started.elapsed() > UP_TIMEOUT {
            return give_up(&mut child, CliError::new(Kind::Timeout, "the fleet did not come up in time"));
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PAUSE) => {}
            _ = tokio::signal::ctrl_c() => return give_up(&mut child, CliError::failed("interrupted; stopped again")),
        }
    }
}

fn give_up(child: &mut std::process::Child, failure: CliError) -> Result<(), CliError> {
    if let Some(process) = crate::fleet::process::ProcessId::of(child.id()) {
        process.signal(nix::sys::signal::Signal::SIGTERM);
    }
    // The supervisor bounds its own stopping.
    let _ = child.wait();
    Err(failure)
}

fn greet(plan: &Plan, record: &FleetRecord) {
    for remark in &record.remarks {
        output::remark(format_args!("note: {remark}"));
    }
    output::remark(format_args!("endpoints: {} (torpor get ID says the name)", record.endpoints));
    output::remark(format_args!(
        "AWS API:   {} (eval \"$(torpor env)\" points the AWS CLI and SDKs at it; artifacts go to s3://{})",
        plan.api_url(),
        client::ARTIFACT_BUCKET
    ));
    let flag = match plan.data_dir == Path::new(client::DEFAULT_DATA_DIR) {
        true => String::new(),
        false => format!(" --data-dir {}", plan.data_dir.display()),
    };
    output::remark(format_args!(
        "next: torpor base build debian-12{flag}, then torpor image create NAME --artifact DIR{flag}"
    ));
}

/// Prints what changed in a record, a line per event.
#[derive(Default)]
struct Progress {
    shown: Vec<(String, ProcessState, u32)>,
    message: String,
    up: bool,
}

impl Progress {
    /// Shows what is new; true once, when the fleet has come up.
    fn show(&mut self, record: &FleetRecord) -> bool {
        for component in &record.components {
            let now = (component.name.clone(), component.health, component.restarts);
            let before = self.shown.iter_mut().find(|(name, ..)| *name == component.name);
            let changed = before.as_ref().is_none_or(|before| **before != now);
            if !changed {
                continue;
            }
            match before {
                Some(before) => *before = now,
                None => self.shown.push(now),
            }
            let name = &component.name;
            match (component.health, component.ready_ms) {
                (ProcessState::Healthy, Some(took)) if component.restarts == 0 && !self.up => {
                    output::remark(format_args!("  {name:<16} healthy after {took} ms"));
                }
                (ProcessState::Healthy, _) => output::remark(format_args!("  {name:<16} healthy again")),
                (ProcessState::Restarting | ProcessState::Unhealthy | ProcessState::Failed, _) => {
                    output::remark(format_args!(
                        "  {name:<16} {}: {}",
                        component.health.name(),
                        component.detail
                    ));
                }
                (ProcessState::Waiting | ProcessState::Starting | ProcessState::Stopped, _) => {}
            }
        }
        if record.state == FleetState::Stopping && record.message != self.message {
            self.message.clone_from(&record.message);
            output::remark(format_args!("  {}", record.message));
        }
        let came_up = record.state == FleetState::Running && !self.up;
        self.up |= came_up;
        came_up
    }
}
