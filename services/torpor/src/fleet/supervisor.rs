//! Keeping components running: start, watch, start again. One task per
//! component; what they know goes into one record, written at every change.
//!
//! ```text
//! Waiting -> Starting -> Healthy <-> Unhealthy
//!               ^            |           |
//!               |            v           v
//!               +------- Restarting (pause doubles up to a bound, resets after a good while)
//! ```
//!
//! A component that ends several times before it was ever healthy is Failed:
//! its settings are wrong, and starting it again would only hide that.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backoff::Backoff;
use nix::sys::signal::Signal;
use rpc::TlsIdentity;
use tokio::process::Child;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::components::Component;
use super::process::ProcessId;
use super::record::{ComponentRecord, FleetRecord, ProcessState, unix_now};
use super::{probe, spawn};

/// Pauses before restarts.
const RESTART_PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// A component that ran this long starts again without delay.
const GOOD_WHILE: Duration = Duration::from_secs(30);
/// Ends before the first healthy answer after which a component has failed.
const EARLY_ENDS_MAX: u32 = 4;
/// Longest time from start to the first healthy answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between probes while starting, and later.
const PROBE_PAUSE_STARTING: Duration = Duration::from_millis(40);
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Failed probes in a row after which a component is unhealthy.
const PROBE_FAILURES_MAX: u32 = 2;
/// Size at which a log is put aside; one older log is kept.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// The record, shared by the tasks.
pub struct Shared {
    record: Mutex<FleetRecord>,
    run_dir: PathBuf,
    changed: watch::Sender<FleetRecord>,
}

impl Shared {
    pub fn new(record: FleetRecord, run_dir: PathBuf) -> Arc<Self> {
        let changed = watch::Sender::new(record.clone());
        let shared = Arc::new(Self { record: Mutex::new(record), run_dir, changed });
        shared.update(|_| {});
        shared
    }

    /// Changes the record, saves it and tells everybody who watches.
    pub fn update(&self, change: impl FnOnce(&mut FleetRecord)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        if let Err(error) = record.save(&self.run_dir) {
            // A full disk must not stop the supervision; status shows older news.
            crate::output::remark(format_args!("cannot write the fleet's record: {error}"));
        }
        self.changed.send_replace(record.clone());
    }

    pub fn watch(&self) -> watch::Receiver<FleetRecord> {
        self.changed.subscribe()
    }

    fn component(&self, name: &str, change: impl FnOnce(&mut ComponentRecord)) {
        self.update(|record| {
            if let Some(component) = record.components.iter_mut().find(|component| component.name == name) {
                change(component);
            }
        });
    }
}

pub struct Tender {
    component: Component,
    shared: Arc<Shared>,
    identity: Arc<TlsIdentity>,
    log: PathBuf,
    stop: CancellationToken,
    first_start: Instant,
    ever_healthy: bool,
}

/// Why a process is no longer tended.
enum End {
    Exited(ExitStatus),
    Stopped,
    NeverHealthy(String),
}

impl Tender {
    pub fn new(
        component: Component,
        shared: Arc<Shared>,
        identity: Arc<TlsIdentity>,
        log: PathBuf,
        stop: CancellationToken,
    ) -> Self {
        Self { component, shared, identity, log, stop, first_start: Instant::now(), ever_healthy: false }
    }

    /// Runs the component until it is told to stop or has failed.
    pub async fn run(mut self) {
        let mut backoff = RESTART_PAUSES;
        let mut early_ends = 0;
        loop {
            let started = Instant::now();
            let end = match spawn::start(&self.component, &self.log) {
                Ok(child) => self.tend(child).await,
                Err(error) => {
                    return self
                        .failed(format!("cannot start {}: {error}", self.component.program.display()));
                }
            };
            let detail = match end {
                End::Stopped => {
                    return self.shared.component(&self.component.name, |component| {
                        component.process = None;
                        component.health = ProcessState::Stopped;
                        component.detail.clear();
                    });
                }
                End::NeverHealthy(why) => return self.failed(format!("not healthy in time: {why}")),
                End::Exited(status) => format!("ended with {status}"),
            };
            if !self.ever_healthy {
                early_ends += 1;
                if early_ends >= EARLY_ENDS_MAX {
                    return self.failed(detail);
                }
            }
            if started.elapsed() > GOOD_WHILE {
                backoff.reset();
            }
            self.shared.component(&self.component.name, |component| {
                component.process = None;
                component.health = ProcessState::Restarting;
                component.detail = detail;
                component.restarts += 1;
            });
            tokio::select! {
                () = backoff.pause() => {}
                () = self.stop.cancelled() => {
                    return self.shared.component(&self.component.name, |component| component.health = ProcessState::Stopped);
                }
            }
        }
    }

