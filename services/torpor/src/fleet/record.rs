//! `run/fleet.json`: what the supervisor knows, for `torpor status` and for the
//! `torpor up --detach` that waits for it. Replaced whole at every change.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files;
use super::process::ProcessId;

/// Where a fleet is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetState {
    /// Components are being started.
    Starting,
    /// Everything was healthy once; the supervisor keeps it so.
    Running,
    /// Components are being stopped.
    Stopping,
    /// Everything is stopped.
    Stopped,
    /// It could not be started; `message` says why.
    Failed,
}

/// How one supervised process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// Not started yet.
    Waiting,
    /// Started, not yet answering.
    Starting,
    /// Answers.
    Healthy,
    /// Runs but does not answer.
    Unhealthy,
    /// Ended; will be started again.
    Restarting,
    /// Stopped on request.
    Stopped,
    /// Could not be started.
    Failed,
}

impl ProcessState {
    /// The word in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentRecord {
    /// Its name, "scheduler", "host-agent-1".
    pub name: String,
    /// Its process, while it has one.
    pub process: Option<ProcessId>,
    /// When that process was started, Unix seconds.
    pub started: u64,
    /// Times it was started again.
    pub restarts: u32,
    /// How it is.
    pub health: ProcessState,
    /// Milliseconds from its first start to its first healthy answer.
    pub ready_ms: Option<u64>,
    /// What its last probe or its end said; empty when all is well.
    pub detail: String,
}

/// The whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRecord {
    /// Where it is in its life.
    #[serde(rename = "phase")]
    pub state: FleetState,
    /// What is being done, or why it failed.
    pub message: String,
    /// What to do about a failure; may be empty.
    pub next: String,
    /// The supervisor.
    pub supervisor: ProcessId,
    /// When it started, Unix seconds.
    pub started: u64,
    /// Its components, in starting order.
    pub components: Vec<ComponentRecord>,
    /// Arguments it was started with, for a supervisor that must come back.
    pub arguments: Vec<String>,
}

impl FleetRecord {
    /// The file in a run directory.
    pub fn file(run_dir: &Path) -> PathBuf {
        run_dir.join("fleet.json")
    }

    /// Reads the record; `None` when there is none or it is from another version.
    pub fn load(run_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::file(run_dir)).ok()?).ok()
    }

    /// Writes the record.
    pub fn save(&self, run_dir: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        files::write_private(&Self::file(run_dir), &text, None)
    }

    /// True while its supervisor runs.
    pub fn supervised(&self) -> bool {
        self.supervisor.alive()
    }
}

/// Now, as Unix seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(FleetRecord::load(directory.path()), None);
        let record = FleetRecord {
            state: FleetState::Running,
            message: String::new(),
            next: String::new(),
            supervisor: ProcessId::own(),
            started: unix_now(),
            components: vec![ComponentRecord {
                name: "etcd".to_owned(),
                process: None,
                started: 1,
                restarts: 2,
                health: ProcessState::Restarting,
                ready_ms: Some(3),
                detail: "killed".to_owned(),
            }],
            arguments: vec!["up".to_owned()],
        };
        record.save(directory.path()).unwrap();
        assert_eq!(FleetRecord::load(directory.path()), Some(record.clone()));
        assert!(record.supervised());
        std::fs::write(FleetRecord::file(directory.path()), "{}").unwrap();
        assert_eq!(FleetRecord::load(directory.path()), None);
    }
}
