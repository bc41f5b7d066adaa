//! Requests, checked field by field. Every violation is named, not just the first; field paths are those of
//! the API's JSON. Rules that have a sentence of their own are told one at a time, after those.

pub mod access_keys;
mod attached;
pub mod connectors;
pub mod domains;
pub mod invitations;
pub mod tokens;

use std::time::Duration;

use api::common::v1::logging::Destination;
use api::common::v1::{AwakeWhile, IdlePolicy as WireIdlePolicy, Logging};
use api::microvm::v1::{KeepMicrovmAwakeRequest, ListMicrovmsRequest, RunMicrovmRequest};
use model::ids::{KmsKeyIdentifier, RoleArn};
use model::limits;
use model::{ClientToken, ImageArn, ImageName, MicrovmId, VersionNumber, Violations};
use prost::Message as _;

use crate::config::Config;
use crate::domain::idempotency::TokenUse;
use crate::domain::microvm::{IdlePolicy, Payload};
use crate::domain::paging::Position;
use crate::refusal::Refusal;
use crate::term::launch::RunRequest;

/// Longest log group or stream name, characters.
const LOG_NAME_MAX: usize = 512;
/// Longest text that names an image, characters.
const IMAGE_IDENTIFIER_MAX: usize = 256;

/// Most days of use that are told at once: a row for each day and image has to fit into a message.
const USAGE_DAYS_MAX: u32 = 92;
/// Days of use that are told when none are asked for.
const USAGE_DAYS_DEFAULT: u32 = 30;

/// What is wrong with a request: fields that break rules, and else the first
/// rule with a sentence of its own that is broken.
#[derive(Debug, Default)]
pub struct Findings {
    violations: Violations,
    refusal: Option<Refusal>,
}

impl Findings {
    fn refuse(&mut self, refusal: Refusal) {
        self.refusal.get_or_insert(refusal);
    }

    /// The value when it is there and nothing is wrong.
    fn finish<T>(self, value: Option<T>) -> Result<T, Refusal> {
        self.violations.finish().map_err(Refusal::Invalid)?;
        match (self.refusal, value) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(Refusal::Internal("a request without a violation is not whole".to_owned())),
        }
    }
}

pub fn run(request: &RunMicrovmRequest, config: &Config) -> Result<RunRequest, Refusal> {
    let mut findings = Findings::default();
    let image = image(&request.image_identifier, config, &mut findings);
    let ingress = attached::ingress(&request.ingress_network_connectors, config, &mut findings);
    let egress = attached::egress(&request.egress_network_connectors, config, &mut findings);
    let found = &mut findings.violations;
    let version = version(&request.image_version, found);
    let idle_policy = request.idle_policy.as_ref().and_then(|policy| idle_policy(policy, config, found));
    let maximum_duration = match &request.maximum_duration {
        None => Some(limits::MAXIMUM_DURATION),
        Some(given) => {
            let bounds = (Duration::from_secs(1), limits::MAXIMUM_DURATION);
            whole_seconds(given, bounds, "maximumDurationInSeconds", found)
        }
    };
    let checkpoint_interval = request.checkpoint_interval.as_ref().and_then(|given| {
        let bounds = (limits::CHECKPOINT_INTERVAL_MIN, limits::CHECKPOINT_INTERVAL_MAX);
        whole_seconds(given, bounds, "checkpointInterval", found)
    });
    if !request.execution_role_arn.is_empty() {
        let _ = found.keep("executionRoleArn", request.execution_role_arn.parse::<RoleArn>());
    }
    if !request.kms_key_identifier.is_empty() {
        let _ = found.keep("kmsKeyIdentifier", request.kms_key_identifier.parse::<KmsKeyIdentifier>());
    }
    let longest = config.run_hook_payload_bytes_max;
    found.check(
        request.run_hook_payload.len() <= longest,
        "runHookPayload",
        format!("must be at most {longest} bytes"),
    );
    logging(request.logging.as_ref(), found);
    let token = client_token(request, found);
    let (image, maximum_duration) = findings.finish(image.zip(maximum_duration))?;
    Ok(RunRequest {
        image,
        version,
        execution_role_arn: request.execution_role_arn.clone(),
        kms_key_identifier: request.kms_key_identifier.clone(),
        idle_policy,
        maximum_duration,
        checkpoint_interval,
        payload: Payload(request.run_hook_payload.clone()),
        logging: request.logging.clone(),
        ingress,
        egress,
        token,
    })
}

