//! What a simulated host answers over gRPC.

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::host_agent_service_server::HostAgentService;
use api::hostagent::v1::*;
use api::microvm::v1::TransitionCause;
use futures::stream::BoxStream;
use host_agent::simulated::{Cause, HostError, Spec, status};
use rpc::Role;
use tonic::{Request, Response, Status};

use super::agent::{Agent, Outcome};
use super::s3;

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = BoxStream<'static, Result<T, Status>>;

pub struct Service(pub Arc<Agent>);

impl Service {
    fn spec(&self, spec: Option<MicrovmSpec>) -> Result<Spec, Status> {
        Spec::from_command(spec, self.0.now()).map_err(|found| status(&HostError::Invalid(found)))
    }

    /// A caller that hangs up does not stop what it asked for.
    async fn detached(&self, work: impl Future<Output = Outcome> + Send + 'static) -> Outcome {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.0.process.spawn(async move {
            let _ = sender.send(work.await);
        });
        receiver.await.unwrap_or_else(|_| Err(HostError::Internal("the command died".to_owned())))
    }
}

fn unused() -> Status {
    Status::unimplemented("not in a simulation")
}

#[tonic::async_trait]
impl HostAgentService for Service {
    type BakeStream = Messages<BakeResponse>;
    type WatchStream = Messages<WatchResponse>;
    type FollowLogStream = Messages<FollowLogResponse>;

    async fn bake(&self, _: Request<BakeRequest>) -> Answer<Self::BakeStream> {
        Err(unused())
    }

    async fn launch(&self, request: Request<LaunchRequest>) -> Answer<LaunchResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let LaunchRequest { generation, spec, lease } = request.into_inner();
        self.0.check_lease(lease).map_err(|failure| status(&failure))?;
        let (spec, agent) = (self.spec(spec)?, Arc::clone(&self.0));
        let launched = self.detached(async move { agent.launch_microvm(spec, generation).await }).await;
        let observed = launched.map_err(|failure| status(&failure))?;
        Ok(Response::new(LaunchResponse { observed: Some(observed) }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Answer<SuspendResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let (request, agent) = (request.into_inner(), Arc::clone(&self.0));
        let drain = request.cause() == TransitionCause::Drain;
        let cause = if drain { Cause::drain() } else { Cause::requested() };
        let work = async move { agent.suspend_microvm(&request.microvm_id, request.generation, cause).await };
        let observed = self.detached(work).await.map_err(|failure| status(&failure))?;
        Ok(Response::new(SuspendResponse { observed: Some(observed) }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Answer<ResumeResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let ResumeRequest { generation, spec, snapshot, lease } = request.into_inner();
        self.0.check_lease(lease).map_err(|failure| status(&failure))?;
        let (spec, agent) = (self.spec(spec)?, Arc::clone(&self.0));
        let work = async move { agent.resume_microvm(spec, generation, snapshot).await };
        let observed = self.detached(work).await.map_err(|failure| status(&failure))?;
        Ok(Response::new(ResumeResponse { observed: Some(observed) }))
    }

    async fn checkpoint(&self, request: Request<CheckpointRequest>) -> Answer<CheckpointResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let CheckpointRequest { microvm_id, generation } = request.into_inner();
        let agent = Arc::clone(&self.0);
        let work = async move { agent.checkpoint_microvm(&microvm_id, generation).await };
        let observed = self.detached(work).await.map_err(|failure| status(&failure))?;
        Ok(Response::new(CheckpointResponse { observed: Some(observed) }))
    }

    async fn get_idleness(&self, _: Request<GetIdlenessRequest>) -> Answer<GetIdlenessResponse> {
        Err(unused())
    }

    async fn keep_awake(&self, _: Request<KeepAwakeRequest>) -> Answer<KeepAwakeResponse> {
        Err(unused())
    }

    async fn terminate(&self, request: Request<TerminateRequest>) -> Answer<TerminateResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let TerminateRequest { microvm_id, generation, reason, discard, asleep_with } = request.into_inner();
        let agent = Arc::clone(&self.0);
        let work = async move {
            match asleep_with {
                Some(named) => agent.give_up_microvm(&microvm_id, generation, named).await,
                None => agent.terminate_microvm(&microvm_id, generation, (reason, discard)).await,
            }
        };
        let observed = self.detached(work).await.map_err(|failure| status(&failure))?;
        Ok(Response::new(TerminateResponse { observed: Some(observed) }))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        Err(unused())
    }

    async fn follow_log(&self, _: Request<FollowLogRequest>) -> Answer<Self::FollowLogStream> {
        Err(unused())
    }

    async fn evict_image(&self, _: Request<EvictImageRequest>) -> Answer<EvictImageResponse> {
        Err(unused())
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let listed = s3::list(&self.0.world, &self.0.process).await;
        let microvm_ids = listed.map_err(|failure| status(&failure))?;
        Ok(Response::new(ListSnapshotsResponse { microvm_ids, next_page_token: String::new() }))
    }

    async fn remove_snapshots(
        &self,
        request: Request<RemoveSnapshotsRequest>,
    ) -> Answer<RemoveSnapshotsResponse> {
        rpc::authorize(&request, &[Role::Scheduler])?;
        let RemoveSnapshotsRequest { microvm_id, minimum_age } = request.into_inner();
        let age = minimum_age.and_then(|age| api::duration(&age).ok()).unwrap_or(Duration::ZERO);
        if self.0.get(&microvm_id).is_some() {
            return Err(status(&HostError::Conflict(format!("the host holds {microvm_id}"))));
        }
        let removed = s3::remove_all(&self.0.world, &self.0.process, &microvm_id, age).await;
        let removed_objects = removed.map_err(|failure| status(&failure))?;
        Ok(Response::new(RemoveSnapshotsResponse { removed_objects }))
    }
}
