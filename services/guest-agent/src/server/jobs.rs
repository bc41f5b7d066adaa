//! Requests that may wait, and the few threads that work on them.

use std::io;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use api::guest::v1::{PrepareSnapshotRequest, PrepareSnapshotResponse, StartAppRequest, StartAppResponse};
use guest_link::frame::{Body, Frame};

use super::Shared;
use super::connection::Connection;
use crate::app::StartError;
use crate::{hooks, netlink, ready, stats};

/// Worker threads. The host has at most a wait for readiness, a hook and a reading of
/// usage under way at once.
const WORKERS: usize = 4;

/// Requests that wait for a worker; more are refused.
const QUEUE_MAX: usize = 16;

/// A request and where its answer goes.
pub struct Job {
    pub connection: Arc<Connection>,
    pub exchange: u32,
    pub body: Body,
}

pub struct Jobs {
    queue: SyncSender<Job>,
}

impl Jobs {
    pub fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..WORKERS {
            let (jobs, shared) = (Arc::clone(&jobs), Arc::clone(shared));
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        Ok(job) => work(&shared, job),
                        Err(_) => return,
                    }
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// Hands a request to a worker, or answers that there is no room.
    pub fn put(&self, job: Job) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.queue.try_send(job) {
            job.connection.fail(job.exchange, "too many requests at once", false);
        }
    }
}

/// Why a request has no answer: a sentence, and whether the request was wrong.
type Failed = (String, bool);

fn work(shared: &Arc<Shared>, job: Job) {
    let Job { connection, exchange, body } = job;
    let invalid = |message: &'static str| (message.to_owned(), true);
    let answer = match body {
        Body::StartAppRequest(request) => start_app(shared, &request).map(Body::StartAppResponse),
        Body::AwaitReadyRequest(request) => {
            let settings = &shared.settings;
            let own_ports = [settings.agent_port, settings.relay_port, settings.shell_port];
            let exited = || shared.app.exited().is_some();
            ready::await_ready(&request, &own_ports, exited, || connection.is_retired())
                .map(Body::AwaitReadyResponse)
                .map_err(invalid)
        }
        Body::CallHookRequest(request) => hooks::call(&request).map(Body::CallHookResponse).map_err(invalid),
        Body::PrepareSnapshotRequest(request) => {
            prepare_snapshot(shared, request).map(Body::PrepareSnapshotResponse)
        }
        Body::GetStatsRequest(_) => Ok(Body::GetStatsResponse(stats::read())),
        _ => Err(invalid("the message is not a request")),
    };
    match answer {
        Ok(body) => connection.send(&Frame { exchange, body: Some(body) }),
        Err((message, invalid)) => connection.fail(exchange, &message, invalid),
    }
}

fn start_app(shared: &Arc<Shared>, request: &StartAppRequest) -> Result<StartAppResponse, Failed> {
    if request.all_capabilities {
        shared.extra_modules.load();
    }
    shared.resolver.set_name_servers(&request.name_servers).map_err(|error| (error.to_string(), false))?;
    let reporter = Arc::clone(shared);
    match shared.app.start(request, move |exited| reporter.report_exit(exited)) {
        Ok(pid) => Ok(StartAppResponse { pid }),
        Err(error) => {
            let invalid = matches!(error, StartError::Invalid(_));
            Err((error.to_string(), invalid))
        }
    }
}

/// For a bake: writes everything back, so that no clone has to write it again into a disk
/// of its own. The page cache stays: what the app has read is in the base that all clones
/// share, and what they would have to read again each would hold alone. For a suspend
/// there is nothing to write back: the snapshot holds memory and disk of one moment, dirty
/// pages included, and writing them first would only store them twice and take time.
fn prepare_snapshot(
    shared: &Shared,
    request: PrepareSnapshotRequest,
) -> Result<PrepareSnapshotResponse, Failed> {
    if request.sync {
        nix::unistd::sync();
    }
    // Without the list, connections that lose their peer run into their own time-outs.
    *shared.doomed() = netlink::outside_connections().unwrap_or_default();
    Ok(PrepareSnapshotResponse {})
}
