//! The services' refusals under AWS's names: one table.

use std::time::Duration;

use api::errors::{self, reason};
use aws_model::{ErrorClass, Operation, Rejection};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What a refusal is; the operation says what AWS calls it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Invalid,
    NotFound,
    /// Not now, or not with this client token.
    Conflict,
    /// The name is taken: for images that is an invalid request.
    Taken,
    Quota,
    Capacity,
    Throttled,
    Denied,
}

/// Code, reason and what they mean. What is not here is our fault.
const TABLE: [(Code, &str, Kind); 17] = [
    (Code::InvalidArgument, reason::INVALID_ARGUMENT, Kind::Invalid),
    (Code::NotFound, reason::NOT_FOUND, Kind::NotFound),
    (Code::NotFound, reason::NO_ACTIVE_VERSION, Kind::NotFound),
    (Code::AlreadyExists, reason::ALREADY_EXISTS, Kind::Taken),
    (Code::AlreadyExists, reason::CLIENT_TOKEN_CONFLICT, Kind::Conflict),
    (Code::Aborted, reason::CLIENT_TOKEN_CONFLICT, Kind::Conflict),
    (Code::FailedPrecondition, reason::STATE_CONFLICT, Kind::Conflict),
    (Code::FailedPrecondition, reason::TERMINATED, Kind::Invalid),
    (Code::FailedPrecondition, reason::SHELL_NOT_ALLOWED, Kind::Invalid),
    (Code::FailedPrecondition, reason::NOT_DELETABLE, Kind::Invalid),
    (Code::FailedPrecondition, reason::IMAGE_IN_USE, Kind::Invalid),
    (Code::FailedPrecondition, reason::HOOK_FAILED, Kind::Conflict),
    (Code::FailedPrecondition, reason::GUEST_FAILED, Kind::Conflict),
    (Code::ResourceExhausted, reason::QUOTA_EXCEEDED, Kind::Quota),
    (Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, Kind::Capacity),
    (Code::ResourceExhausted, reason::THROTTLED, Kind::Throttled),
    (Code::PermissionDenied, reason::PERMISSION_DENIED, Kind::Denied),
];

/// What a caller is told when a service is away.
const AWAY: &str = "The service is not available right now. Try again.";
/// What a caller is told when no service can read or write its records.
const STORE_AWAY: &str = "The service's record store is away right now. Endpoints go on. Try again.";
/// What a caller is told of a bug.
const BUG: &str = "The service could not process the request because of an internal error.";
/// When to try again if the service does not say.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A service's refusal of `operation` as AWS would put it.
pub(crate) fn of(operation: &Operation, status: &Status) -> Rejection {
    let details = status.get_error_details();
    let info = details.error_info();
    let row = info.and_then(|info| {
        TABLE.iter().find(|(code, reason, _)| *code == status.code() && *reason == info.reason)
    });
    let retry_after = details.retry_info().and_then(|info| info.retry_delay);
    let Some((_, _, kind)) = row else {
        return ours(operation, status, retry_after);
    };
    // Without the name of a resource it is the edge itself that may not ask.
    if *kind == Kind::Denied && !info.is_some_and(|info| info.metadata.contains_key("resource")) {
        return ours(operation, status, retry_after);
    }
    let class = class(*kind, operation);
    let rejection = Rejection::new(class, status.message());
    match (kind, retry_after) {
        (Kind::Throttled, after) => rejection.retry_after(seconds(after.unwrap_or(RETRY_AFTER))),
        _ => rejection,
    }
}

/// The answer to calls that come too fast.
pub(crate) fn throttled(operation: &Operation, after: Duration) -> Rejection {
    Rejection::new(class(Kind::Throttled, operation), "Rate exceeded").retry_after(seconds(after))
}

fn class(kind: Kind, operation: &Operation) -> ErrorClass {
    let models = |class| operation.models(class);
    match kind {
        Kind::Invalid => operation.invalid(),
        Kind::NotFound => ErrorClass::ResourceNotFound,
        Kind::Conflict => operation.conflict(),
        Kind::Taken if models(ErrorClass::ResourceConflict) => ErrorClass::ResourceConflict,
        Kind::Taken => operation.invalid(),
        Kind::Quota if models(ErrorClass::NetworkConnectorLimitExceeded) => {
            ErrorClass::NetworkConnectorLimitExceeded
        }
        Kind::Quota if models(ErrorClass::ServiceQuotaExceeded) => ErrorClass::ServiceQuotaExceeded,
        Kind::Quota => operation.invalid(),
        Kind::Capacity if models(ErrorClass::InsufficientCapacity) => ErrorClass::InsufficientCapacity,
        Kind::Capacity => operation.internal(),
        Kind::Throttled => operation.throttled(),
        Kind::Denied => ErrorClass::AccessDenied,
    }
}

/// What the caller cannot help. The service's own words may be about its inside.
fn ours(operation: &Operation, status: &Status, retry_after: Option<Duration>) -> Rejection {
    // A status with a source was made on this side: the service went away in the middle of the call.
    let away = std::error::Error::source(status).is_some()
        || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
    let store_away = errors::nobody_can_lead(status);
    let (message, after) = match (away, store_away) {
        (true, true) => (STORE_AWAY, Some(retry_after.unwrap_or(RETRY_AFTER))),
        (true, false) => (AWAY, Some(retry_after.unwrap_or(RETRY_AFTER))),
        (false, _) => (BUG, retry_after),
    };
    let rejection = Rejection::new(operation.internal(), message);
    after.into_iter().fold(rejection, |rejection, after| rejection.retry_after(seconds(after)))
}

