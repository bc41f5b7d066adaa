//! Refusals as gRPC statuses: the one place that knows codes.

use std::time::Duration;

use api::errors::{self, reason};
use tonic::{Code, Status};

use crate::refusal::Refusal;

/// When a caller may try again after a peer or a store was away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) fn status(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid(violations) => errors::invalid(&violations.into_vec()),
        Refusal::ImageNotFound(name) | Refusal::VersionNotFound(name, _) | Refusal::BuildNotFound(name) => {
            about(Code::NotFound, reason::NOT_FOUND, text, &name)
        }
        Refusal::AlreadyExists(name) => about(Code::AlreadyExists, reason::ALREADY_EXISTS, text, &name),
        Refusal::TokenConflict => {
            errors::status(Code::AlreadyExists, reason::CLIENT_TOKEN_CONFLICT, text, &[])
        }
        Refusal::State { arn, .. } => about(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &arn),
        Refusal::NotDeletable { arn, .. } => {
            about(Code::FailedPrecondition, reason::NOT_DELETABLE, text, &arn)
        }
        Refusal::InUse(_) => errors::status(Code::FailedPrecondition, reason::IMAGE_IN_USE, text, &[]),
        Refusal::NoActiveVersion(arn) => about(Code::NotFound, reason::NO_ACTIVE_VERSION, text, &arn),
        Refusal::Quota { quota, limit, .. } => {
            let metadata = [("quota", quota), ("limit", &limit.to_string())];
            errors::status(Code::ResourceExhausted, reason::QUOTA_EXCEEDED, text, &metadata)
        }
        Refusal::BaseImage(_) => errors::status(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &[]),
        Refusal::Conflict | Refusal::Unavailable(_) => {
            errors::unavailable(reason::STORE_UNAVAILABLE, text, RETRY_AFTER)
        }
        Refusal::Internal(_) => errors::status(Code::Internal, reason::INTERNAL, text, &[]),
    }
}

fn about(code: Code, reason: &str, text: String, resource: &str) -> Status {
    errors::status(code, reason, text, &[("resource", resource)])
}
