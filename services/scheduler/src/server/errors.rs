//! Refusals as wire statuses, in one place.

use std::collections::HashMap;
use std::time::Duration;

use api::errors::{self, reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::leader::Leader;
use crate::refusal::Refusal;

/// When asking again makes sense while nobody leads.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// When asking again makes sense while etcd is away.
const AWAY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status for a refusal; `leader` is what this replica knows of who leads.
pub fn status(refusal: Refusal, leader: &Leader) -> Status {
    let text = refusal.to_string();
    let plain = |code, reason| errors::status(code, reason, text.clone(), &[]);
    let about =
        |code, reason, resource: &str| errors::status(code, reason, text.clone(), &[("resource", resource)]);
    match refusal {
        Refusal::Invalid(violations) => errors::invalid(&violations.into_vec()),
        Refusal::Sentence { field, sentence } => errors::invalid_sentence(&field, &sentence),
        Refusal::ForeignAccount(arn) => about(Code::PermissionDenied, reason::PERMISSION_DENIED, &arn),
        Refusal::MicrovmNotFound(id) => about(Code::NotFound, reason::NOT_FOUND, id.as_str()),
        Refusal::HostNotFound(id) => about(Code::NotFound, reason::NOT_FOUND, id.as_str()),
        Refusal::ConnectorNotFound(arn) => about(Code::NotFound, reason::NOT_FOUND, &arn),
        Refusal::ImageNotFound(name) => about(Code::NotFound, reason::NOT_FOUND, name.as_str()),
        Refusal::DomainNotFound(name) => about(Code::NotFound, reason::NOT_FOUND, name.as_str()),
        Refusal::DomainExists(name) => about(Code::AlreadyExists, reason::ALREADY_EXISTS, name.as_str()),
        Refusal::AccessKeyNotFound(id) => about(Code::NotFound, reason::NOT_FOUND, &id),
        Refusal::InvitationSpent => plain(Code::NotFound, reason::NOT_FOUND),
        Refusal::LogGone { id, .. } => about(Code::NotFound, reason::NOT_FOUND, id.as_str()),
        Refusal::NoActiveVersion { image, .. } => {
            about(Code::NotFound, reason::NO_ACTIVE_VERSION, &image.to_string())
        }
        Refusal::ConnectorExists(name) => about(Code::AlreadyExists, reason::ALREADY_EXISTS, name.as_str()),
        Refusal::TokenConflict => plain(Code::AlreadyExists, reason::CLIENT_TOKEN_CONFLICT),
        Refusal::Terminated(id) => about(Code::FailedPrecondition, reason::TERMINATED, id.as_str()),
        Refusal::ShellNotAllowed { id, .. } => {
            about(Code::FailedPrecondition, reason::SHELL_NOT_ALLOWED, id.as_str())
        }
        Refusal::StateConflict { id, state, .. } => conflict(text, id.as_str(), state.name()),
        Refusal::ConnectorState { arn, state, .. } => conflict(text, &arn, state),
        Refusal::Busy(_) => throttled(text),
        Refusal::NoRoom(_) => plain(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY),
        Refusal::Quota { quota, limit, .. } => errors::status(
            Code::ResourceExhausted,
            reason::QUOTA_EXCEEDED,
            text,
            &[("quota", quota), ("limit", &limit.to_string())],
        ),
        Refusal::MemoryQuota { limit, allocated, asked } => errors::status(
            Code::ResourceExhausted,
            reason::QUOTA_EXCEEDED,
            text,
            &[
                ("quota", "memory"),
                ("limit_mib", &limit.to_string()),
                ("allocated_mib", &allocated.to_string()),
                ("asked_mib", &asked.to_string()),
            ],
        ),
        Refusal::HostClock(_) => plain(Code::FailedPrecondition, reason::CLOCK_DIFFERS),
        Refusal::StoreFull { .. } => plain(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY),
        Refusal::HostAway { retry_after, .. } => errors::unavailable(reason::NOT_HERE, text, retry_after),
        Refusal::Host(answer) => passed_on(&answer),
        Refusal::NotLeading => not_leading(leader),
        Refusal::Store(_) => errors::unavailable(reason::STORE_UNAVAILABLE, text, RETRY_AFTER),
        Refusal::Internal(detail) => {
            // The one log line of this layer: a bug must be seen where it surfaces.
            tracing::error!(detail, "a call ended in a bug");
            errors::status(Code::Internal, reason::INTERNAL, "a bug in Torpor ended this call", &[])
        }
    }
}

/// The state of a resource forbids the call.
fn conflict(text: String, resource: &str, state: &str) -> Status {
    errors::status(
        Code::FailedPrecondition,
        reason::STATE_CONFLICT,
        text,
        &[("resource", resource), ("state", state)],
    )
}

/// Too much at once; worth another try soon.
fn throttled(text: String) -> Status {
    let mut details = ErrorDetails::with_error_info(reason::THROTTLED, errors::DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

/// UNAVAILABLE of a replica that does not lead: it names the leader, so that a caller can go there, or says that etcd is away,
/// without which nobody leads.
pub fn not_leading(leader: &Leader) -> Status {
    match leader.store_away() {
        Some(since) => errors::nobody_leads(
            format!(
                "The record store (etcd) has been out of reach of this scheduler for {}s: nothing can be changed or looked up \
                 until it is back. Endpoints go on.",
                since.as_secs()
            ),
            AWAY_RETRY_AFTER,
        ),
        None => errors::not_leader(&leader.address(), RETRY_AFTER),
    }
}

/// A host's answer without its transport metadata.
fn passed_on(answer: &Status) -> Status {
    // A status without a reason did not come from our code.
    if errors::reason_of(answer).is_none() {
        return errors::unavailable(reason::NOT_HERE, answer.message(), RETRY_AFTER);
    }
    Status::with_details(answer.code(), answer.message(), answer.details().to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_carry_code_reason_and_metadata() {
        let id: model::MicrovmId = "microvm-0190a5e2-7c3b-3f00-8000-000000000001".parse().unwrap();
        let leader = Leader::default();
        leader.set_address("10.0.0.1:7401".to_owned());
        let conflict = Refusal::StateConflict {
            id: id.clone(),
            state: model::state::MicrovmState::Pending,
            action: "suspended",
        };
        let disk = errors::status(Code::FailedPrecondition, reason::DISK_FULL, "no space", &[]);
        for (refusal, code, reason) in [
            (Refusal::Terminated(id.clone()), Code::FailedPrecondition, reason::TERMINATED),
            (Refusal::MicrovmNotFound(id), Code::NotFound, reason::NOT_FOUND),
            (conflict, Code::FailedPrecondition, reason::STATE_CONFLICT),
            (Refusal::TokenConflict, Code::AlreadyExists, reason::CLIENT_TOKEN_CONFLICT),
            (Refusal::Host(Box::new(disk)), Code::FailedPrecondition, reason::DISK_FULL),
            (Refusal::Host(Box::new(Status::unknown("h2"))), Code::Unavailable, reason::NOT_HERE),
            (Refusal::Busy("it".into()), Code::ResourceExhausted, reason::THROTTLED),
            (Refusal::sentence("clientToken", "x"), Code::InvalidArgument, reason::INVALID_ARGUMENT),
            (Refusal::ForeignAccount("arn".into()), Code::PermissionDenied, reason::PERMISSION_DENIED),
            (Refusal::NotLeading, Code::Unavailable, reason::NOT_LEADER),
            (Refusal::Internal("x".into()), Code::Internal, reason::INTERNAL),
        ] {
            let status = status(refusal, &leader);
            assert_eq!(status.code(), code, "{status:?}");
            assert_eq!(errors::reason_of(&status).as_deref(), Some(reason));
        }
        let info = not_leading(&leader).get_details_error_info().unwrap();
        assert_eq!(info.metadata["leader"], "10.0.0.1:7401");
        leader.store_answers(false);
        let away = not_leading(&leader);
        assert_eq!(errors::reason_of(&away).as_deref(), Some(reason::STORE_UNAVAILABLE));
        assert!(away.message().contains("(etcd) has been out of reach"), "{}", away.message());
        leader.store_answers(true);
        assert_eq!(errors::reason_of(&not_leading(&leader)).as_deref(), Some(reason::NOT_LEADER));
    }
}
