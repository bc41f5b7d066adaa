//! BAKE and VALIDATE: a host boots the disk, waits for the app, and stores the
//! snapshot. What it says goes into the build's log.

use std::time::Duration;

use api::common::v1::{Hook, Hooks};
use api::errors::reason;
use api::host::v1::PlaceBakeResponse;
use api::hostagent::v1::{BakeRequest, BakeResult};
use api::image::v1::{BuildStep, ImageConfiguration};
use backoff::Backoff;
use model::{MemoryClass, limits};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::StepError;
use super::container::Prepared;
use super::job::Job;
use crate::domain::bake::{BakeDecision, PeerError, Windows, decide};
use crate::domain::build_error::{BuildError, Reason};
use crate::domain::configuration::{architectures, enabled};
use crate::domain::object_keys;

/// First and longest pause between attempts to find a host.
const PLACEMENT_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Bakes of one attempt of a build never use more generations than this.
const GENERATIONS_PER_ATTEMPT: u64 = 100;

pub(super) struct Baked {
    pub(super) result: BakeResult,
    pub(super) app: api::image::v1::AppConfiguration,
}

impl Job {
    /// Bakes, on another host if one fails in the middle.
    pub(super) async fn bake(&mut self, prepared: &Prepared) -> Result<Baked, StepError> {
        let attempts = self.context.config.bake.attempts_max;
        let mut attempt = 1;
        loop {
            let placed = self.place().await?;
            self.build.value.chipset.clone_from(&placed.chipset);
            let outcome = self.bake_on(&placed, prepared, attempt).await;
            // The reservation ends by itself if this call does not arrive.
            self.context.peers.release_bake(&self.entry.build_id).await;
            match outcome {
                Ok(result) => {
                    return Ok(Baked { result, app: prepared.app.clone() });
                }
                Err(BakeDecision::Retry(failure)) if attempt < attempts => {
                    let again =
                        format!("{} Trying again ({attempt} of {attempts} attempts made).", failure.sentence);
                    self.note(again);
                    tokio::time::sleep(PLACEMENT_PAUSE.0).await;
                    attempt += 1;
                }
                Err(BakeDecision::Retry(failure) | BakeDecision::Fail(failure)) => return Err(failure.into()),
            }
        }
    }

    fn configuration(&self) -> ImageConfiguration {
        self.version.configuration.clone().unwrap_or_default()
    }

    /// Finds a host with room, waiting for one if need be.
    async fn place(&self) -> Result<PlaceBakeResponse, BuildError> {
        let bake = &self.context.config.bake;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(bake.placement_seconds);
        let configuration = self.configuration();
        let memory = configuration.resources.unwrap_or_default().minimum_memory_mib;
        let wanted = architectures(&configuration, &[self.build.value.architecture()]);
        let architecture = wanted.first().copied().unwrap_or_default();
        let reservation = self.bake_limit();
        let mut backoff = Backoff::new(PLACEMENT_PAUSE.0, PLACEMENT_PAUSE.1);
        let mut noted = false;
        loop {
            let build_id = &self.entry.build_id;
            let refused =
                match self.context.peers.place_bake(build_id, memory, architecture, reservation).await {
                    Ok(placed) => {
                        self.note(format!("Baking on host {}.", placed.host_id));
                        return Ok(placed);
                    }
                    Err(status) => status,
                };
            let error = peer_error(&refused);
            let decision = decide(BuildStep::Bake, &error, self.windows());
            let capacity = error.reason == reason::INSUFFICIENT_CAPACITY;
            let kind = if capacity { Reason::InsufficientCapacity } else { Reason::DependencyUnavailable };
            let sentence =
                format!("No host could be found for the bake: {}.", error.message.trim_end_matches('.'));
            let failure = BuildError::new(BuildStep::Bake, kind, sentence);
            match decision {
                BakeDecision::Retry(_) if tokio::time::Instant::now() < deadline => {}
                _ => return Err(failure),
            }
            if !std::mem::replace(&mut noted, true) {
                self.note(format!("{} Waiting for one.", failure.sentence));
            }
            backoff.pause().await;
        }
    }

