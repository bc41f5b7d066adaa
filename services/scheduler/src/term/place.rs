//! Which host a microVM is placed on, a new one and one that has to move, and which one bakes. The choice itself is
//! [`crate::domain::placement`]; here it meets records, quotas and the hosts as they are now.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::common::v1::{Architecture, HookMode};
use api::host::v1::HostSpec;
use api::hostagent::v1::EgressPolicy;
use api::image::v1::SnapshotRef;
use model::state::MicrovmState;
use model::{HostId, ImageArn, MicrovmId};

use super::launch::RunRequest;
use super::memory::{Handle, Memory};
use super::{Context, Term};
use crate::config::Config;
use crate::domain::catalog::Launchable;
use crate::domain::microvm::{Intent, Microvm, Placement, Spec};
use crate::domain::observation::RecordChange;
use crate::domain::placement::{Demand, DiskDemand};
use crate::refusal::Refusal;

/// Hosts a launch or wake tries before it gives up for lack of room.
pub(crate) const PLACES_MAX: usize = 3;

impl Term {
    /// Places a microVM on another host, durably, with the next generation. One that has woken by itself meanwhile stays where
    /// it is: its record is returned as it was.
    pub(crate) async fn move_elsewhere(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        exclude: &[HostId],
    ) -> Result<Arc<Microvm>, Refusal> {
        let microvm = handle.current();
        let now = self.now();
        // A snapshot of a running app starts only on the platform it was taken on;
        // a version's own snapshot says what it needs by its engine.
        let slept = microvm.snapshot.is_some();
        let demand = Demand {
            memory_mib: u64::from(microvm.spec.baseline_mib),
            disk: disk_demand(self.config(), &microvm.spec.snapshot),
            engine: microvm.spec.snapshot.engine.clone(),
            architecture: Architecture::Unspecified,
            fingerprint: if slept { microvm.placement.fingerprint.clone() } else { String::new() },
            exclude: exclude.to_vec(),
        };
        let key = &microvm.spec.snapshot.manifest_key;
        let (host, fingerprint) = choose(&self.memory(), &demand, key, now)?;
        let from = microvm.placement.clone();
        // A host wakes what it holds without asking anybody. When the scheduler dies after this, the record names a host that
        // holds nothing: it is placed again by the next wake, there or elsewhere.
        let fenced = slept && self.is_fenced(&from.host, now);
        if slept && !fenced && !self.have_given_up(&microvm).await? {
            return Ok(microvm);
        }
        // When the scheduler dies after this write and before it asks the new host, the record names a host
        // that has never heard of the microVM. The next launch or wake asks that host with this generation;
        // the old host is told to drop its copy when it next reports it.
        let (moved, _) = self
            .update_without(fenced.then_some(&from.host), handle, |record| {
                if record.placement != from {
                    return Ok(RecordChange::None);
                }
                record.place(host.clone(), fingerprint.clone(), now);
                Ok(RecordChange::Durable)
            })
            .await?;
        if !slept {
            let term = Arc::clone(self);
            self.spawn(async move { term.discard(&from.host, &microvm).await });
        }
        Ok(moved)
    }

    /// Reserves a host for a bake.
    pub fn place_bake(
        &self,
        build_id: &str,
        demand: &Demand,
        reservation: Duration,
    ) -> Result<HostSpec, Refusal> {
        let mut memory = self.memory();
        let now = self.now();
        let host = memory.hosts.place_bake(build_id, demand, reservation, now).map_err(Refusal::NoRoom)?;
        let placed = memory.hosts.get(&host).ok_or_else(|| Refusal::HostNotFound(host.clone()))?;
        Ok(HostSpec { host_id: host.to_string(), ..placed.spec.clone() })
    }

    pub fn release_bake(&self, build_id: &str) {
        self.memory().hosts.release_bake(build_id);
    }
}

/// Makes the record of a new microVM on the best host.
pub(crate) fn place_new(
    memory: &Memory,
    context: &Context,
    request: RunRequest,
    (version, egress_policy): (Option<Arc<Launchable>>, Option<EgressPolicy>),
    now: SystemTime,
) -> Result<Microvm, Refusal> {
    let config = &*context.config;
    let image = ImageArn {
        region: config.region.clone(),
        account: config.account.clone(),
        name: request.image.clone(),
    };
    let Some(version) = version else {
        return Err(Refusal::NoActiveVersion { image, version: request.version });
    };
    check_payload(&request, &version)?;
    check_quotas(memory, config, u64::from(version.baseline_mib))?;
    let demand = Demand {
        memory_mib: u64::from(version.baseline_mib),
        disk: disk_demand(config, &version.snapshot),
        engine: version.snapshot.engine.clone(),
        architecture: version.architecture,
        fingerprint: String::new(),
        exclude: Vec::new(),
    };
    let (host, fingerprint) = choose(memory, &demand, &version.snapshot.manifest_key, now)?;
    Ok(Microvm {
        id: MicrovmId::from_uuid((context.new_id)()),
        spec: Spec {
            image,
            version: version.version,
            snapshot: version.snapshot.clone(),
            hooks: version.hooks,
            end_connections: version.end_connections,
            baseline_mib: version.baseline_mib,
            // Not the id: who knows an endpoint's name cannot name the microVM.
            endpoint_label: (context.new_id)().hyphenated().to_string(),
            execution_role_arn: request.execution_role_arn,
            kms_key_identifier: request.kms_key_identifier,
            idle_policy: request.idle_policy,
            maximum_duration: request.maximum_duration,
            checkpoint_interval: request.checkpoint_interval,
            payload: request.payload,
            logging: request.logging,
            ingress: request.ingress,
            egress: request.egress,
            egress_policy,
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
        metering_before: None,
        metering_counted: None,
        last_transition: None,
        token_revocations: 0,
        recovery: None,
    })
}

fn check_quotas(memory: &Memory, config: &Config, asked: u64) -> Result<(), Refusal> {
    let limit = config.microvms_max;
    if memory.living() >= limit {
        return Err(Refusal::Quota {
            quota: "microvms",
            limit,
            text: format!("The limit of {limit} MicroVMs is reached."),
        });
    }
    let allocated = memory.allocated_mib();
    match config.quotas.memory_mib {
        Some(limit) if allocated + asked > limit => Err(Refusal::MemoryQuota { limit, allocated, asked }),
        _ => Ok(()),
    }
}

fn disk_demand(config: &Config, snapshot: &SnapshotRef) -> DiskDemand {
    DiskDemand { bytes: snapshot.disk_size_bytes, overcommit: config.disk_overcommit }
}

/// The best host for a demand, and its platform fingerprint.
fn choose(
    memory: &Memory,
    demand: &Demand,
    manifest_key: &str,
    now: SystemTime,
) -> Result<(HostId, String), Refusal> {
    let host = memory.hosts.choose(demand, manifest_key, now).map_err(Refusal::NoRoom)?;
    let found = memory.hosts.get(&host);
    let fingerprint = found.map(|found| found.spec.platform_fingerprint.clone());
    Ok((host, fingerprint.unwrap_or_default()))
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
