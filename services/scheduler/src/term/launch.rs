//! Launches: accepted with one durable write, then carried out by a task of its
//! own that asks the host; the caller does not wait for that.
//!
//! ```text
//! accept: token, version, quotas, place, write PENDING -> answer
//! launch: ask the host -> RUNNING, or another host, or TERMINATED with a reason
//! ```
//!
//! A host treats launches of one generation as one request, so asking again is
//! always safe with the same generation and never with another.

use std::sync::Arc;
use std::time::Duration;

use api::common::v1::Logging;
use api::hostagent::v1::LaunchRequest;
use model::state::MicrovmState;
use model::{ConnectorArn, ImageName, VersionNumber};
use tokio::sync::OwnedMutexGuard;
use tonic::Status;

use super::memory::Handle;
use super::place::{PLACES_MAX, place_new};
use super::{BACKOFF, Term};
use crate::adapters::agents::{ErrorClass, classify};
use crate::adapters::microvms as codec;
use crate::domain::idempotency::{TokenDecision, TokenUse, decide};
use crate::domain::microvm::{IdlePolicy, Intent, Microvm, Payload};
use crate::refusal::Refusal;

/// Longest wait for the answer of a host that is asked after the launch's time: one that runs the microVM says so at once.
const LATE_ASK: Duration = Duration::from_secs(10);
/// How often it is asked then.
const LATE_ASKS_MAX: u32 = 2;

/// Longest wait until launches go by the records of an image that is being deleted.
const UNLAUNCHABLE_WAIT: Duration = Duration::from_secs(2);

/// A launch as asked for, checked field by field.
#[derive(Debug, Clone)]
pub struct RunRequest {
    pub image: ImageName,
    /// Its version; absent means the newest ACTIVE one.
    pub version: Option<VersionNumber>,
    /// Role the app acts as; may be empty.
    pub execution_role_arn: String,
    /// KMS key as the caller named it; may be empty.
    pub kms_key_identifier: String,
    /// When it sleeps.
    pub idle_policy: Option<IdlePolicy>,
    pub maximum_duration: Duration,
    pub checkpoint_interval: Option<Duration>,
    /// For the run hook; may be empty.
    pub payload: Payload,
    pub logging: Option<Logging>,
    pub ingress: Vec<ConnectorArn>,
    pub egress: Vec<ConnectorArn>,
    pub token: Option<TokenUse>,
}

/// What a launch request turned out to be.
enum Admitted {
    /// The same request as before.
    Replay(Arc<Handle>),
    /// A new microVM, in memory, and the right to write its record.
    New(Arc<Handle>, OwnedMutexGuard<i64>),
}

/// What became of one attempt to launch.
enum Attempt {
    Done,
    Again(Status),
    Elsewhere(Status),
    Failed(String),
}