    fn failed(&self, detail: String) {
        self.shared.component(&self.component.name, |component| {
            component.process = None;
            component.health = ProcessState::Failed;
            component.detail = detail;
        });
    }

    async fn tend(&mut self, mut child: Child) -> End {
        let name = self.component.name.clone();
        let process = child.id().and_then(ProcessId::of);
        if let Some(process) = process {
            // Dying before the pid file is there is harmless: the kernel kills the child together with us.
            let _ = process.save(&self.shared.run_dir, &name);
        }
        self.shared.component(&name, |component| {
            component.process = process;
            component.started = unix_now();
            component.health = ProcessState::Starting;
        });
        let started = Instant::now();
        let mut failures = 0;
        let mut healthy = false;
        loop {
            let pause = if healthy { PROBE_PAUSE } else { PROBE_PAUSE_STARTING };
            let result = tokio::select! {
                status = child.wait() => return status.map_or_else(|e| End::NeverHealthy(e.to_string()), End::Exited),
                () = self.stop.cancelled() => {
                    self.stop_child(&mut child).await;
                    return End::Stopped;
                }
                result = async {
                    tokio::time::sleep(pause).await;
                    probe::ask(&self.component.probe, &self.identity).await
                } => result,
            };
            rotate(&self.log);
            for (audit, files) in &self.component.audit {
                put_aside(audit, LOG_BYTES_MAX, *files);
            }
            match result {
                Ok(()) => {
                    failures = 0;
                    if !healthy {
                        healthy = true;
                        self.healthy();
                    }
                }
                Err(why) if healthy => {
                    failures += 1;
                    if failures >= PROBE_FAILURES_MAX {
                        healthy = false;
                        self.shared.component(&name, |component| {
                            component.health = ProcessState::Unhealthy;
                            component.detail = why;
                        });
                    }
                }
                Err(why) if !self.ever_healthy && started.elapsed() > START_TIMEOUT => {
                    self.stop_child(&mut child).await;
                    return End::NeverHealthy(why);
                }
                Err(_) => {}
            }
        }
    }

    fn healthy(&mut self) {
        let took = u64::try_from(self.first_start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let first = !std::mem::replace(&mut self.ever_healthy, true);
        self.shared.component(&self.component.name, |component| {
            component.health = ProcessState::Healthy;
            component.detail.clear();
            if first {
                component.ready_ms = Some(took);
            }
        });
    }

    /// Asks the process to end, kills it when it does not in time.
    async fn stop_child(&self, child: &mut Child) {
        if let Some(process) = child.id().and_then(ProcessId::of) {
            process.signal(Signal::SIGTERM);
        }
        if tokio::time::timeout(self.component.stop_timeout, child.wait()).await.is_err() {
            crate::output::remark(format_args!("{} did not stop in time and is killed", self.component.name));
            let _ = child.kill().await;
        }
        let _ = std::fs::remove_file(self.shared.run_dir.join(format!("{}.pid", self.component.name)));
    }
}

/// Puts a log aside once it is large. It is written in append mode, so cutting
/// it under its writer is safe; lines written between copy and cut are lost.
fn rotate(log: &std::path::Path) {
    if std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        let _ = std::fs::copy(log, log.with_extension("log.1"));
        let _ = std::fs::OpenOptions::new().write(true).truncate(true).open(log);
    }
}

/// Puts a file aside once it is large, for a writer that looks whether its file
/// is still in its place, and keeps the latest `files` that were put aside. A crash
/// in between leaves a gap in their numbers and loses nothing.
fn put_aside(file: &std::path::Path, bytes_max: u64, files: u8) {
    if std::fs::metadata(file).is_ok_and(|metadata| metadata.len() > bytes_max) {
        let older = |number: u8| {
            let mut name = file.as_os_str().to_owned();
            name.push(format!(".{number}"));
            name
        };
        for number in (1..files).rev() {
            let _ = std::fs::rename(older(number), older(number + 1));
        }
        let _ = std::fs::rename(file, older(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_put_aside_whole() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.jsonl");
        for text in ["one", "fourth", "eleven", "twelve"] {
            std::fs::write(&file, text).unwrap();
            put_aside(&file, 3, 2);
            assert_eq!(file.exists(), text.len() <= 3, "{text}");
        }
        let older = |number| std::fs::read_to_string(directory.path().join(format!("a.jsonl.{number}")));
        assert_eq!(older(1).unwrap(), "twelve");
        assert_eq!(older(2).unwrap(), "eleven");
        assert!(older(3).is_err());
    }
}
