//! What processes cost, and on which processors they run.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Which processors are whose: each proxy in turn has the first ones, for as many worker threads; the load, the
/// app and the simulated host have the rest.
#[derive(Debug, Clone)]
pub struct Division {
    pub proxies: Vec<usize>,
    pub rest: Vec<usize>,
}

impl Division {
    /// Divides what this process may use, and leaves it and its children the rest; `None` when nothing would be
    /// left. To be called before there are other threads.
    pub fn take(workers: usize) -> anyhow::Result<Option<Self>> {
        let allowed = sched_getaffinity(Pid::this()).context("which processors may be used")?;
        let all: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or_default()).collect();
        if all.len() <= workers {
            return Ok(None);
        }
        let (proxies, rest) = all.split_at(workers);
        sched_setaffinity(Pid::this(), &set(rest)?).context("leave processors to the proxies")?;
        Ok(Some(Self { proxies: proxies.to_vec(), rest: rest.to_vec() }))
    }

    /// Confines a running process to the proxies' processors, until that is dropped.
    pub fn confine(&self, pid: i32) -> anyhow::Result<Confined> {
        let wanted = set(&self.proxies)?;
        let mut confined = Confined(Vec::new());
        for thread in threads(pid)? {
            let before = sched_getaffinity(thread)?;
            sched_setaffinity(thread, &wanted).context("confine the edge to its processors")?;
            confined.0.push((thread, before));
        }
        Ok(confined)
    }
}

/// The threads that were confined, with the processors they had.
pub struct Confined(Vec<(Pid, CpuSet)>);

impl Drop for Confined {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            // A thread that is gone needs none.
            let _ = sched_setaffinity(*thread, before);
        }
    }
}

fn set(processors: &[usize]) -> anyhow::Result<CpuSet> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(*processor)?;
    }
    Ok(set)
}

fn threads(pid: i32) -> anyhow::Result<Vec<Pid>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.map(Pid::from_raw).collect())
}

/// Processor time that processes and their children have used so far.
pub fn used(pids: &[i32]) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for pid in pids {
        for thread in threads(*pid)? {
            let directory = format!("/proc/{pid}/task/{thread}");
            // Threads come and go; one that is gone is not counted.
            let Ok(statistics) = fs::read_to_string(format!("{directory}/schedstat")) else { continue };
            let first = statistics.split(' ').next().and_then(|text| text.parse::<u64>().ok());
            nanoseconds += first.context("the kernel tells no processor time")?;
            let children = fs::read_to_string(format!("{directory}/children")).unwrap_or_default();
            let children: Vec<i32> = children.split_whitespace().filter_map(|id| id.parse().ok()).collect();
            nanoseconds += u64::try_from(used(&children)?.as_nanos())?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Memory of a process that is in the machine's, in MiB.
pub fn resident_mib(pid: i32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// The threads a process of this fleet works with: what its environment says, or one per processor.
pub fn worker_threads(pid: i32) -> anyhow::Result<usize> {
    let environment = fs::read(format!("/proc/{pid}/environ"))?;
    let told = environment.split(|byte| *byte == 0).find_map(|variable| {
        std::str::from_utf8(variable).ok()?.strip_prefix("TOKIO_WORKER_THREADS=")?.parse().ok()
    });
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let processors = text.lines().filter(|line| line.starts_with("processor")).count();
    ensure!(processors > 0, "the kernel names no processors");
    Ok(told.unwrap_or(processors))
}
