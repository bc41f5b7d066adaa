//! Accepting a new microVM: token, version, quota, place, one durable write.
//! The host is asked right after the write, by a task of its own; the caller
//! does not wait for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::common::v1::{HookMode, Logging};
use model::state::MicrovmState;
use model::{ImageArn, ImageName, MicrovmId, VersionNumber};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::Term;
use super::connectors::ConnectorRef;
use super::memory::{Handle, Memory};
use crate::config::Settings;
use crate::domain::catalog::Launchable;
use crate::domain::idempotency::{TokenUse, Verdict, judge};
use crate::domain::microvm::{IdlePolicy, Intent, Microvm, Payload, Placement, Spec};
use crate::domain::placement::Demand;
use crate::refusal::Refusal;

/// A launch as asked for, checked field by field.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The image.
    pub image: ImageName,
    /// Its version; absent means the newest ACTIVE one.
    pub version: Option<VersionNumber>,
    /// Role the app acts as; may be empty.
    pub execution_role_arn: String,
    /// KMS key as the caller named it; may be empty.
    pub kms_key_identifier: String,
    /// When it sleeps.
    pub idle_policy: Option<IdlePolicy>,
    /// Longest life.
    pub maximum_duration: Duration,
    /// For the run hook; may be empty.
    pub payload: Payload,
    /// Where its logs go.
    pub logging: Option<Logging>,
    /// Ingress connectors by ARN.
    pub ingress: Vec<String>,
    /// Egress connectors by ARN.
    pub egress: Vec<String>,
    /// The customer's connectors among them.
    pub customer_egress: Vec<ConnectorRef>,
    /// Whether the platform's connector to everywhere is among them.
    pub internet_egress: bool,
    /// The caller's token and the digest of the request.
    pub token: Option<TokenUse>,
}

/// What a launch request turned out to be.
enum Admitted {
    /// The same request as before.
    Replay(Arc<Handle>),
    /// A new microVM, in memory, and the right to write its record.
    New(Arc<Handle>, OwnedMutexGuard<i64>),
}

impl Term {
    /// Accepts a microVM; it is PENDING and durable when this returns. With a
    /// token that was used for the same request, returns that microVM.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is left behind.
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
        match self.create(&microvm).await {
            Ok(stored) => *revision = stored,
            Err(refusal) => {
                self.memory().forget(&handle.id, SystemTime::now());
                return Err(refusal);
            }
        }
        drop(revision);
        // Dying on the next line leaves a PENDING record with a placement: the
        // next leader asks the host with the same generation.
        self.memory().announce(&handle);
        self.timers_changed.notify_one();
        tracing::info!(microvm = %handle.id, host = %microvm.placement.host, to = "PENDING", "microVM accepted");
        let (term, launched) = (Arc::clone(&self), Arc::clone(&handle));
        self.spawn(async move { term.drive_launch(launched).await });
        Ok(microvm)
    }

    /// Checks the token, chooses a host and reserves room there, in one instant.
    fn admit(&self, request: RunRequest) -> Result<Admitted, Refusal> {
        let version = self.catalog().resolve(&request.image, request.version);
        let policy = self.egress_policy(&request.customer_egress, request.internet_egress);
        let now = SystemTime::now();
        let mut memory = self.memory();
        if let Some(asked) = request.token
            && let Some((earlier, recorded)) = memory.by_token(&asked.token)
        {
            return match judge(Some(&recorded), &asked) {
                Verdict::Replay => Ok(Admitted::Replay(earlier)),
                Verdict::New | Verdict::Conflict => Err(Refusal::TokenConflict),
            };
        }
        // After the token: a replay does not ask what became of the connectors.
        let policy = policy?;
        let mut microvm = place_new(&memory, self.settings(), request, version, now)?;
        microvm.spec.egress_policy = policy;
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
}

/// Makes the record of a new microVM on the best host.
fn place_new(
    memory: &Memory,
    settings: &Settings,
    request: RunRequest,
    version: Option<Arc<Launchable>>,
    now: SystemTime,
) -> Result<Microvm, Refusal> {
    let image = ImageArn {
        region: settings.region.clone(),
        account: settings.account.clone(),
        name: request.image.clone(),
    };
    let Some(version) = version else {
        return Err(Refusal::NoActiveVersion { image, version: request.version });
    };
    check_payload(&request, &version)?;
    check_quotas(memory, settings, u64::from(version.baseline_mib))?;
    let demand = Demand {
        memory_mib: u64::from(version.baseline_mib),
        engine: version.snapshot.engine.clone(),
        architecture: version.architecture,
        fingerprint: String::new(),
        exclude: Vec::new(),
    };
    let host = memory.fleet.choose(&demand, &version.snapshot.manifest_key, now).map_err(Refusal::NoRoom)?;
    let fingerprint =
        memory.fleet.get(&host).map_or_else(String::new, |host| host.spec.platform_fingerprint.clone());
    Ok(Microvm {
        id: MicrovmId::from_uuid(Uuid::new_v4()),
        spec: Spec {
            image,
            version: version.version,
            snapshot: version.snapshot.clone(),
            hooks: version.hooks,
            baseline_mib: version.baseline_mib,
            // Not the id: who knows an endpoint's name cannot name the microVM.
            endpoint_label: Uuid::new_v4().hyphenated().to_string(),
            execution_role_arn: request.execution_role_arn,
            kms_key_identifier: request.kms_key_identifier,
            idle_policy: request.idle_policy,
            maximum_duration: request.maximum_duration,
            payload: request.payload,
            logging: request.logging,
            ingress: request.ingress,
            egress: request.egress,
            egress_policy: None,
        },
        token: request.token,
        intent: Intent::Live,
        placement: Placement { host, generation: 1, time: now, fingerprint },
        state: MicrovmState::Pending,
        state_reason: String::new(),
        state_time: now,
        start_time: now,
        terminate_time: None,
        observation: 0,
        snapshot: None,
        metering: None,
        last_transition: None,
    })
}

fn check_quotas(memory: &Memory, settings: &Settings, asked: u64) -> Result<(), Refusal> {
    let limit = settings.microvms_max;
    if memory.living() >= limit {
        return Err(Refusal::Quota {
            quota: "microvms",
            limit,
            text: format!("The limit of {limit} MicroVMs is reached."),
        });
    }
    let allocated = memory.allocated_mib();
    match settings.quotas.memory_mib {
        Some(limit) if allocated + asked > limit => Err(Refusal::MemoryQuota { limit, allocated, asked }),
        _ => Ok(()),
    }
}

fn check_payload(request: &RunRequest, version: &Launchable) -> Result<(), Refusal> {
    let run = version.hooks.and_then(|hooks| hooks.run);
    let enabled = run.is_some_and(|hook| hook.mode() == HookMode::Enabled);
    if request.payload.0.is_empty() || enabled {
        return Ok(());
    }
    Err(Refusal::sentence(
        "runHookPayload",
        "The run hook must be enabled in the MicroVM image to pass the run hook payload",
    ))
}
