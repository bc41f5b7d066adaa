//! The edge's own answers, those that no app gave, as errors with a next step.

use api::microvm::v1::{Microvm, MicrovmState};
use http::header::{CONTENT_LENGTH, DATE, HeaderName, RETRY_AFTER};

use super::Session;
use super::curl::Shown;
use super::microvm::fetch;
use crate::error::{CliError, Kind};

/// What is wrong, in a word; the edge takes it out of what apps answer.
pub const ERROR: &str = "x-aws-proxy-error";
/// Headers that the edge's own answers may have.
const OWN: [HeaderName; 4] = [CONTENT_LENGTH, DATE, RETRY_AFTER, HeaderName::from_static("x-amzn-requestid")];

/// The error in an answer of the edge's own; `None` for an answer of the app.
pub async fn of(session: &Session, id: &str, port: u16, shown: &Shown) -> Result<Option<CliError>, CliError> {
    let status = shown.head.status.as_u16();
    if let Some(error) = shown.head.headers.get(ERROR) {
        let said = String::from_utf8_lossy(&shown.start);
        return Ok(Some(named(&String::from_utf8_lossy(error.as_bytes()), &said, id, port)));
    }
    // Without the header it is told by what an app's answer has and the edge's has not.
    if !shown.start.is_empty() || !shown.head.headers.keys().all(|name| OWN.contains(name)) {
        return Ok(None);
    }
    let retry_after = shown.head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Ok(match (status, retry_after) {
        (502, _) => asleep(&fetch(session, id).await?),
        (429, Some(seconds)) => Some(
            CliError::new(
                Kind::Unavailable,
                "the edge answered 429: the microVM has all the requests that it may have, or its host has no room to \
                 wake it",
            )
            .next(format!("try again in {seconds} s, or wake it on another host: torpor resume {id}")),
        ),
        (503, Some(seconds)) => Some(
            CliError::new(Kind::Unavailable, "the edge answered 503: it does not know this microVM yet")
                .next(format!("try again in {seconds} s; see torpor status")),
        ),
        _ => None,
    })
}

fn named(error: &str, said: &str, id: &str, port: u16) -> CliError {
    match error {
        "APP_CONNECT_FAILED" => CliError::new(
            Kind::Unavailable,
            format!("{error}: nothing answers on port {port} of the microVM"),
        )
        .next(format!(
            "name the port that the app listens on with --port, or read its log: torpor logs {id}"
        )),
        "MICROVM_CONNECT_FAILED" => {
            CliError::new(Kind::Unavailable, format!("{error}: the microVM has ended"))
                .next(format!("see its state: torpor get {id}"))
        }
        "SCOPE_DENIED" => CliError::failed(format!("{error}: {said}"))
            .next("make a token that opens it: torpor token ID --path PATH --method METHOD"),
        _ => CliError::failed(format!("{error}: {said}"))
            .next("make a token for this microVM and port: torpor token ID --port PORT"),
    }
}

/// Why a request did not wake a microVM; `None` when it does not sleep.
fn asleep(microvm: &Microvm) -> Option<CliError> {
    let id = &microvm.microvm_id;
    if microvm.state() != MicrovmState::Suspended {
        return None;
    }
    let (why, next) = match &microvm.idle_policy {
        None => (
            "is asleep, and without an idle policy no request wakes it",
            "; torpor run --idle TIME gives one",
        ),
        Some(policy) if !policy.auto_resume_enabled => {
            ("is asleep, and its idle policy lets no request wake it", "")
        }
        Some(_) => ("is asleep and could not be woken", ", which says why it fails"),
    };
    Some(
        CliError::new(Kind::Conflict, format!("{id} {why}"))
            .next(format!("wake it: torpor resume {id}{next}")),
    )
}

#[cfg(test)]
mod tests {
    use api::common::v1::IdlePolicy;

    use super::*;

    #[test]
    fn errors_of_the_edge_say_what_to_do() {
        for (error, said, message, next) in [
            ("APP_CONNECT_FAILED", "", "nothing answers on port 9000", "--port"),
            ("MICROVM_CONNECT_FAILED", "", "the microVM has ended", "torpor get id"),
            ("UNAUTHORIZED", "Access to port denied", "UNAUTHORIZED: Access to port denied", "torpor token"),
        ] {
            let found = named(error, said, "id", 9000);
            assert!(found.message.contains(message), "{}", found.message);
            assert!(found.next.is_some_and(|text| text.contains(next)), "{error}");
            assert_ne!(found.kind.code(), 0);
        }
    }

    #[test]
    fn a_sleeper_that_no_request_wakes_is_to_be_resumed() {
        let mut microvm = Microvm { microvm_id: "microvm-1".to_owned(), ..Microvm::default() };
        microvm.set_state(MicrovmState::Running);
        assert!(asleep(&microvm).is_none(), "then it is the app's answer");
        microvm.set_state(MicrovmState::Suspended);
        for (policy, message) in [
            (None, "without an idle policy no request wakes it"),
            (Some(IdlePolicy::default()), "lets no request wake it"),
            (Some(IdlePolicy { auto_resume_enabled: true, ..IdlePolicy::default() }), "could not be woken"),
        ] {
            microvm.idle_policy = policy;
            let error = asleep(&microvm).unwrap();
            assert!(error.message.contains(message), "{}", error.message);
            assert!(error.next.is_some_and(|next| next.contains("torpor resume microvm-1")));
            assert_eq!(error.kind, Kind::Conflict);
        }
    }
}