pub fn microvm_id(text: &str) -> Result<MicrovmId, Refusal> {
    let mut violations = Violations::default();
    let id = violations.keep("microvmIdentifier", text.parse());
    id.ok_or(Refusal::Invalid(violations))
}

/// An image named by name or ARN, of this region and account.
fn image(text: &str, config: &Config, findings: &mut Findings) -> Option<ImageName> {
    const FIELD: &str = "imageIdentifier";
    if text.chars().count() > IMAGE_IDENTIFIER_MAX {
        let message = format!("must be at most {IMAGE_IDENTIFIER_MAX} characters");
        findings.violations.add(FIELD, message);
        return None;
    }
    if !text.starts_with("arn:") {
        return findings.violations.keep(FIELD, text.parse());
    }
    match text.parse::<ImageArn>() {
        Err(error) => findings.refuse(Refusal::sentence(FIELD, error.to_string())),
        Ok(arn) if arn.account != config.account => {
            findings.refuse(Refusal::ForeignAccount(text.to_owned()));
        }
        Ok(arn) if arn.region != config.region => findings.refuse(other_region(FIELD, text)),
        Ok(arn) => return Some(arn.name),
    }
    None
}

/// The sentence for an ARN of another region.
fn other_region(field: &str, arn: &str) -> Refusal {
    Refusal::sentence(field, format!("{arn} belongs to another region"))
}

/// What a listing is narrowed to.
pub type Filters = (Option<ImageName>, Option<VersionNumber>, Option<Position>);

/// Filters and position of a listing of microVMs.
pub fn list(request: &ListMicrovmsRequest, config: &Config) -> Result<Filters, Refusal> {
    let mut findings = Findings::default();
    let image = match request.image_identifier.as_str() {
        "" => None,
        named => image(named, config, &mut findings),
    };
    let found = &mut findings.violations;
    let version = version(&request.image_version, found);
    let after = match request.page_token.as_str() {
        "" => None,
        token => found.keep("nextToken", Position::from_token(token).ok_or("is not a page token")),
    };
    findings.finish(Some((image, version, after)))
}

/// A version; empty means none was named.
fn version(text: &str, violations: &mut Violations) -> Option<VersionNumber> {
    if text.is_empty() { None } else { violations.keep("imageVersion", text.parse()) }
}

/// A page size: 0 means the largest.
/// How many days of use are asked for.
pub fn usage_days(asked: u32) -> Result<u64, Refusal> {
    let mut violations = Violations::default();
    violations.check(asked <= USAGE_DAYS_MAX, "days", format!("must be 1 to {USAGE_DAYS_MAX}"));
    violations.finish().map_err(Refusal::Invalid)?;
    Ok(u64::from(if asked == 0 { USAGE_DAYS_DEFAULT } else { asked }))
}

pub fn page_size(size: u32, max: u32) -> Result<usize, Refusal> {
    let mut violations = Violations::default();
    violations.check(size <= max, "maxResults", format!("must be 1 to {max}"));
    violations.finish().map_err(Refusal::Invalid)?;
    Ok(usize::try_from(if size == 0 { max } else { size }).unwrap_or(1))
}

