//! `HostAgentService`: decode, one domain call, encode.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::host_agent_service_server::HostAgentService;
use api::hostagent::v1::{
    BakeRequest, BakeResponse, CheckpointRequest, CheckpointResponse, EvictImageRequest, EvictImageResponse,
    FollowLogRequest, FollowLogResponse, GetIdlenessRequest, GetIdlenessResponse, KeepAwakeRequest,
    KeepAwakeResponse, LaunchRequest, LaunchResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    MicrovmSpec, RemoveSnapshotsRequest, RemoveSnapshotsResponse, ResumeRequest, ResumeResponse,
    SuspendRequest, SuspendResponse, TerminateRequest, TerminateResponse, WatchRequest, WatchResponse,
};
use futures::{Stream, StreamExt as _};
use model::limits::{KEEP_AWAKE_MAX, KEEP_AWAKE_MIN};
use rpc::Role;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::log_stream;
use super::status::status;
use crate::adapters::remote_snapshots;
use crate::bake::Bakes;
use crate::domain::{HostError, Spec};
use crate::host::Host;
use crate::microvm::EndOrder;
use crate::microvms::Microvms;

/// Messages of a stream that may wait for a slow reader.
const STREAM_BUFFER: usize = 16;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub struct HostAgent {
    host: Arc<Host>,
    microvms: Arc<Microvms>,
    bakes: Arc<Bakes>,
}

impl HostAgent {
    pub fn new(host: Arc<Host>, microvms: Arc<Microvms>, bakes: Arc<Bakes>) -> Self {
        Self { host, microvms, bakes }
    }
}

#[tonic::async_trait]
impl HostAgentService for HostAgent {
    type BakeStream = BoxStream<BakeResponse>;
    type WatchStream = BoxStream<WatchResponse>;
    type FollowLogStream = BoxStream<FollowLogResponse>;

    async fn bake(&self, request: Request<BakeRequest>) -> Result<Response<Self::BakeStream>, Status> {
        rpc::authorize(&request, &[Role::ImageBuilder])?;
        let stream = self.bakes.start(request.into_inner()).map_err(|failure| status(&failure))?;
        Ok(Response::new(Box::pin(stream.map(|told| told.map_err(|failure| status(&failure))))))
    }

    async fn launch(&self, request: Request<LaunchRequest>) -> Result<Response<LaunchResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let microvms = Arc::clone(&self.microvms);
        self.host.check_lease(request.lease).map_err(|failure| status(&failure))?;
        let spec = placed(&self.host, request.spec, request.generation)?;
        let observed = detached(async move { microvms.launch(spec, request.generation).await }).await?;
        Ok(Response::new(LaunchResponse { observed: Some(observed) }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let microvms = Arc::clone(&self.microvms);
        let cause = request.cause();
        let suspended = async move { microvms.suspend(&request.microvm_id, request.generation, cause).await };
        let observed = detached(suspended).await?;
        Ok(Response::new(SuspendResponse { observed: Some(observed) }))
    }

    async fn get_idleness(
        &self,
        request: Request<GetIdlenessRequest>,
    ) -> Result<Response<GetIdlenessResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let idleness = self.microvms.idleness(&request.microvm_id, request.generation);
        Ok(Response::new(GetIdlenessResponse { idleness: idleness.map_err(|failure| status(&failure))? }))
    }

