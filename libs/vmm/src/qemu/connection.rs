//! The control connection of one QEMU, and what it has been seen to do.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::command::{CONSOLE, CONSOLE_BYTES};
use super::exit::Shutdown;
use crate::engine::Status;
use crate::error::{Error, Result};
use crate::qmp::{Qmp, Report};

const SOCKET: &str = "qmp.sock";

/// Facts from events. They stay, so it does not matter who looks when.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    pub(super) shutdown: Option<Shutdown>,
    /// `completed` or `failed`.
    pub(super) load_completed: Option<bool>,
    /// The guest has been stopped, whoever did it, and not been set going since.
    pub(super) stopped: bool,
    /// How often it has been stopped.
    pub(super) stops: u64,
}

impl Observed {
    fn note_stop(&mut self) {
        self.stopped = true;
        self.stops += 1;
    }
}

/// What QEMU calls the state of a guest that it has stopped because the host had no room for a write.
const OUT_OF_SPACE: &str = "io-error";

pub(super) struct Connection {
    qmp: Qmp,
    observed: watch::Sender<Observed>,
}

/// Binds the control socket before QEMU starts: it is there to connect to at once, whatever QEMU is doing.
pub(super) fn listen(run_dir: &Path) -> Result<UnixListener> {
    let path = run_dir.join(SOCKET);
    let failed = |e| Error::io(format!("listen on {}", path.display()), e);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {} // of an earlier process that is gone
    }
    let (_directory, short) = short_path(run_dir)?;
    UnixListener::bind(short).map_err(failed)
}

/// A socket's path may have 107 bytes, which a directory deep in the tree exceeds; the way through an open directory is
/// always short. The path is good while the file is open.
fn short_path(run_dir: &Path) -> Result<(std::fs::File, PathBuf)> {
    let directory =
        std::fs::File::open(run_dir).map_err(|e| Error::io(format!("open {}", run_dir.display()), e))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
    Ok((directory, path))
}

impl Connection {
    /// Connects and waits until QEMU answers. The caller bounds the time.
    pub(super) async fn open(run_dir: &Path) -> Result<Self> {
        let (_directory, path) = short_path(run_dir)?;
        let stream = UnixStream::connect(path).await;
        let stream =
            stream.map_err(|e| Error::io(format!("connect to {}", run_dir.join(SOCKET).display()), e))?;
        let observed = watch::Sender::new(Observed::default());
        let sink = observed.clone();
        let qmp = Qmp::connect(stream, move |report| observe(&sink, report)).await?;
        Ok(Self { qmp, observed })
    }

    pub(super) fn observed(&self) -> watch::Receiver<Observed> {
        self.observed.subscribe()
    }

    /// For a guest that ended while nobody was connected: the event is gone, the fact is not.
    pub(super) fn note_missed_end(&self) {
        self.observed.send_if_modified(|seen| {
            let news = seen.shutdown.is_none();
            seen.shutdown.get_or_insert(Shutdown::Unseen);
            news
        });
    }

    /// For a guest that was stopped while nobody was connected.
    pub(super) fn note_stopped(&self) {
        self.observed.send_modify(Observed::note_stop);
    }

    pub(super) async fn state(&self) -> Result<String> {
        let answer = self.qmp.command("query-status", json!({})).await?;
        let state = answer["status"].as_str();
        Ok(state.ok_or_else(|| Error::Protocol("query-status without a status".into()))?.to_owned())
    }

    pub(super) async fn status(&self) -> Result<Status> {
        Ok(match self.state().await?.as_str() {
            "running" => Status::Running,
            "inmigrate" | "prelaunch" => Status::Prepared,
            "shutdown" | "guest-panicked" | "internal-error" => Status::Ended,
            OUT_OF_SPACE => Status::OutOfSpace,
            _ => Status::Paused,
        })
    }

