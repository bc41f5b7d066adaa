//! Failures as the wire has them: one exhaustive table.

use api::errors::{self, reason};
use std::time::Duration;
use tonic::{Code, Status};

use crate::domain::HostError;

/// When a caller that was turned away for lack of room may try again.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

pub fn status(failure: &HostError) -> Status {
    let text = failure.to_string();
    match failure {
        HostError::StaleGeneration { held, offered } => errors::status(
            Code::FailedPrecondition,
            reason::STALE_GENERATION,
            text,
            &[("held", &held.to_string()), ("offered", &offered.to_string())],
        ),
        HostError::LeaseChanged => errors::status(Code::Unavailable, reason::LEASE_CHANGED, text, &[]),
        HostError::NotHere { id } => {
            errors::status(Code::NotFound, reason::NOT_HERE, text, &[("microvm_id", id)])
        }
        HostError::Ended { reason: why } => {
            errors::status(Code::FailedPrecondition, reason::TERMINATED, text, &[("state_reason", why)])
        }
        HostError::Conflict(_) => errors::status(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &[]),
        HostError::Invalid(violations) => errors::invalid(violations),
        HostError::Capacity(_) => {
            errors::status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, text, &[])
        }
        HostError::Corrupt { object } => {
            errors::status(Code::DataLoss, reason::CORRUPT_OBJECT, text, &[("object", object)])
        }
        HostError::Missing { object } => {
            errors::status(Code::FailedPrecondition, reason::NOT_FOUND, text, &[("object", object)])
        }
        HostError::StoreUnavailable(_) => errors::unavailable(reason::STORE_UNAVAILABLE, text, RETRY_AFTER),
        HostError::DiskFull { path, limit } => errors::status(
            Code::ResourceExhausted,
            reason::DISK_FULL,
            text,
            &[("path", path), ("limit", limit)],
        ),
        HostError::OutOfSpace { limit } => {
            errors::status(Code::ResourceExhausted, reason::DISK_FULL, text, &[("limit", limit)])
        }
        HostError::Hook { hook, http_status, timed_out, .. } => errors::status(
            Code::FailedPrecondition,
            reason::HOOK_FAILED,
            text,
            &[
                ("hook", hook),
                ("http_status", &http_status.to_string()),
                ("outcome", if *timed_out { "timed_out" } else { "refused" }),
            ],
        ),
        HostError::Guest { outcome, exit_code, .. } => {
            let exit_code = exit_code.map(|code| code.to_string()).unwrap_or_default();
            errors::status(
                Code::FailedPrecondition,
                reason::GUEST_FAILED,
                text,
                &[("outcome", outcome), ("exit_code", &exit_code)],
            )
        }
        HostError::Engine(_) => errors::status(Code::Internal, reason::ENGINE_FAILED, text, &[]),
        HostError::Interrupted(_) => errors::status(Code::Aborted, reason::STATE_CONFLICT, text, &[]),
        HostError::Internal(_) => errors::status(Code::Internal, reason::INTERNAL, text, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_branch_on_code_and_reason() {
        for (failure, code, reason) in [
            (
                HostError::StaleGeneration { held: 2, offered: 1 },
                Code::FailedPrecondition,
                "STALE_GENERATION",
            ),
            (HostError::LeaseChanged, Code::Unavailable, "LEASE_CHANGED"),
            (HostError::NotHere { id: "x".into() }, Code::NotFound, "NOT_HERE"),
            (HostError::Capacity("full".into()), Code::ResourceExhausted, "INSUFFICIENT_CAPACITY"),
            (HostError::Corrupt { object: "s3://b/k".into() }, Code::DataLoss, "CORRUPT_OBJECT"),
            (
                HostError::DiskFull { path: "/d".into(), limit: "1 MiB".into() },
                Code::ResourceExhausted,
                "DISK_FULL",
            ),
            (HostError::StoreUnavailable("s3".into()), Code::Unavailable, "STORE_UNAVAILABLE"),
            (HostError::Invalid(vec![("a".into(), "b".into())]), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ] {
            let status = status(&failure);
            assert_eq!(status.code(), code, "{failure}");
            assert_eq!(errors::reason_of(&status).as_deref(), Some(reason), "{failure}");
        }
    }
}
