//! Bakes: booting a root disk once, waiting for its app, and publishing the
//! snapshot every microVM of the version starts from.
//!
//! A bake belongs to the call that asked for it. When the caller hangs up, or
//! this process dies, nothing of it is left: its directory never survives a
//! restart, and what it stored in S3 without telling anyone is removed.

mod app;
mod memory;
mod run;
mod validate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::common::v1::{LogLine, LogSource};
use api::hostagent::v1::{BakeRequest, BakeResponse};
use clock::Clock;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::adapters::files;
use crate::domain::HostError;
use crate::domain::fence::{Fence, fence};
use crate::host::{Host, timestamp, unix_ms};

/// Messages that may wait for a slow caller.
const PROGRESS_MAX: usize = 64;
/// Name of the file that says where a bake stores, until its result is out.
const MARKER: &str = "destination";

pub struct Bakes {
    host: Arc<Host>,
    running: Mutex<HashMap<String, Running>>,
}

struct Running {
    generation: u64,
    cancel: CancellationToken,
}

/// What a bake tells its caller while it runs.
#[derive(Clone)]
pub struct Progress {
    sender: mpsc::Sender<Result<BakeResponse, HostError>>,
    clock: Clock,
}

impl Progress {
    pub async fn step(&self, name: &str) {
        self.send(BakeResponse { step: name.to_owned(), ..Default::default() }).await;
    }

    pub async fn lines(&self, lines: Vec<LogLine>) {
        self.send(BakeResponse { lines, ..Default::default() }).await;
    }

    pub async fn say(&self, text: impl Into<String>) {
        let line = LogLine {
            time: Some(timestamp(unix_ms(self.clock.now()))),
            source: LogSource::Platform.into(),
            text: text.into(),
            sequence: 0,
        };
        self.lines(vec![line]).await;
    }

    async fn send(&self, response: BakeResponse) {
        // A caller that is gone is noticed elsewhere.
        let _ = self.sender.send(Ok(response)).await;
    }
}

impl Bakes {
    /// No bakes yet.
    pub fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self { host, running: Mutex::default() })
    }

    /// Starts a bake. Dropping the stream ends it.
    pub fn start(
        self: &Arc<Self>,
        request: BakeRequest,
    ) -> Result<impl Stream<Item = Result<BakeResponse, HostError>> + Send + use<>, HostError> {
        check(&request)?;
        let cancel = CancellationToken::new();
        self.admit(&request, &cancel)?;
        let (sender, receiver) = mpsc::channel(PROGRESS_MAX);
        let bakes = Arc::clone(self);
        tokio::spawn(async move {
            let (id, generation) = (request.build_id.clone(), request.generation);
            tracing::info!(build = id, generation, image = request.image_name, "bake began");
            let progress = Progress { sender: sender.clone(), clock: bakes.host.clock.clone() };
            let result = run::bake(&bakes.host, request, &progress, &cancel).await;
            match result {
                Ok(()) => tracing::info!(build = id, "bake done"),
                Err(failure) => {
                    tracing::warn!(build = id, error = %failure, "bake failed");
                    bakes.host.metrics.failed("bake");
                    let _ = sender.send(Err(failure)).await;
                }
            }
            bakes.leave(&id, generation);
            bakes.host.changed();
        });
        Ok(ReceiverStream::new(receiver))
    }

    fn admit(&self, request: &BakeRequest, cancel: &CancellationToken) -> Result<(), HostError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = running.get(&request.build_id) {
            match fence(held.generation, request.generation) {
                Fence::Stale => {
                    return Err(HostError::StaleGeneration {
                        held: held.generation,
                        offered: request.generation,
                    });
                }
                Fence::Same => {
                    return Err(HostError::Conflict("this attempt is being baked already".to_owned()));
                }
                Fence::Newer => held.cancel.cancel(),
            }
        } else if running.len() >= self.host.config.limits.bakes {
            return Err(HostError::Capacity(format!("{} bakes run on this host already", running.len())));
        }
        let entry = Running { generation: request.generation, cancel: cancel.clone() };
        running.insert(request.build_id.clone(), entry);
        Ok(())
    }

    fn leave(&self, id: &str, generation: u64) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(id).is_some_and(|held| held.generation == generation) {
            running.remove(id);
        }
    }
}

/// Removes what bakes of an earlier agent left on the disk and in S3. Their engines have been reaped before.
pub async fn remove_leftovers(host: &Arc<Host>) {
    let Ok(entries) = std::fs::read_dir(host.data.bakes()) else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        tracing::info!(path = %path.display(), "removing an unfinished bake");
        if let Ok(prefix) = std::fs::read_to_string(path.join(MARKER)) {
            let key = snapshot::manifest_key(&prefix);
            if let Err(error) = snapshot::delete(&host.store, host.bucket(), &key).await {
                // The builder removes its prefix with the version; this was only the earliest chance.
                tracing::warn!(prefix, %error, "chunks of an unfinished bake stay in S3 for now");
            }
        }
        files::discard(&path);
    }
}

fn check(request: &BakeRequest) -> Result<(), HostError> {
    let mut violations = Vec::new();
    let mut rule = |holds: bool, field: &str, why: &str| {
        if !holds {
            violations.push((field.to_owned(), why.to_owned()));
        }
    };
    rule(uuid::Uuid::try_parse(&request.build_id).is_ok(), "build_id", "must be a UUID");
    rule(request.generation > 0, "generation", "must be at least 1");
    rule(request.disk.is_some(), "disk", "is required");
    rule(request.memory_mib >= 64, "memory_mib", "must be at least 64");
    rule(request.vcpu_count >= 1, "vcpu_count", "must be at least 1");
    rule(!request.destination_prefix.is_empty(), "destination_prefix", "is required");
    let app = request.app.as_ref();
    let starts = app.is_some_and(|app| !app.entrypoint.is_empty() || !app.command.is_empty());
    rule(starts, "app", "needs an ENTRYPOINT or a CMD");
    if violations.is_empty() { Ok(()) } else { Err(HostError::Invalid(violations)) }
}
