//! Refusals as gRPC statuses: the one place that knows codes.

use std::time::Duration;

use api::errors::{self, reason};
use tonic::{Code, Status};

use crate::images::Refusal;

/// When a caller may try again after a neighbour was away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status a refusal is on the wire.
pub(super) fn status(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid(violations) => errors::invalid(&violations.into_vec()),
        Refusal::NotFound(kind, name) => errors::not_found(kind, &name),
        Refusal::AlreadyExists(name) => errors::status(
            Code::AlreadyExists,
            reason::ALREADY_EXISTS,
            text,
            &[("resource", &name)],
        ),
        Refusal::TokenConflict => {
            errors::status(Code::AlreadyExists, reason::CLIENT_TOKEN_CONFLICT, text, &[])
        }
        Refusal::State(_) => errors::status(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &[]),
        Refusal::InUse => errors::status(Code::FailedPrecondition, reason::IMAGE_IN_USE, text, &[]),
        Refusal::NoActiveVersion(name) => errors::status(
            Code::NotFound,
            reason::NO_ACTIVE_VERSION,
            text,
            &[("resource", &name)],
        ),
        Refusal::Quota(_) => errors::status(Code::ResourceExhausted, reason::QUOTA_EXCEEDED, text, &[]),
        Refusal::Unavailable(_) => errors::unavailable(reason::STORE_UNAVAILABLE, text, RETRY_AFTER),
        Refusal::Internal(_) => errors::status(Code::Internal, reason::INTERNAL, text, &[]),
    }
}
