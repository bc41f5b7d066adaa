//! What an error of a host or of the scheduler means for a build: try again, or
//! fail with a sentence for the caller.

use std::collections::HashMap;
use std::time::Duration;

use api::errors::reason;
use api::image::v1::BuildStep;
use tonic::Code;

use crate::domain::build_error::{BuildError, Reason, iso8601};

/// An error as it came over the wire.
#[derive(Debug, Clone)]
pub struct PeerError {
    pub code: Code,
    /// `ErrorInfo.reason`; empty when there is none.
    pub reason: String,
    /// `ErrorInfo.metadata`.
    pub metadata: HashMap<String, String>,
    pub message: String,
}

/// Windows of the hooks that a bake calls.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    pub ready: Duration,
    pub validate: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BakeDecision {
    /// The same bake may work later or elsewhere.
    Retry(BuildError),
    /// It will not.
    Fail(BuildError),
}

/// Decides what an error means that came while the bake was in `step`.
pub fn decide(step: BuildStep, error: &PeerError, windows: Windows) -> BakeDecision {
    let message = sentence(&error.message);
    let fail = |kind: Reason, sentence: String| BakeDecision::Fail(BuildError::new(step, kind, sentence));
    match error.reason.as_str() {
        reason::HOOK_FAILED => hook(error, windows, message),
        reason::GUEST_FAILED => {
            let exit_code = error.metadata.get("exit_code").filter(|code| !code.is_empty());
            match (error.metadata.get("outcome").map(String::as_str), exit_code) {
                (Some("app_exited"), Some(code)) => fail(
                    Reason::AppExited,
                    format!("The application exited with status {code} before it was ready."),
                ),
                (Some("app_exited"), None) => fail(Reason::AppExited, message),
                _ => fail(Reason::GuestFailed, message),
            }
        }
        reason::DISK_FULL => fail(Reason::DiskStorageFull, message),
        reason::CORRUPT_OBJECT | reason::INVALID_ARGUMENT => fail(Reason::InternalPlatformError, message),
        reason::INSUFFICIENT_CAPACITY => {
            BakeDecision::Retry(BuildError::new(step, Reason::InsufficientCapacity, message))
        }
        reason::ENGINE_FAILED => BakeDecision::Retry(BuildError::new(step, Reason::GuestFailed, message)),
        _ => match error.code {
            // The host or the way to it broke; UNKNOWN is what a cut connection gives.
            Code::Unavailable
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted => {
                let message = format!("A host did not finish the bake: {message}");
                BakeDecision::Retry(BuildError::new(step, Reason::DependencyUnavailable, message))
            }
            _ => fail(Reason::InternalPlatformError, message),
        },
    }
}

fn hook(error: &PeerError, windows: Windows, message: String) -> BakeDecision {
    let validate = error.metadata.get("hook").is_some_and(|hook| hook == "validate");
    let (step, name, window) = match validate {
        true => (BuildStep::Validate, "Validate", windows.validate),
        false => (BuildStep::Bake, "Ready", windows.ready),
    };
    let status: u32 = error.metadata.get("http_status").and_then(|text| text.parse().ok()).unwrap_or(0);
    if error.metadata.get("outcome").is_some_and(|outcome| outcome == "timed_out") {
        let text = format!("{name} hook invocation timed out after {}", iso8601(window));
        let kind = if validate { Reason::HookFailed } else { Reason::ReadyHookTimeout };
        return BakeDecision::Fail(BuildError::new(step, kind, text));
    }
    let text = match status / 100 {
        4 => {
            format!("{name} hook check failed: the application returned a client error (HTTP 4xx) response.")
        }
        5 => {
            format!("{name} hook check failed: the application returned a server error (HTTP 5xx) response.")
        }
        _ => message,
    };
    BakeDecision::Fail(BuildError::new(step, Reason::HookFailed, text))
}

/// A message as a sentence: capital first, full stop last.
fn sentence(message: &str) -> String {
    let trimmed = message.trim();
    let mut characters = trimmed.chars();
    let Some(first) = characters.next() else {
        return "The host gave no reason.".to_owned();
    };
    let mut text: String = first.to_uppercase().chain(characters).collect();
    if !text.ends_with(['.', '!', '?']) {
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows = Windows { ready: Duration::from_secs(300), validate: Duration::from_secs(30) };

    fn error(code: Code, reason: &str, metadata: &[(&str, &str)], message: &str) -> PeerError {
        PeerError {
            code,
            reason: reason.to_owned(),
            metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn apps_failures_are_final_and_say_what_the_app_did() {
        let code = Code::FailedPrecondition;
        for (reason, metadata, kind, text) in [
            (
                "HOOK_FAILED",
                vec![("hook", "ready"), ("outcome", "timed_out")],
                Reason::ReadyHookTimeout,
                "Ready hook invocation timed out after PT5M",
            ),
            (
                "HOOK_FAILED",
                vec![("hook", "ready"), ("http_status", "404")],
                Reason::HookFailed,
                "Ready hook check failed: the application returned a client error (HTTP 4xx) response.",
            ),
            (
                "HOOK_FAILED",
                vec![("hook", "validate"), ("http_status", "500")],
                Reason::HookFailed,
                "Validate hook check failed: the application returned a server error (HTTP 5xx) response.",
            ),
            (
                "GUEST_FAILED",
                vec![("outcome", "app_exited"), ("exit_code", "3")],
                Reason::AppExited,
                "The application exited with status 3 before it was ready.",
            ),
            ("GUEST_FAILED", vec![("outcome", "timed_out")], Reason::GuestFailed, "It broke."),
            ("DISK_FULL", vec![], Reason::DiskStorageFull, "It broke."),
            ("CORRUPT_OBJECT", vec![], Reason::InternalPlatformError, "It broke."),
        ] {
            let decision = decide(BuildStep::Bake, &error(code, reason, &metadata, "it broke"), WINDOWS);
            let BakeDecision::Fail(failure) = decision else { panic!("{reason} is retried") };
            assert_eq!((failure.reason, failure.sentence.as_str()), (kind, text));
        }
    }

    #[test]
    fn hosts_failures_are_retried() {
        for (code, reason) in [
            (Code::Unavailable, ""),
            (Code::Unknown, ""),
            (Code::Aborted, "STATE_CONFLICT"),
            (Code::ResourceExhausted, "INSUFFICIENT_CAPACITY"),
            (Code::Internal, "ENGINE_FAILED"),
        ] {
            let decision = decide(BuildStep::Bake, &error(code, reason, &[], "x"), WINDOWS);
            assert!(matches!(decision, BakeDecision::Retry(_)), "{code:?} {reason}");
        }
        let decision = decide(BuildStep::Bake, &error(Code::Internal, "INTERNAL", &[], "x"), WINDOWS);
        assert!(matches!(decision, BakeDecision::Fail(_)));
    }
}
