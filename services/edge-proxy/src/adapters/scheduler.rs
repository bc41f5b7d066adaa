//! The scheduler, through whichever of its replicas leads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::{
    Microvm, MicrovmState, RedeemMicrovmInvitationRequest, RedeemMicrovmInvitationResponse,
    ResumeMicrovmRequest, WatchMicrovmsRequest, WatchMicrovmsResponse,
};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use rpc::{CallBounds, Replicas, Role, TlsIdentity};
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use crate::domain::route::{Route, RouteState};

/// Longest search for one microVM that the follower has not brought yet.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Streams that are opened for it: one may break.
const LOOK_UPS_MAX: usize = 2;
/// Longest wait for an invitation to be redeemed.
const REDEEM: Duration = Duration::from_secs(5);
/// Longest wait for a stream to be opened.
const OPEN_STREAM: Duration = Duration::from_secs(5);

type Resume = Shared<BoxFuture<'static, Result<(), Code>>>;

#[derive(Debug)]
pub struct Scheduler {
    replicas: Replicas,
    /// Wakes under way, one per microVM however many requests wait for it.
    resumes: Mutex<HashMap<Arc<str>, Resume>>,
}

impl Scheduler {
    /// Prepares connections; none is made before it is used.
    pub fn new(identity: &Arc<TlsIdentity>, addresses: &[String]) -> Result<Self, Status> {
        let replicas = Replicas::new(identity, addresses, Role::Scheduler)?;
        Ok(Self { replicas, resumes: Mutex::default() })
    }

    /// Streams every microVM and then every change.
    pub async fn watch(&self) -> Result<Streaming<WatchMicrovmsResponse>, Status> {
        self.open(String::new(), OPEN_STREAM).await
    }

    /// To be called with what ended a stream: the next one is opened elsewhere.
    pub fn leave(&self, status: &Status) {
        self.replicas.leave(status);
    }

    /// Asks for one microVM by id; bounded.
    pub async fn look_up(&self, microvm_id: &str) -> Option<(Uuid, Route)> {
        let search = async {
            for _ in 0..LOOK_UPS_MAX {
                let mut stream = self.open(microvm_id.to_owned(), LOOK_UP).await.ok()?;
                loop {
                    match stream.message().await {
                        Ok(Some(message)) if !message.synced => {
                            if let Some(found) = route(&message) {
                                return Some(found);
                            }
                        }
                        Ok(_) => return None,
                        Err(status) => {
                            self.leave(&status);
                            break;
                        }
                    }
                }
            }
            None
        };
        tokio::time::timeout(LOOK_UP, search).await.ok().flatten()
    }

    /// Has a suspended microVM placed and woken; requests for one microVM share
    /// one call. Waits at most `wait`.
    pub async fn resume(self: &Arc<Self>, microvm_id: &Arc<str>, wait: Duration) -> Result<(), Code> {
        let shared = {
            let mut resumes = self.resumes.lock().unwrap_or_else(PoisonError::into_inner);
            match resumes.get(microvm_id) {
                Some(under_way) => under_way.clone(),
                None => {
                    let (this, id) = (self.clone(), microvm_id.clone());
                    // A task of its own: the wake goes on when the first request for it hangs up.
                    let task = tokio::spawn(async move {
                        let result = this.resume_once(&id, wait).await;
                        this.resumes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                        result
                    });
                    let shared = task.map(|result| result.unwrap_or(Err(Code::Internal))).boxed().shared();
                    resumes.insert(microvm_id.clone(), shared.clone());
                    shared
                }
            }
        };
        tokio::time::timeout(wait, shared).await.unwrap_or(Err(Code::DeadlineExceeded))
    }

    /// Has an invitation redeemed that a browser brought to an endpoint; bounded.
    pub async fn redeem(&self, code: &str, label: Uuid) -> Result<RedeemMicrovmInvitationResponse, Code> {
        let message =
            RedeemMicrovmInvitationRequest { code: code.to_owned(), endpoint_label: label.to_string() };
        let redeemed = self.replicas.call(CallBounds::once(REDEEM), message, |channel, request| {
            let mut client = MicrovmServiceClient::new(channel);
            async move { client.redeem_microvm_invitation(request).await }
        });
        redeemed.await.map_err(|status| status.code())
    }

    async fn resume_once(&self, microvm_id: &str, wait: Duration) -> Result<(), Code> {
        let message = ResumeMicrovmRequest { microvm_id: microvm_id.to_owned() };
        let resumed = self.replicas.call(CallBounds::once(wait), message, |channel, request| {
            let mut client = MicrovmServiceClient::new(channel);
            async move { client.resume_microvm(request).await }
        });
        resumed.await.map(drop).map_err(|status| status.code())
    }

    async fn open(
        &self,
        microvm_id: String,
        wait: Duration,
    ) -> Result<Streaming<WatchMicrovmsResponse>, Status> {
        let message = WatchMicrovmsRequest { microvm_id };
        let opened = self.replicas.call(CallBounds::once(wait), message, |channel, request| {
            let mut client = MicrovmServiceClient::new(channel);
            async move { client.watch_microvms(request).await }
        });
        opened.await
    }
}

/// Label and route of a message about a microVM; `None` when it names none.
pub fn route(message: &WatchMicrovmsResponse) -> Option<(Uuid, Route)> {
    let microvm = message.microvm.as_ref()?;
    let label = label(microvm)?;
    let state = match microvm.state() {
        MicrovmState::Pending => RouteState::Pending,
        MicrovmState::Running | MicrovmState::Suspending => RouteState::Running,
        MicrovmState::Suspended => RouteState::Suspended,
        MicrovmState::Terminating | MicrovmState::Terminated => RouteState::Ended,
        MicrovmState::Unspecified => return None,
    };
    let route = Route {
        microvm_id: microvm.microvm_id.as_str().into(),
        image: microvm.image_name.as_str().into(),
        state,
        generation: microvm.generation,
        host: microvm.host_id.as_str().into(),
        tunnel_address: (!message.tunnel_address.is_empty()).then(|| message.tunnel_address.as_str().into()),
        wake: microvm.idle_policy.as_ref().is_some_and(|policy| policy.auto_resume_enabled),
        token_revocations: microvm.token_revocations,
    };
    Some((label, route))
}

/// The label of a microVM's endpoint; a record without one (deleted) is known by its id.
pub(crate) fn label(microvm: &Microvm) -> Option<Uuid> {
    let text = match microvm.endpoint.split_once('.') {
        Some((label, _)) => label,
        None => microvm.microvm_id.strip_prefix("microvm-")?,
    };
    text.parse().ok()
}
