//! Requests, checked field by field. Every violation is named, not just the
//! first; field paths are those of the API's JSON.

use std::time::Duration;

use api::common::v1::logging::Destination;
use api::common::v1::{IdlePolicy as WireIdlePolicy, Logging};
use api::microvm::v1::port_scope::Scope;
use api::microvm::v1::{CreateMicrovmAuthTokenRequest, PortScope as WirePortScope, RunMicrovmRequest};
use model::limits;
use model::{ClientToken, ImageIdentifier, ImageName, MicrovmId, VersionNumber, Violations};
use prost::Message as _;
use token::PortScope;

use crate::config::Settings;
use crate::domain::idempotency::TokenUse;
use crate::domain::microvm::{IdlePolicy, Payload};
use crate::refusal::Refusal;
use crate::term::run::RunRequest;

/// Longest role ARN, characters.
const ROLE_ARN_MAX: usize = 2048;
/// Longest log group or stream name, characters.
const LOG_NAME_MAX: usize = 512;
const INGRESS: [&str; 4] = ["HTTP_INGRESS", "ALL_INGRESS", "SHELL_INGRESS", "NO_INGRESS"];
const EGRESS: [&str; 1] = ["INTERNET_EGRESS"];

/// A launch request.
pub fn run(request: &RunMicrovmRequest, settings: &Settings) -> Result<RunRequest, Refusal> {
    let mut violations = Violations::default();
    let found = &mut violations;
    let image = image(&request.image_identifier, settings, found);
    let version = version(&request.image_version, found);
    let idle_policy = request
        .idle_policy
        .as_ref()
        .and_then(|policy| idle_policy(policy, settings, found));
    let maximum_duration = match &request.maximum_duration {
        None => Some(limits::MAXIMUM_DURATION),
        Some(given) => {
            let bounds = (Duration::from_secs(1), limits::MAXIMUM_DURATION);
            whole_seconds(given, bounds, "maximumDurationInSeconds", found)
        }
    };
    found.check(
        request.execution_role_arn.chars().count() <= ROLE_ARN_MAX,
        "executionRoleArn",
        format!("Member must have length less than or equal to {ROLE_ARN_MAX}"),
    );
    found.check(
        request.run_hook_payload.len() <= limits::RUN_HOOK_PAYLOAD_BYTES_MAX,
        "runHookPayload",
        format!(
            "Member must have length less than or equal to {}",
            limits::RUN_HOOK_PAYLOAD_BYTES_MAX
        ),
    );
    logging(request.logging.as_ref(), found);
    let ingress = connectors(
        &request.ingress_network_connectors,
        Direction::Ingress,
        settings,
        found,
    );
    let egress = connectors(
        &request.egress_network_connectors,
        Direction::Egress,
        settings,
        found,
    );
    let token = client_token(request, found);
    let (Some(image), Some(maximum_duration)) = (image, maximum_duration) else {
        return Err(Refusal::Invalid(violations));
    };
    violations.finish().map_err(Refusal::Invalid)?;
    Ok(RunRequest {
        image,
        version,
        execution_role_arn: request.execution_role_arn.clone(),
        idle_policy,
        maximum_duration,
        payload: Payload(request.run_hook_payload.clone()),
        logging: request.logging.clone(),
        ingress,
        egress,
        token,
    })
}

/// A microVM id.
pub fn microvm_id(text: &str) -> Result<MicrovmId, Refusal> {
    let mut violations = Violations::default();
    let id = violations.keep("microvmIdentifier", text.parse());
    id.ok_or(Refusal::Invalid(violations))
}

/// An image named by name or ARN.
pub fn image(text: &str, settings: &Settings, violations: &mut Violations) -> Option<ImageName> {
    let parsed = ImageIdentifier::parse(text, &settings.region, &settings.account);
    violations
        .keep("imageIdentifier", parsed)
        .map(ImageIdentifier::into_name)
}

/// A version; empty means none was named.
pub fn version(text: &str, violations: &mut Violations) -> Option<VersionNumber> {
    if text.is_empty() {
        None
    } else {
        violations.keep("imageVersion", text.parse())
    }
}

/// A page size: 0 means the largest.
pub fn page_size(size: u32, max: u32) -> Result<usize, Refusal> {
    let mut violations = Violations::default();
    violations.check(size <= max, "maxResults", format!("must be 1 to {max}"));
    violations.finish().map_err(Refusal::Invalid)?;
    Ok(usize::try_from(if size == 0 { max } else { size }).unwrap_or(1))
}