/// Whole seconds, at least one.
fn seconds(after: Duration) -> u64 {
    let whole = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    whole.max(1)
}

#[cfg(test)]
mod tests {
    use api::errors;
    use aws_model::OperationName::{self, *};

    use super::*;

    fn told(operation: OperationName, status: &Status) -> (&'static str, u16, String) {
        let rejection = of(aws_model::operation(operation), status);
        (rejection.class.name(), rejection.class.status(), rejection.message.unwrap())
    }

    #[test]
    fn every_refusal_has_a_name_per_operation() {
        use Code::*;
        use reason::*;
        for (operation, code, reason, class, status) in [
            (RunMicrovm, InvalidArgument, INVALID_ARGUMENT, "ValidationException", 400),
            (
                CreateNetworkConnector,
                InvalidArgument,
                INVALID_ARGUMENT,
                "InvalidParameterValueException",
                400,
            ),
            (GetMicrovm, NotFound, NOT_FOUND, "ResourceNotFoundException", 404),
            (RunMicrovm, NotFound, NO_ACTIVE_VERSION, "ResourceNotFoundException", 404),
            (CreateMicrovmImage, AlreadyExists, ALREADY_EXISTS, "ValidationException", 400),
            (CreateNetworkConnector, AlreadyExists, ALREADY_EXISTS, "ResourceConflictException", 409),
            (CreateMicrovmImage, AlreadyExists, CLIENT_TOKEN_CONFLICT, "ConflictException", 409),
            (RunMicrovm, Aborted, CLIENT_TOKEN_CONFLICT, "ConflictException", 409),
            (UpdateMicrovmImageVersion, FailedPrecondition, STATE_CONFLICT, "ConflictException", 409),
            (TagResource, FailedPrecondition, STATE_CONFLICT, "ResourceConflictException", 409),
            (DeleteMicrovmImage, FailedPrecondition, NOT_DELETABLE, "ValidationException", 400),
            (DeleteMicrovmImage, FailedPrecondition, IMAGE_IN_USE, "ValidationException", 400),
            (SuspendMicrovm, FailedPrecondition, TERMINATED, "ValidationException", 400),
            (SuspendMicrovm, FailedPrecondition, HOOK_FAILED, "ConflictException", 409),
            (CreateMicrovmShellAuthToken, FailedPrecondition, SHELL_NOT_ALLOWED, "ValidationException", 400),
            (RunMicrovm, ResourceExhausted, QUOTA_EXCEEDED, "ServiceQuotaExceededException", 402),
            (
                CreateNetworkConnector,
                ResourceExhausted,
                QUOTA_EXCEEDED,
                "NetworkConnectorLimitExceededException",
                400,
            ),
            (RunMicrovm, ResourceExhausted, INSUFFICIENT_CAPACITY, "InsufficientCapacityException", 500),
            (SuspendMicrovm, ResourceExhausted, THROTTLED, "ThrottlingException", 429),
            (GetNetworkConnector, ResourceExhausted, THROTTLED, "TooManyRequestsException", 429),
        ] {
            let refused = errors::status(code, reason, "as it is", &[]);
            let expected = (class, status, "as it is".to_owned());
            assert_eq!(told(operation, &refused), expected, "{operation} {code:?} {reason}");
        }
    }

    #[test]
    fn what_the_caller_cannot_help_says_nothing_of_the_inside() {
        for (status, message) in [
            (errors::unavailable(reason::STORE_UNAVAILABLE, "etcd at 10.0.0.1", RETRY_AFTER), AWAY),
            (errors::nobody_leads("etcd at 10.0.0.1", RETRY_AFTER), STORE_AWAY),
            (Status::deadline_exceeded("x"), AWAY),
            (Status::from_error("connection reset".into()), AWAY),
            (errors::status(Code::Internal, reason::INTERNAL, "a panic", &[]), BUG),
            (Status::unknown("h2 protocol error"), BUG),
            (Status::unimplemented("no such call"), BUG),
            (Status::invalid_argument("without a reason"), BUG),
            (
                errors::status(Code::PermissionDenied, reason::PERMISSION_DENIED, "role", &[("role", "x")]),
                BUG,
            ),
        ] {
            let expected = ("InternalServerException", 500, message.to_owned());
            assert_eq!(told(GetMicrovm, &status), expected, "{status:?}");
            let expected = ("ServiceException", 500, message.to_owned());
            assert_eq!(told(GetNetworkConnector, &status), expected, "{status:?}");
        }
        let foreign = errors::status(
            Code::PermissionDenied,
            reason::PERMISSION_DENIED,
            "belongs to another account",
            &[("resource", "arn")],
        );
        assert_eq!(told(RunMicrovm, &foreign).0, "AccessDeniedException");
    }

    #[test]
    fn waits_are_whole_seconds() {
        for (millis, expected) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2500, 3)] {
            let operation = aws_model::operation(RunMicrovm);
            let rejection = throttled(operation, Duration::from_millis(millis));
            assert_eq!(rejection.retry_after_seconds, Some(expected));
        }
        let operation = aws_model::operation(GetMicrovm);
        let away = errors::unavailable(reason::NOT_HERE, "x", Duration::from_millis(2100));
        assert_eq!(of(operation, &away).retry_after_seconds, Some(3));
    }
}