    async fn bake_on(
        &mut self,
        placed: &PlaceBakeResponse,
        prepared: &Prepared,
        attempt: u32,
    ) -> Result<BakeResult, BakeDecision> {
        let limit = self.bake_limit();
        let request = self.bake_request(prepared, attempt).map_err(BakeDecision::Fail)?;
        match tokio::time::timeout(limit, self.follow_bake(placed, request)).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(status)) => Err(decide(self.build.value.step(), &peer_error(&status), self.windows())),
            Err(_) => Err(BakeDecision::Fail(Self::timed_out(self.build.value.step(), limit))),
        }
    }

    async fn follow_bake(
        &mut self,
        placed: &PlaceBakeResponse,
        request: BakeRequest,
    ) -> Result<BakeResult, Status> {
        let mut stream = self.context.peers.bake(placed, request).await?;
        while let Some(message) = stream.message().await? {
            for line in message.lines {
                self.log.append(line.source(), line.text);
            }
            if message.step == "validate" && self.build.value.step() == BuildStep::Bake {
                // A lost build stops at its next write; here the host decides.
                let _ = self.enter(BuildStep::Validate).await;
            } else if !message.step.is_empty() {
                self.note(format!("Bake: {}.", message.step));
            }
            if let Some(result) = message.result {
                return Ok(result);
            }
        }
        Err(Status::unavailable("the host ended the bake without a result"))
    }

    fn bake_request(&self, prepared: &Prepared, attempt: u32) -> Result<BakeRequest, BuildError> {
        let settings = &self.context.config.bake;
        let configuration = self.configuration();
        let memory = configuration.resources.unwrap_or_default().minimum_memory_mib;
        let class = MemoryClass::of(memory)
            .ok_or_else(|| BuildError::internal(BuildStep::Bake, "the version has no memory class"))?;
        let generation = u64::from(self.entry.attempt) * GENERATIONS_PER_ATTEMPT + u64::from(attempt);
        Ok(BakeRequest {
            build_id: self.entry.build_id.clone(),
            generation,
            image_name: self.entry.image_name.clone(),
            image_arn: self.version.image_arn.clone(),
            image_version: self.entry.image_version.clone(),
            disk: Some(prepared.disk.clone()),
            app: Some(prepared.app.clone()),
            environment_variables: configuration.environment_variables,
            memory_mib: memory * settings.memory_peak_factor,
            vcpu_count: class.peak_vcpus.min(settings.vcpu_count_max).max(1),
            hooks: configuration.hooks,
            all_capabilities: configuration.additional_os_capabilities.iter().any(|name| name == "ALL"),
            settle_timeout: Some(api::duration_proto(Duration::from_secs(settings.settle_seconds))),
            destination_prefix: object_keys::snapshot_prefix(
                &self.entry.image_id,
                &self.entry.image_version,
                generation,
            ),
        })
    }

    fn windows(&self) -> Windows {
        let hooks = self.configuration().hooks.unwrap_or_default();
        Windows { ready: window(hooks.ready.as_ref()), validate: window(hooks.validate.as_ref()) }
    }

    /// What one bake may take: its own work and the hooks' windows.
    fn bake_limit(&self) -> Duration {
        let settings = &self.context.config.bake;
        let hooks: Hooks = self.configuration().hooks.unwrap_or_default();
        let mut limit = Duration::from_secs(settings.timeout_seconds + settings.settle_seconds);
        for hook in [&hooks.ready, &hooks.validate] {
            if enabled(hook.as_ref()) {
                limit += window(hook.as_ref());
            }
        }
        limit
    }
}

fn window(hook: Option<&Hook>) -> Duration {
    let given = hook.and_then(|hook| hook.timeout.as_ref()).and_then(|timeout| api::duration(timeout).ok());
    given.unwrap_or(limits::BUILD_HOOK_TIMEOUT_DEFAULT)
}

fn peer_error(status: &Status) -> PeerError {
    let info = status.get_details_error_info();
    PeerError {
        code: status.code(),
        reason: info.as_ref().map(|info| info.reason.clone()).unwrap_or_default(),
        metadata: info.map(|info| info.metadata).unwrap_or_default(),
        message: status.message().to_owned(),
    }
}
