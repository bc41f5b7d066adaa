//! Failures as the wire has them: one exhaustive table.

use api::errors::{self, reason};
use std::time::Duration;
use tonic::{Code, Status};

use crate::domain::Failure;

/// When a caller that was turned away for lack of room may try again.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status a caller gets.
#[must_use]
pub fn status(failure: &Failure) -> Status {
    let text = failure.to_string();
    match failure {
        Failure::StaleGeneration { held, offered } => errors::status(
            Code::FailedPrecondition,
            reason::STALE_GENERATION,
            text,
            &[("held", &held.to_string()), ("offered", &offered.to_string())],
        ),
        Failure::NotHere { id } => {
            errors::status(Code::NotFound, reason::NOT_HERE, text, &[("microvm_id", id)])
        }
        Failure::Ended { reason: why } => {
            errors::status(Code::FailedPrecondition, reason::TERMINATED, text, &[("state_reason", why)])
        }
        Failure::Conflict(_) => errors::status(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &[]),
        Failure::Invalid(violations) => errors::invalid(violations),
        Failure::Capacity(_) => {
            errors::status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, text, &[])
        }
        Failure::Corrupt { object } => {
            errors::status(Code::DataLoss, reason::CORRUPT_OBJECT, text, &[("object", object)])
        }
        Failure::Missing { object } => {
            errors::status(Code::FailedPrecondition, reason::NOT_FOUND, text, &[("object", object)])
        }
        Failure::StoreUnavailable(_) => errors::unavailable(reason::STORE_UNAVAILABLE, text, RETRY_AFTER),
        Failure::DiskFull { path, limit } => errors::status(
            Code::ResourceExhausted,
            reason::DISK_FULL,
            text,
            &[("path", path), ("limit", limit)],
        ),
        Failure::Hook { hook, http_status, timed_out, .. } => errors::status(
            Code::FailedPrecondition,
            reason::HOOK_FAILED,
            text,
            &[
                ("hook", hook),
                ("http_status", &http_status.to_string()),
                ("outcome", if *timed_out { "timed_out" } else { "refused" }),
            ],
        ),
        Failure::Guest { outcome, exit_code, .. } => {
            let exit_code = exit_code.map(|code| code.to_string()).unwrap_or_default();
            errors::status(
                Code::FailedPrecondition,
                reason::GUEST_FAILED,
                text,
                &[("outcome", outcome), ("exit_code", &exit_code)],
            )
        }
        Failure::Engine(_) => errors::status(Code::Internal, reason::ENGINE_FAILED, text, &[]),
        Failure::Interrupted(_) => errors::status(Code::Aborted, reason::STATE_CONFLICT, text, &[]),
        Failure::Internal(_) => errors::status(Code::Internal, reason::INTERNAL, text, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_branch_on_code_and_reason() {
        for (failure, code, reason) in [
            (Failure::StaleGeneration { held: 2, offered: 1 }, Code::FailedPrecondition, "STALE_GENERATION"),
            (Failure::NotHere { id: "x".into() }, Code::NotFound, "NOT_HERE"),
            (Failure::Capacity("full".into()), Code::ResourceExhausted, "INSUFFICIENT_CAPACITY"),
            (Failure::Corrupt { object: "s3://b/k".into() }, Code::DataLoss, "CORRUPT_OBJECT"),
            (
                Failure::DiskFull { path: "/d".into(), limit: "1 MiB".into() },
                Code::ResourceExhausted,
                "DISK_FULL",
            ),
            (Failure::StoreUnavailable("s3".into()), Code::Unavailable, "STORE_UNAVAILABLE"),
            (Failure::Invalid(vec![("a".into(), "b".into())]), Code::InvalidArgument, "INVALID_ARGUMENT"),
        ] {
            let status = status(&failure);
            assert_eq!(status.code(), code, "{failure}");
            assert_eq!(errors::reason_of(&status).as_deref(), Some(reason), "{failure}");
        }
    }
}
