//! What a service refuses a call with.

use std::fmt::Debug;

use api::errors::{reason, reason_of};
use tonic::{Code, Status};

/// The code that goes with each reason.
const CODES: [(&str, Code); 19] = [
    (reason::INVALID_ARGUMENT, Code::InvalidArgument),
    (reason::PERMISSION_DENIED, Code::PermissionDenied),
    (reason::NOT_FOUND, Code::NotFound),
    (reason::NO_ACTIVE_VERSION, Code::NotFound),
    (reason::ALREADY_EXISTS, Code::AlreadyExists),
    (reason::CLIENT_TOKEN_CONFLICT, Code::AlreadyExists),
    (reason::STATE_CONFLICT, Code::FailedPrecondition),
    (reason::TERMINATED, Code::FailedPrecondition),
    (reason::IMAGE_IN_USE, Code::FailedPrecondition),
    (reason::NOT_DELETABLE, Code::FailedPrecondition),
    (reason::SHELL_NOT_ALLOWED, Code::FailedPrecondition),
    (reason::CLOCK_DIFFERS, Code::FailedPrecondition),
    (reason::DISK_FULL, Code::FailedPrecondition),
    (reason::INSUFFICIENT_CAPACITY, Code::ResourceExhausted),
    (reason::QUOTA_EXCEEDED, Code::ResourceExhausted),
    (reason::THROTTLED, Code::ResourceExhausted),
    (reason::CORRUPT_OBJECT, Code::DataLoss),
    (reason::NOT_LEADER, Code::Unavailable),
    (reason::STORE_UNAVAILABLE, Code::Unavailable),
];

/// The refusal in an answer. It has this reason, and the code that goes with it.
#[track_caller]
pub fn refusal<T: Debug>(answer: Result<T, Status>, reason: &str) -> Status {
    let status = answer.unwrap_err();
    let code = CODES.iter().find(|(known, _)| *known == reason).map(|(_, code)| *code);
    assert_eq!((reason_of(&status).as_deref(), Some(status.code())), (Some(reason), code), "{status:?}");
    status
}
