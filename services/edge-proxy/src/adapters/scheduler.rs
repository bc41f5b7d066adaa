//! The scheduler, through whichever of its replicas leads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::{
    Microvm, MicrovmState, ResumeMicrovmRequest, WatchMicrovmsRequest, WatchMicrovmsResponse,
};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use rpc::{Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use crate::domain::route::{Route, RouteState};

/// Longest search for one microVM that the follower has not brought yet.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Longest wait for a stream to be opened.
const OPEN_STREAM: Duration = Duration::from_secs(5);

type Resume = Shared<BoxFuture<'static, Result<(), Code>>>;

#[derive(Debug)]
pub struct Scheduler {
    replicas: Vec<MicrovmServiceClient<Channel>>,
    /// The replica that answered last.
    current: AtomicUsize,
    /// Wakes under way, one per microVM however many requests wait for it.
    resumes: Mutex<HashMap<Arc<str>, Resume>>,
}

impl Scheduler {
    /// Prepares connections; none is made before it is used.
    pub fn new(identity: &TlsIdentity, addresses: &[String]) -> Result<Self, Status> {
        let replica = |address: &String| {
            rpc::channel(identity, address, Role::Scheduler).map(MicrovmServiceClient::new)
        };
        let replicas = addresses.iter().map(replica).collect::<Result<_, _>>()?;
        Ok(Self { replicas, current: AtomicUsize::new(0), resumes: Mutex::default() })
    }

    /// Streams every microVM and then every change, from the replica that
    /// answered last. An error moves on to the next replica for the next call.
    pub async fn watch(&self) -> Result<Streaming<WatchMicrovmsResponse>, Status> {
        let opened = self.watch_one(String::new());
        let opened = tokio::time::timeout(OPEN_STREAM, opened).await;
        let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no stream in time")));
        if opened.is_err() {
            self.next_replica();
        }
        opened
    }

    /// Moves on to the next replica.
    pub fn next_replica(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for one microVM by id; bounded.
    pub async fn look_up(&self, microvm_id: &str) -> Option<(Uuid, Route)> {
        let search = async {
            for _ in 0..self.replicas.len() {
                match self.watch_one(microvm_id.to_owned()).await {
                    Ok(mut stream) => {
                        while let Ok(Some(message)) = stream.message().await {
                            if message.synced {
                                return None;
                            }
                            if let Some(found) = route(&message) {
                                return Some(found);
                            }
                        }
                    }
                    Err(status) if status.code() == Code::Unavailable => {}
                    Err(_) => return None,
                }
                self.next_replica();
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
                    // A task of its own: the wake goes on when the first request
                    // for it hangs up.
                    let task = tokio::spawn(async move {
                        let result = tokio::time::timeout(wait, this.resume_once(&id)).await;
                        this.resumes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                        result.unwrap_or(Err(Code::DeadlineExceeded))
                    });
                    let shared = task.map(|result| result.unwrap_or(Err(Code::Internal))).boxed().shared();
                    resumes.insert(microvm_id.clone(), shared.clone());
                    shared
                }
            }
        };
        tokio::time::timeout(wait, shared).await.unwrap_or(Err(Code::DeadlineExceeded))
    }

    async fn resume_once(&self, microvm_id: &str) -> Result<(), Code> {
        let mut code = Code::Unavailable;
        for _ in 0..self.replicas.len() {
            let request = rpc::request(ResumeMicrovmRequest { microvm_id: microvm_id.to_owned() });
            match self.replica().resume_microvm(request).await {
                Ok(_) => return Ok(()),
                Err(status) => code = status.code(),
            }
            if code != Code::Unavailable {
                break;
            }
            self.next_replica();
        }
        Err(code)
    }

    async fn watch_one(&self, microvm_id: String) -> Result<Streaming<WatchMicrovmsResponse>, Status> {
        let request = rpc::request(WatchMicrovmsRequest { microvm_id });
        Ok(self.replica().watch_microvms(request).await?.into_inner())
    }

    fn replica(&self) -> MicrovmServiceClient<Channel> {
        let index = self.current.load(Ordering::Relaxed) % self.replicas.len();
        self.replicas[index].clone()
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
        state,
        generation: microvm.generation,
        tunnel_address: (!message.tunnel_address.is_empty()).then(|| message.tunnel_address.as_str().into()),
        wake: microvm.idle_policy.as_ref().is_some_and(|policy| policy.auto_resume_enabled),
    };
    Some((label, route))
}

/// The label of a microVM's endpoint; a record without one (deleted) is known by
/// its id.
pub(crate) fn label(microvm: &Microvm) -> Option<Uuid> {
    let text = match microvm.endpoint.split_once('.') {
        Some((label, _)) => label,
        None => microvm.microvm_id.strip_prefix("microvm-")?,
    };
    text.parse().ok()
}
