//! `run/fleet.json`: what the supervisor knows, for `torpor status` and for the
//! `torpor up --detach` that waits for it. Replaced whole at every change.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files;
use super::process::ProcessId;
use crate::error::CliError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetState {
    Starting,
    /// Everything was healthy once; the supervisor keeps it so.
    Running,
    Stopping,
    Stopped,
    /// It could not be started; `message` says why.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    Waiting,
    /// Started, not yet answering.
    Starting,
    Healthy,
    /// Runs but does not answer.
    Unhealthy,
    Restarting,
    Stopped,
    Failed,
}

impl ProcessState {
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentRecord {
    /// Its name, "scheduler", "host-agent-1".
    pub name: String,
    pub process: Option<ProcessId>,
    /// When that process was started, Unix seconds.
    pub started: u64,
    pub restarts: u32,
    pub health: ProcessState,
    /// Milliseconds from its first start to its first healthy answer.
    pub ready_ms: Option<u64>,
    /// What its last probe or its end said; empty when all is well.
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRecord {
    #[serde(rename = "phase")]
    pub state: FleetState,
    /// What is being done, or why it failed.
    pub message: String,
    pub next: String,
    pub supervisor: ProcessId,
    pub started: u64,
    pub components: Vec<ComponentRecord>,
    /// URLs of the endpoints, for people.
    #[serde(default)]
    pub endpoints: String,
    /// What a person should know of this fleet: a port that was taken, names that do not resolve.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// Arguments it was started with, for a supervisor that must come back.
    pub arguments: Vec<String>,
}

impl FleetRecord {
    pub fn file(run_dir: &Path) -> PathBuf {
        run_dir.join("fleet.json")
    }

    /// Reads the record; `None` when there is none or it is from another version.
    pub fn load(run_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::file(run_dir)).ok()?).ok()
    }

    pub fn save(&self, run_dir: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        files::write_private(&Self::file(run_dir), &text, None)
    }

    pub fn error(&self) -> CliError {
        let mut error = CliError::failed(self.message.clone());
        error.next = Some(self.next.clone()).filter(|next| !next.is_empty());
        error
    }

    pub fn supervised(&self) -> bool {
        self.supervisor.alive()
    }
}

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
            endpoints: "https://<name>.microvms.localhost/".to_owned(),
            remarks: vec!["port 443 is taken".to_owned()],
            arguments: vec!["up".to_owned()],
        };
        record.save(directory.path()).unwrap();
        assert_eq!(FleetRecord::load(directory.path()), Some(record.clone()));
        assert!(record.supervised());
        std::fs::write(FleetRecord::file(directory.path()), "{}").unwrap();
        assert_eq!(FleetRecord::load(directory.path()), None);
    }
}
