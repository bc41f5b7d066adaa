//! `torpor down`: asks the supervisor to stop and waits; cleans up after one
//! that was killed. Repeating it is fine.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;
use nix::sys::signal::Signal;

use crate::cli::fleet::{Down, Up};
use crate::cli::{Cli, Command};
use crate::error::{CliError, Kind};
use crate::fleet::bringup::{self, Until};
use crate::fleet::plan::Plan;
use crate::fleet::record::{FleetRecord, FleetState};
use crate::fleet::{lock, process, storage};
use crate::output;

/// Longest wait for a supervisor: draining and every component's stop are bounded below this.
const DOWN_TIMEOUT: Duration = Duration::from_secs(240);
const WATCH_PAUSE: Duration = Duration::from_millis(50);

pub async fn run(data_dir: &Path, arguments: &Down) -> Result<(), CliError> {
    let run_dir = data_dir.join("run");
    if run_dir.is_dir() {
        match FleetRecord::load(&run_dir) {
            Some(record) if record.supervised() => stop_supervisor(&run_dir, &record).await?,
            record => clean_up(data_dir, record).await?,
        }
    }
    if arguments.purge { purge(data_dir) } else { Ok(()) }
}

async fn stop_supervisor(run_dir: &Path, record: &FleetRecord) -> Result<(), CliError> {
    let started = Instant::now();
    record.supervisor.signal(Signal::SIGTERM);
    let mut shown = String::new();
    while record.supervisor.alive() {
        let stopping = FleetRecord::load(run_dir).filter(|now| now.state == FleetState::Stopping);
        if let Some(now) = stopping.filter(|now| now.message != shown) {
            output::remark(format_args!("  {}", now.message));
            shown = now.message;
        }
        if started.elapsed() > DOWN_TIMEOUT {
            return Err(CliError::new(Kind::Timeout, "the supervisor is still stopping")
                .next("look at it: torpor status, and logs/supervisor.log in the data directory"));
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
    match FleetRecord::load(run_dir) {
        Some(last) if last.state == FleetState::Failed => Err(last.error()),
        _ => {
            output::remark(format_args!("down in {:.1} s", started.elapsed().as_secs_f64()));
            Ok(())
        }
    }
}

/// After a supervisor that was killed: engines and slots may be left. Only a
/// host-agent knows how to put them away, so the fleet is started once more.
async fn clean_up(data_dir: &Path, record: Option<FleetRecord>) -> Result<(), CliError> {
    if lock::held(&data_dir.join("run")) {
        return Err(
            CliError::new(Kind::Conflict, "a supervisor is just starting").next("try again in a moment")
        );
    }
    let Some(arguments) = record.as_ref().and_then(|record| arguments_of(data_dir, record)) else {
        return stop_leftovers(data_dir);
    };
    let plan = Plan::new(data_dir, &arguments)?;
    let left = storage::mounts_below(&data_dir.join("hosts"))?;
    if left.is_empty() {
        return stop_leftovers(data_dir);
    }
    output::remark("the supervisor was killed; starting the fleet once more to put its microVMs to sleep");
    let own = record.map(|record| record.arguments).unwrap_or_default();
    bringup::run(plan, own, Until::Up, |_| {}).await.map_err(|failure| {
        failure.during("the fleet could not be put to sleep").next("try torpor up, then torpor down")
    })
}

/// The arguments the killed supervisor was started with.
fn arguments_of(data_dir: &Path, record: &FleetRecord) -> Option<Up> {
    let line = std::iter::once("torpor".to_owned()).chain(record.arguments.iter().cloned());
    let cli = Cli::try_parse_from(line).ok()?;
    match cli.command {
        Command::Up(arguments) if data_dir.is_dir() => Some(arguments),
        _ => None,
    }
}

fn stop_leftovers(data_dir: &Path) -> Result<(), CliError> {
    for name in process::stop_stale(&data_dir.join("run"))? {
        output::remark(format_args!("stopped {name}, left over from a supervisor that was killed"));
    }
    let problems = storage::unmount_all(data_dir);
    if problems.is_empty() {
        output::remark("down");
        return Ok(());
    }
    Err(CliError::failed(problems.join("; ")).next("look for what holds it: fuser -vm"))
}

fn purge(data_dir: &Path) -> Result<(), CliError> {
    if !data_dir.exists() {
        return Ok(());
    }
    // Whatever else the path names, only a fleet's directory is deleted.
    if !data_dir.join("run").is_dir() || !data_dir.join("logs").is_dir() {
        return Err(CliError::usage(format!("{} is not a fleet's data directory", data_dir.display())));
    }
    let mounts = storage::mounts_below(data_dir)?;
    if let Some(mount) = mounts.first() {
        return Err(CliError::new(Kind::Conflict, format!("{} is still mounted", mount.display()))
            .next("run torpor down first"));
    }
    std::fs::remove_dir_all(data_dir).map_err(|error| crate::fleet::files::named(data_dir, &error))?;
    output::remark(format_args!("deleted {}", data_dir.display()));
    Ok(())
}
