//! Control groups of one build: a bound on the memory and the number of all its processes together. Machines
//! differ in what they have (version 1, version 2, neither delegated); what is there is used, and what is
//! missing is logged once per build, not an error.

use std::io;
use std::path::{Path, PathBuf};

use crate::adapters::sandbox::wait_until_empty;

const ROOT: &str = "/sys/fs/cgroup";

#[derive(Debug)]
pub struct Groups {
    directories: Vec<PathBuf>,
}

impl Groups {
    /// Removes groups whose names begin with `prefix`, which an earlier process
    /// left. Their processes died with it.
    pub async fn reconcile(prefix: &str) {
        let mut directories = Vec::new();
        for hierarchy in ["", "memory", "pids"] {
            let Ok(mut entries) = tokio::fs::read_dir(Path::new(ROOT).join(hierarchy)).await else {
                continue;
            };
            while let Ok(Some(entry)) = entries.next_entry().await {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    directories.push(entry.path());
                }
            }
        }
        Self { directories }.remove().await;
    }

    /// Makes the groups the machine offers, all called `name`.
    pub async fn create(name: &str, memory_bytes_max: u64, processes_max: u64) -> Self {
        let root = Path::new(ROOT);
        let (memory, processes) = (memory_bytes_max.to_string(), processes_max.to_string());
        let candidates: [(PathBuf, Vec<(&str, &str)>); 3] = [
            // Version 2.
            (root.to_owned(), vec![("memory.max", &memory), ("pids.max", &processes)]),
            // Version 1, a hierarchy for each.
            (root.join("memory"), vec![("memory.limit_in_bytes", &memory)]),
            (root.join("pids"), vec![("pids.max", &processes)]),
        ];
        let mut directories = Vec::new();
        for (hierarchy, limits) in candidates {
            if !hierarchy.join("cgroup.procs").exists() {
                continue;
            }
            let directory = hierarchy.join(name);
            match make(&directory, &limits).await {
                Ok(()) => directories.push(directory),
                Err(error) => {
                    let _ = tokio::fs::remove_dir(&directory).await;
                    tracing::debug!(%error, directory = %directory.display(), "no bound on the build here");
                }
            }
        }
        if directories.is_empty() {
            tracing::warn!("this machine offers no control groups: builds' memory is not bounded");
        }
        Self { directories }
    }

    /// Files a process writes its id to, to join.
    pub fn files(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// Whether the kernel has ended one of its processes because they took too much memory together.
    pub async fn ran_out_of_memory(&self) -> bool {
        for (directory, file) in self
            .directories
            .iter()
            .flat_map(|directory| [(directory, "memory.events"), (directory, "memory.oom_control")])
        {
            let text = tokio::fs::read_to_string(directory.join(file)).await.unwrap_or_default();
            let kills =
                text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
            if kills.is_some_and(|kills| kills > 0) {
                return true;
            }
        }
        false
    }

    /// Waits until the groups are empty and removes them.
    pub async fn remove(self) {
        for directory in self.directories {
            wait_until_empty(&directory.join("cgroup.procs")).await;
            if let Err(error) = tokio::fs::remove_dir(&directory).await {
                tracing::warn!(%error, directory = %directory.display(), "a control group is left over");
            }
        }
    }
}

async fn make(directory: &Path, limits: &[(&str, &str)]) -> io::Result<()> {
    match tokio::fs::create_dir(directory).await {
        // Left by a crash; empty by now, since the sandbox died with the builder.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for (file, limit) in limits {
        tokio::fs::write(directory.join(file), limit).await?;
    }
    Ok(())
}