impl Term {
    /// Accepts a microVM; it is PENDING and durable when this returns. With a
    /// token that was used for the same request, returns that microVM.
    pub async fn run(self: &Arc<Self>, request: RunRequest) -> Result<Arc<Microvm>, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move { term.accept(request).await }).await
    }

    async fn accept(self: Arc<Self>, request: RunRequest) -> Result<Arc<Microvm>, Refusal> {
        let (handle, mut revision) = match self.admit(request)? {
            Admitted::Replay(earlier) => return self.replay(&earlier).await,
            Admitted::New(handle, revision) => (handle, revision),
        };
        let microvm = handle.current();
        // Whoever deletes a version asks for its microVMs once no launch takes it any more (`until_unlaunchable`): this one is
        // seen by now, or it sees that the version goes.
        let (image, version) = (&microvm.spec.image, Some(microvm.spec.version));
        if self.catalog().resolve(&image.name, version).is_none() {
            self.memory().forget(&handle.id, self.now());
            return Err(Refusal::NoActiveVersion { image: image.clone(), version });
        }
        match self.create(&microvm).await {
            Ok(stored) => *revision = stored,
            Err(refusal) => {
                self.memory().forget(&handle.id, self.now());
                return Err(refusal);
            }
        }
        drop(revision);
        // When the scheduler dies here, the caller has no answer but the record is
        // PENDING with a placement: the next leader asks the host with the same
        // generation, and the caller's retry with its client token finds the microVM.
        self.memory().announce(&handle);
        self.timers_changed.notify_one();
        tracing::info!(microvm = %handle.id, host = %microvm.placement.host, to = "PENDING", "microVM accepted");
        let (term, launched) = (Arc::clone(&self), Arc::clone(&handle));
        self.spawn(async move { term.launch(launched).await });
        Ok(microvm)
    }

    /// Returns when launches take nothing of an image, or of one version, any more: its records say that it goes.
    pub(crate) async fn until_unlaunchable(
        &self,
        image: &ImageName,
        version: Option<VersionNumber>,
    ) -> Result<(), Refusal> {
        let gone = async {
            loop {
                let changed = self.catalog_changed.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                if self.catalog().resolve(image, version).is_none() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(UNLAUNCHABLE_WAIT, gone).await.map_err(|_| {
            Refusal::Store(format!(
                "the records of the image {image} do not say yet that it cannot be launched"
            ))
        })
    }

    /// Checks the token, chooses a host and reserves room there, in one instant.
    fn admit(&self, request: RunRequest) -> Result<Admitted, Refusal> {
        let version = self.catalog().resolve(&request.image, request.version);
        let policy = self.egress_policy(&request.egress);
        let now = self.now();
        let mut memory = self.memory();
        if let Some(asked) = request.token
            && let Some((earlier, recorded)) = memory.by_token(&asked.token)
        {
            return match decide(Some(&recorded), &asked) {
                TokenDecision::Replay => Ok(Admitted::Replay(earlier)),
                TokenDecision::New | TokenDecision::Conflict => Err(Refusal::TokenConflict),
            };
        }
        // After the token: a replay does not ask what became of the connectors.
        let policy = policy?;
        self.refuse_when_full()?;
        let microvm = place_new(&memory, &self.context, request, (version, policy), now)?;
        let handle = memory.insert(Arc::new(microvm), 0, now);
        // Taken before anybody else can see it: the first to write it is us.
        let revision = Arc::clone(&handle.revision).try_lock_owned().expect("nobody has seen the handle yet");
        Ok(Admitted::New(handle, revision))
    }

    /// The same request again: its microVM, once its record is durable.
    async fn replay(&self, handle: &Handle) -> Result<Arc<Microvm>, Refusal> {
        drop(handle.revision.lock().await);
        match self.memory().get(&handle.id) {
            Some(handle) => Ok(handle.current()),
            None => Err(Refusal::Store("the first attempt was not recorded".to_owned())),
        }
    }

    /// Launches a PENDING microVM, or ends it with the reason.
    #[tracing::instrument(skip_all, fields(microvm = %handle.id))]
    pub(crate) async fn launch(self: Arc<Self>, handle: Arc<Handle>) {
        let clock = &self.context.clock;
        let began = clock.instant();
        let launched = tokio::select! {
            biased;
            launched = self.launch_somewhere(&handle) => launched,
            // The end takes over and tells the host.
            () = handle.ending.cancelled() => return,
        };
        let microvm = handle.current();
        match launched {
            Ok(()) => {
                self.context.metrics.launch("running", clock.instant() - began);
                tracing::debug!(host = %microvm.placement.host, "launched");
            }
            Err(reason) => {
                self.context.metrics.launch("failed", clock.instant() - began);
                // Without a recorded end the launch is the next leader's, which goes on with this generation.
                if self.record_unasked_end(None, &handle, &reason).await {
                    self.discard(&microvm.placement.host, &microvm).await;
                }
            }
        }
    }

    async fn launch_somewhere(self: &Arc<Self>, handle: &Arc<Handle>) -> Result<(), String> {
        let _turn = handle.operate().await.map_err(|refusal| refusal.to_string())?;
        let mut backoff = BACKOFF;
        let mut tried = Vec::new();
        let (mut in_time, mut late) = (false, 0);
        loop {
            let microvm = handle.current();
            if microvm.state != MicrovmState::Pending || microvm.intent == Intent::End {
                return Ok(());
            }
            let timeout = Duration::from_secs(self.config().timeouts.launch_seconds);
            let spent = self.now().duration_since(microvm.placement.time).unwrap_or_default();
            // When nobody led for longer than a launch may take, its time is over before this leader has asked once, and it
            // may run long since: the host is asked first. One that is away is waited for until it is given up.
            let left = timeout.checked_sub(spent);
            if left.is_some() {
                in_time = true;
            } else if in_time || late == LATE_ASKS_MAX || self.is_lost(&microvm.placement.host) {
                return Err("The launch did not finish in time.".to_owned());
            } else if self.grpc_address(&microvm.placement.host).is_some() {
                late += 1;
            }
            match self.launch_on_host(&microvm, left.unwrap_or(LATE_ASK)).await {
                Attempt::Done => return Ok(()),
                Attempt::Failed(reason) => return Err(reason),
                Attempt::Again(status) => {
                    tracing::debug!(host = %microvm.placement.host, %status, "launch not answered yet");
                    backoff.pause().await;
                }
                Attempt::Elsewhere(status) => {
                    tried.push(microvm.placement.host.clone());
                    if tried.len() >= PLACES_MAX {
                        return Err(reason_of(&status));
                    }
                    self.move_elsewhere(handle, &tried).await.map_err(|refusal| refusal.to_string())?;
                }
            }
        }
    }

    async fn launch_on_host(self: &Arc<Self>, microvm: &Microvm, timeout: Duration) -> Attempt {
        let host = &microvm.placement.host;
        let Some(address) = self.grpc_address(host) else {
            return Attempt::Again(Status::unavailable(format!("host {host} is away")));
        };
        let request = LaunchRequest {
            generation: microvm.placement.generation,
            spec: Some(codec::host_spec(microvm, self.now())),
            lease: self.host_lease(host),
        };
        let answer = match self.context.agents.client(host, &address) {
            Ok(mut client) => self.answer_of(host, timeout, client.launch(rpc::request(request))).await,
            Err(status) => Err(status),
        };
        let status = match answer {
            Ok(launched) => match self.observe_answer(host, launched.observed).await {
                Ok(()) => return Attempt::Done,
                Err(refusal) => return Attempt::Failed(refusal.to_string()),
            },
            Err(status) => status,
        };
        match classify(&status) {
            ErrorClass::Again => Attempt::Again(status),
            ErrorClass::Full => Attempt::Elsewhere(status),
            ErrorClass::NotHere | ErrorClass::Final => Attempt::Failed(reason_of(&status)),
        }
    }
}

/// What a record says of a host's refusal. Damage is said by its code too: who reads the record has to tell it from a
/// host that was busy.
fn reason_of(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::DataLoss => format!("DATA_LOSS: {}", status.message()),
        _ => status.message().to_owned(),
    }
}