    pub(super) async fn pause(&self) -> Result<()> {
        self.qmp.command("stop", json!({})).await?;
        self.expect_paused().await
    }

    pub(super) async fn expect_paused(&self) -> Result<()> {
        match self.state().await? {
            state if state == "paused" => Ok(()),
            state if state == OUT_OF_SPACE => Err(Error::OutOfSpace),
            state => Err(Error::NotPaused { status: state }),
        }
    }

    /// Looks only when the guest has been stopped: why, its events do not say reliably (later versions of QEMU hold those about
    /// writes back for a second), its state does.
    pub(super) async fn out_of_space(&self) {
        let mut observed = self.observed();
        let mut looked = 0;
        // A guest that we have stopped ourselves writes nothing until it is set going, and then the next stop counts.
        while let Ok(stops) =
            observed.wait_for(|seen| seen.stopped && seen.stops != looked).await.map(|seen| seen.stops)
        {
            looked = stops;
            if matches!(self.status().await, Ok(Status::OutOfSpace)) {
                return;
            }
        }
        // The machine is gone.
        std::future::pending().await
    }

    pub(super) async fn resume(&self) -> Result<()> {
        self.qmp.command("cont", json!({})).await.map(drop)
    }

    /// Asks for events about loading state.
    pub(super) async fn report_migration(&self) -> Result<()> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.qmp.command("migrate-set-capabilities", events).await.map(drop)
    }

    /// Loads device state from a file; `false` when QEMU says that it failed. QEMU 7.2 rather exits.
    pub(super) async fn load(&self, device_state: &std::fs::File) -> Result<bool> {
        let mut observed = self.observed();
        let name = json!({ "fdname": "state" });
        self.qmp.command_with_file("getfd", name, Some(device_state.as_fd())).await?;
        self.qmp.command("migrate-incoming", json!({ "uri": "fd:state" })).await?;
        let seen = observed.wait_for(|seen| seen.load_completed.is_some()).await.map_err(|_| Error::Gone)?;
        Ok(seen.load_completed == Some(true))
    }

    /// Has QEMU write its device state into a file that is open here, for QEMU may not open files any more.
    pub(super) async fn save(&self, into: &std::fs::File) -> Result<()> {
        let added = self.qmp.command_with_file("add-fd", json!({}), Some(into.as_fd())).await?;
        let set = added["fdset-id"].as_i64().ok_or_else(|| Error::Protocol("add-fd without a set".into()))?;
        // "live" would have the disk given up to another host, and a second save of a paused machine abort QEMU.
        let save = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
        let saved = self.qmp.command("xen-save-devices-state", save).await;
        self.qmp.command("remove-fd", json!({ "fdset-id": set })).await?;
        saved.map(drop)
    }

    /// What the guest wrote since the last call, at most the ring's size. The guest may write any bytes, so they
    /// travel in base64.
    pub(super) async fn read_console(&self) -> Result<Vec<u8>> {
        let read = json!({ "device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64" });
        let answer = self.qmp.command("ringbuf-read", read).await?;
        let bytes = answer.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        bytes.ok_or_else(|| Error::Protocol("ringbuf-read without base64".into()))
    }
}

fn observe(sink: &watch::Sender<Observed>, report: Report) {
    let Report::Event { name, data } = report else {
        return;
    };
    match name.as_str() {
        "SHUTDOWN" => sink.send_modify(|seen| {
            let reason = data["reason"].as_str().unwrap_or_default();
            seen.shutdown.get_or_insert_with(|| Shutdown::of_event(reason));
        }),
        "STOP" => sink.send_modify(Observed::note_stop),
        "RESUME" => sink.send_modify(|seen| seen.stopped = false),
        "MIGRATION" => match data["status"].as_str() {
            Some("completed") => sink.send_modify(|seen| seen.load_completed = Some(true)),
            Some("failed") => sink.send_modify(|seen| seen.load_completed = Some(false)),
            _ => {}
        },
        _ => {}
    }
}