fn idle_policy(policy: &WireIdlePolicy, config: &Config, violations: &mut Violations) -> Option<IdlePolicy> {
    let mut window = |given: &Option<prost_types::Duration>, bounds, field| match given {
        Some(given) => whole_seconds(given, bounds, field, violations),
        None => {
            violations.add(field, "must not be left out");
            None
        }
    };
    let shortest = Duration::from_secs(config.limits.idle_min_seconds);
    let idle = (shortest, limits::IDLE_DURATION_MAX);
    let asleep = (Duration::ZERO, limits::SUSPENDED_DURATION_MAX);
    let max_idle = window(&policy.max_idle_duration, idle, "idlePolicy.maxIdleDurationSeconds");
    let suspended = window(&policy.suspended_duration, asleep, "idlePolicy.suspendedDurationSeconds");
    let awake_while = policy.awake_while.filter(|awake| *awake != AwakeWhile::default());
    let (least, most) = (limits::CPU_PERCENT.start(), limits::CPU_PERCENT.end());
    violations.check(
        awake_while.and_then(|awake| awake.cpu_percent).is_none_or(|cpu| limits::CPU_PERCENT.contains(&cpu)),
        "idlePolicy.awakeWhile.cpuPercent",
        format!("must be {least} to {most}"),
    );
    Some(IdlePolicy {
        max_idle: max_idle?,
        suspended: suspended?,
        auto_resume: policy.auto_resume_enabled,
        awake_while,
    })
}

/// How long a keep-awake lease is to last; `None` gives it up.
pub fn keep_awake(request: &KeepMicrovmAwakeRequest) -> Result<(MicrovmId, Option<Duration>), Refusal> {
    const FIELD: &str = "duration";
    let mut violations = Violations::default();
    let id = violations.keep("microvmIdentifier", request.microvm_id.parse());
    let bounds = (limits::KEEP_AWAKE_MIN, limits::KEEP_AWAKE_MAX);
    let duration = match &request.duration {
        Some(_) if request.release => {
            violations.add(FIELD, "must be left out with release");
            None
        }
        None if request.release => None,
        given => whole_seconds(&given.unwrap_or_default(), bounds, FIELD, &mut violations),
    };
    let findings = Findings { violations, refusal: None };
    findings.finish(id.map(|id| (id, duration)))
}

fn whole_seconds(
    given: &prost_types::Duration,
    (least, most): (Duration, Duration),
    field: &str,
    violations: &mut Violations,
) -> Option<Duration> {
    let duration = api::duration(given).ok();
    let good = duration.filter(|d| d.subsec_nanos() == 0 && (least..=most).contains(d));
    violations.check(
        good.is_some(),
        field,
        format!("must be whole seconds, {} to {}", least.as_secs(), most.as_secs()),
    );
    good
}

fn logging(logging: Option<&Logging>, violations: &mut Violations) {
    if let Some(Destination::CloudWatch(group)) = logging.and_then(|logging| logging.destination.as_ref()) {
        violations.check(
            group.log_group.chars().count() <= LOG_NAME_MAX,
            "logging.cloudWatch.logGroup",
            format!("must be at most {LOG_NAME_MAX} characters"),
        );
        let stream = &group.log_stream;
        violations.check(
            stream.chars().count() <= LOG_NAME_MAX && !stream.contains([':', '*']),
            "logging.cloudWatch.logStream",
            format!("must be at most {LOG_NAME_MAX} characters without ':' and '*'"),
        );
    }
}

/// The token with the digest of everything else. Messages without maps encode the same way every time.
fn client_token(request: &RunMicrovmRequest, violations: &mut Violations) -> Option<TokenUse> {
    if request.client_token.is_empty() {
        return None;
    }
    let token: ClientToken = violations.keep("clientToken", request.client_token.parse())?;
    let parameters = RunMicrovmRequest { client_token: String::new(), ..request.clone() };
    Some(TokenUse::of(token.as_str(), &parameters.encode_to_vec()))
}

#[cfg(test)]
mod tests;