/// Life and ports of a token.
pub fn token(
    request: &CreateMicrovmAuthTokenRequest,
    settings: &Settings,
) -> Result<(Duration, Vec<PortScope>), Refusal> {
    let mut violations = Violations::default();
    let floor = Duration::from_secs(settings.token_floor_seconds);
    let given = request.expiration.unwrap_or_default();
    let bounds = (floor, limits::TOKEN_DURATION_MAX);
    let life = whole_seconds(&given, bounds, "expirationInMinutes", &mut violations);
    // With the normal floor only whole minutes mean anything to a caller.
    let minutes =
        floor < limits::TOKEN_DURATION_MIN || life.is_none_or(|life| life.as_secs().is_multiple_of(60));
    violations.check(minutes, "expirationInMinutes", "must be whole minutes");
    let count = request.allowed_ports.len();
    violations.check(
        (1..=limits::TOKEN_PORT_SCOPES_MAX).contains(&count),
        "allowedPorts",
        format!("must have 1 to {} entries", limits::TOKEN_PORT_SCOPES_MAX),
    );
    let mut scopes = Vec::new();
    for (index, scope) in request
        .allowed_ports
        .iter()
        .take(limits::TOKEN_PORT_SCOPES_MAX)
        .enumerate()
    {
        match port_scope(scope) {
            Some(scope) => scopes.push(scope),
            None => violations.add(
                format!("allowedPorts[{index}]"),
                "must be a port of 1 to 65535, a range of them in order, or all ports",
            ),
        }
    }
    match life {
        Some(life) if violations.is_empty() => Ok((life, scopes)),
        _ => Err(Refusal::Invalid(violations)),
    }
}

fn port_scope(scope: &WirePortScope) -> Option<PortScope> {
    let port = |number: u32| u16::try_from(number).ok().filter(|port| *port > 0);
    match scope.scope.as_ref()? {
        Scope::Port(number) => Some(PortScope::Single(port(*number)?)),
        Scope::Range(range) => {
            let (first, last) = (port(range.start_port)?, port(range.end_port)?);
            (first <= last).then_some(PortScope::Range(first, last))
        }
        Scope::AllPorts(_) => Some(PortScope::ALL),
    }
}

fn idle_policy(
    policy: &WireIdlePolicy,
    settings: &Settings,
    violations: &mut Violations,
) -> Option<IdlePolicy> {
    let floor = Duration::from_secs(settings.idle_floor_seconds);
    let mut window = |given: &Option<prost_types::Duration>, bounds, field| match given {
        Some(given) => whole_seconds(given, bounds, field, violations),
        None => {
            violations.add(field, "Member must not be null");
            None
        }
    };
    let idle = (floor, limits::IDLE_DURATION_MAX);
    let asleep = (Duration::ZERO, limits::SUSPENDED_DURATION_MAX);
    let max_idle = window(
        &policy.max_idle_duration,
        idle,
        "idlePolicy.maxIdleDurationSeconds",
    );
    let suspended = window(
        &policy.suspended_duration,
        asleep,
        "idlePolicy.suspendedDurationSeconds",
    );
    Some(IdlePolicy {
        max_idle: max_idle?,
        suspended: suspended?,
        auto_resume: policy.auto_resume_enabled,
    })
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
        let length = group.log_group.chars().count();
        violations.check(
            (1..=LOG_NAME_MAX).contains(&length),
            "logging.cloudWatch.logGroup",
            format!("must be 1 to {LOG_NAME_MAX} characters"),
        );
        let stream = &group.log_stream;
        violations.check(
            stream.chars().count() <= LOG_NAME_MAX && !stream.contains([':', '*']),
            "logging.cloudWatch.logStream",
            format!("must be at most {LOG_NAME_MAX} characters without ':' and '*'"),
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Ingress,
    Egress,
}

/// Connectors of one direction, the default one when none is named.
fn connectors(
    given: &[String],
    direction: Direction,
    settings: &Settings,
    violations: &mut Violations,
) -> Vec<String> {
    let (field, known) = match direction {
        Direction::Ingress => ("ingressNetworkConnectors", &INGRESS[..]),
        Direction::Egress => ("egressNetworkConnectors", &EGRESS[..]),
    };
    let prefix = format!(
        "arn:aws:lambda:{}:aws:network-connector:aws-network-connector:",
        settings.region
    );
    if given.is_empty() {
        return vec![format!("{prefix}{}", known[0])];
    }
    violations.check(
        given.len() <= limits::CONNECTORS_MAX,
        field,
        format!("must have at most {} entries", limits::CONNECTORS_MAX),
    );
    for (index, arn) in given.iter().take(limits::CONNECTORS_MAX).enumerate() {
        let managed = arn.strip_prefix(&prefix);
        violations.check(
            managed.is_some_and(|name| known.contains(&name)),
            format!("{field}[{index}]"),
            format!(
                "must be the ARN of a known connector: {prefix}<{}>",
                known.join("|")
            ),
        );
    }
    let has = |name: &str| given.iter().any(|arn| arn.strip_prefix(&prefix) == Some(name));
    let alone = given.len() == 1;
    violations.check(
        alone || !has("NO_INGRESS"),
        field,
        "NO_INGRESS cannot be combined with other ingress network connectors",
    );
    given.to_vec()
}

/// The token with the digest of everything else. Messages without maps encode
/// the same way every time.
fn client_token(request: &RunMicrovmRequest, violations: &mut Violations) -> Option<TokenUse> {
    if request.client_token.is_empty() {
        return None;
    }
    let token: ClientToken = violations.keep("clientToken", request.client_token.parse())?;
    let parameters = RunMicrovmRequest {
        client_token: String::new(),
        ..request.clone()
    };
    Some(TokenUse::of(token.as_str(), &parameters.encode_to_vec()))
}

#[cfg(test)]
mod tests;