    async fn keep_awake(
        &self,
        request: Request<KeepAwakeRequest>,
    ) -> Result<Response<KeepAwakeResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let duration = lease(request.duration.as_ref())?;
        let microvms = Arc::clone(&self.microvms);
        let kept =
            async move { microvms.keep_awake(&request.microvm_id, request.generation, duration).await };
        Ok(Response::new(KeepAwakeResponse { idleness: detached(kept).await? }))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let CheckpointRequest { microvm_id, generation } = request.into_inner();
        let microvms = Arc::clone(&self.microvms);
        let made = async move { microvms.checkpoint(&microvm_id, generation).await };
        Ok(Response::new(CheckpointResponse { observed: Some(detached(made).await?) }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let microvms = Arc::clone(&self.microvms);
        let spec = placed(&self.host, request.spec, request.generation)?;
        // A caller that hangs up before its turn has come leaves the queue.
        let turn = microvms.turn_to_wake(&spec).await.map_err(|failure| status(&failure))?;
        // After the wait, which may have outlived the lease.
        self.host.check_lease(request.lease).map_err(|failure| status(&failure))?;
        let woken = async move { microvms.resume(spec, request.generation, request.snapshot, turn).await };
        let observed = detached(woken).await?;
        Ok(Response::new(ResumeResponse { observed: Some(observed) }))
    }

    async fn terminate(
        &self,
        request: Request<TerminateRequest>,
    ) -> Result<Response<TerminateResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let microvms = Arc::clone(&self.microvms);
        let TerminateRequest { microvm_id, generation, reason, discard, asleep_with } = request;
        let ended = async move {
            match asleep_with {
                Some(named) => microvms.give_up(&microvm_id, generation, named).await,
                None => microvms.terminate(&microvm_id, generation, EndOrder { reason, discard }).await,
            }
        };
        let observed = detached(ended).await?;
        Ok(Response::new(TerminateResponse { observed: Some(observed) }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        rpc::authorize(&request, &[Role::Scheduler, Role::Admin])?;
        let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(watch(Arc::clone(&self.host), Arc::clone(&self.microvms), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn follow_log(
        &self,
        request: Request<FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        rpc::authorize(&request, &[Role::Scheduler, Role::Admin])?;
        let stream = log_stream::follow(&self.host, &self.microvms, request.into_inner())
            .map_err(|failure| status(&failure))?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn evict_image(
        &self,
        request: Request<EvictImageRequest>,
    ) -> Result<Response<EvictImageResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler, Role::ImageBuilder])?;
        let cache = self.host.image_snapshots.clone();
        let key = request.into_inner().manifest_key;
        crate::adapters::files::blocking(move || cache.evict(&key))
            .await
            .map_err(|failure| status(&failure))?;
        self.host.ahead.forget_evicted(&self.host).await;
        self.host.changed();
        Ok(Response::new(EvictImageResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let ListSnapshotsRequest { page_size, page_token } = request.into_inner();
        let count = match usize::try_from(page_size) {
            Ok(0) => remote_snapshots::PAGE_MAX,
            Ok(count) if count <= remote_snapshots::PAGE_MAX => count,
            _ => return Err(invalid("page_size", format!("must be at most {}", remote_snapshots::PAGE_MAX))),
        };
        let token = (!page_token.is_empty()).then_some(page_token);
        let listed = remote_snapshots::list(&self.host.store, self.host.bucket(), token, count).await;
        let (ids, next) = listed.map_err(|failure| status(&failure))?;
        Ok(Response::new(ListSnapshotsResponse {
            microvm_ids: ids.iter().map(ToString::to_string).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn remove_snapshots(
        &self,
        request: Request<RemoveSnapshotsRequest>,
    ) -> Result<Response<RemoveSnapshotsResponse>, Status> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let RemoveSnapshotsRequest { microvm_id, minimum_age } = request.into_inner();
        let id =
            microvm_id.parse().map_err(|error: model::IdError| invalid("microvm_id", error.to_string()))?;
        let age = match &minimum_age {
            None => Duration::ZERO,
            Some(age) => api::duration(age).map_err(|error| invalid("minimum_age", error.to_string()))?,
        };
        if self.microvms.get(&microvm_id).is_some() {
            return Err(status(&HostError::Conflict(format!("the host holds {microvm_id}"))));
        }
        let host = Arc::clone(&self.host);
        let removing = async move {
            remote_snapshots::remove(&host.store, host.bucket(), &id, age, host.clock.now()).await
        };
        Ok(Response::new(RemoveSnapshotsResponse { removed_objects: detached(removing).await? }))
    }
}

fn invalid(field: &str, rule: String) -> Status {
    status(&HostError::Invalid(vec![(field.to_owned(), rule)]))
}

/// The spec of a command and its generation, checked together so that one answer names all that is wrong.
fn placed(host: &Host, spec: Option<MicrovmSpec>, generation: u64) -> Result<Spec, Status> {
    let spec = Spec::from_command(spec, host.steady.now());
    let missing = (generation == 0).then(|| ("generation".to_owned(), "must be at least 1".to_owned()));
    let violations = match (spec, missing) {
        (Ok(spec), None) => return Ok(spec),
        (spec, missing) => missing.into_iter().chain(spec.err().unwrap_or_default()).collect(),
    };
    Err(status(&HostError::Invalid(violations)))
}

/// How long a keep-awake lease is to last; `None` when it is to be given up.
fn lease(duration: Option<&prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let Some(duration) = duration else { return Ok(None) };
    let bounds = KEEP_AWAKE_MIN..=KEEP_AWAKE_MAX;
    match api::duration(duration).ok().filter(|duration| bounds.contains(duration)) {
        Some(duration) => Ok(Some(duration)),
        None => {
            let rule = format!("must be {} to {} s", KEEP_AWAKE_MIN.as_secs(), KEEP_AWAKE_MAX.as_secs());
            Err(invalid("duration", rule))
        }
    }
}

/// A caller that hangs up does not stop what it asked for: commands are
/// idempotent, and half of one must never be left.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, HostError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(|failure| status(&failure)),
        Err(error) => Err(status(&HostError::Internal(format!("the command died: {error}")))),
    }
}

/// Everything held, a mark, then every change, until the reader is gone.
async fn watch(
    host: Arc<Host>,
    microvms: Arc<Microvms>,
    sender: mpsc::Sender<Result<WatchResponse, Status>>,
) {
    let mut changes = host.changes.subscribe();
    let mut sent: HashMap<String, (u64, u64)> = HashMap::new();
    let mut synced = false;
    loop {
        changes.mark_unchanged();
        let all = microvms.observed();
        sent.retain(|id, _| all.iter().any(|observed| observed.microvm_id == *id));
        for observed in all {
            let number = (observed.generation, observed.observation);
            if sent.insert(observed.microvm_id.clone(), number) == Some(number) {
                continue;
            }
            if sender.send(Ok(WatchResponse { observed: Some(observed), synced: false })).await.is_err() {
                return;
            }
        }
        if !synced {
            synced = true;
            if sender.send(Ok(WatchResponse { observed: None, synced: true })).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}
