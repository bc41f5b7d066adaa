//! The one way to answer with an error: a gRPC code, a sentence for the caller, and `google.rpc` details
//! (`ErrorInfo` reason and metadata, field violations, retry delay). Clients branch on the reason, people
//! read the sentence.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// `ErrorInfo.domain` of every error Torpor makes.
pub const DOMAIN: &str = "torpor";

/// Longest message, and violations together, in bytes. A status travels in the headers, its message twice;
/// peers take 16 KiB of them, and drop the call when there is more.
pub const MESSAGE_LENGTH_MAX: usize = 2048;

/// Metadata key of the leader's address in [`not_leader`].
const LEADER: &str = "leader";

/// Longest value of the metadata, in bytes.
pub const METADATA_LENGTH_MAX: usize = 1024;

/// Reasons, `ErrorInfo.reason`. Part of the API: never renamed.
pub mod reason {
    /// A field breaks a rule; the violations name it.
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    /// Nothing has this id.
    pub const NOT_FOUND: &str = "NOT_FOUND";
    /// The name is taken.
    pub const ALREADY_EXISTS: &str = "ALREADY_EXISTS";
    /// The client token was used with other parameters.
    pub const CLIENT_TOKEN_CONFLICT: &str = "CLIENT_TOKEN_CONFLICT";
    /// The resource's state forbids the call.
    pub const STATE_CONFLICT: &str = "STATE_CONFLICT";
    /// The microVM has ended.
    pub const TERMINATED: &str = "TERMINATED";
    /// No version can be launched.
    pub const NO_ACTIVE_VERSION: &str = "NO_ACTIVE_VERSION";
    /// MicroVMs of the image are still alive.
    pub const IMAGE_IN_USE: &str = "IMAGE_IN_USE";
    /// The resource cannot be deleted as it is: it is being built, or is the last of its kind.
    pub const NOT_DELETABLE: &str = "NOT_DELETABLE";
    /// No host has room.
    pub const INSUFFICIENT_CAPACITY: &str = "INSUFFICIENT_CAPACITY";
    /// A configured limit is reached.
    pub const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";
    /// Stored bytes do not match their digest; nothing was started from them.
    pub const CORRUPT_OBJECT: &str = "CORRUPT_OBJECT";
    /// The command is older than the placement the host holds.
    pub const STALE_GENERATION: &str = "STALE_GENERATION";
    /// The host has had another lease since the command was sent.
    pub const LEASE_CHANGED: &str = "LEASE_CHANGED";
    /// The host does not hold the microVM.
    pub const NOT_HERE: &str = "NOT_HERE";
    /// This replica does not lead.
    pub const NOT_LEADER: &str = "NOT_LEADER";
    /// The host is out of disk.
    pub const DISK_FULL: &str = "DISK_FULL";
    /// The app's hook failed or timed out.
    pub const HOOK_FAILED: &str = "HOOK_FAILED";
    /// The guest did not answer or misbehaved.
    pub const GUEST_FAILED: &str = "GUEST_FAILED";
    /// The engine failed.
    pub const ENGINE_FAILED: &str = "ENGINE_FAILED";
    /// A store (etcd, S3) is out of reach for now.
    pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
    /// Calls come faster than is allowed; the retry delay says when to go on.
    pub const THROTTLED: &str = "THROTTLED";
    /// The microVM's ingress connectors do not let a shell in.
    pub const SHELL_NOT_ALLOWED: &str = "SHELL_NOT_ALLOWED";
    /// The clock of the host differs too much from the scheduler's.
    pub const CLOCK_DIFFERS: &str = "CLOCK_DIFFERS";
    /// The caller's certificate has no right to the call.
    pub const PERMISSION_DENIED: &str = "PERMISSION_DENIED";
    /// A bug.
    pub const INTERNAL: &str = "INTERNAL";
}

/// The text, or as much of it as fits, whole characters, with an ellipsis.
fn clip(text: &str, length_max: usize) -> String {
    const MORE: &str = "…";
    if text.len() <= length_max {
        return text.to_owned();
    }
    let mut end = length_max - MORE.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MORE}", &text[..end])
}

/// An error with a reason and, optionally, metadata. Long texts are cut, see [`MESSAGE_LENGTH_MAX`].
#[must_use]
pub fn status(code: Code, reason: &str, message: impl Into<String>, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), clip(value, METADATA_LENGTH_MAX))).collect();
    Status::with_error_details(
        code,
        clip(&message.into(), MESSAGE_LENGTH_MAX),
        ErrorDetails::with_error_info(reason, DOMAIN, metadata),
    )
}

/// INVALID_ARGUMENT naming every violated field: `(path, description)`. In the message a description that is
/// a sentence (it begins with a capital letter) stands by itself, any other behind its field. What does not
/// fit is left out, see [`MESSAGE_LENGTH_MAX`].
#[must_use]
pub fn invalid(violations: &[(String, String)]) -> Status {
    let mut details = ErrorDetails::with_error_info(reason::INVALID_ARGUMENT, DOMAIN, HashMap::new());
    let mut room = MESSAGE_LENGTH_MAX;
    for (field, description) in violations {
        let Some(rest) = room.checked_sub(field.len() + description.len()) else {
            break;
        };
        details.add_bad_request_violation(field, description);
        room = rest;
    }
    let message = violations
        .iter()
        .map(|(field, description)| match description.starts_with(|first: char| first.is_uppercase()) {
            true => description.clone(),
            false => format!("{field}: {description}"),
        })
        .collect::<Vec<_>>()
        .join("; ");
    Status::with_error_details(Code::InvalidArgument, clip(&message, MESSAGE_LENGTH_MAX), details)
}

/// INVALID_ARGUMENT of one field, with a sentence as the whole message.
#[must_use]
pub fn invalid_sentence(field: &str, sentence: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(reason::INVALID_ARGUMENT, DOMAIN, HashMap::new());
    let sentence = clip(sentence, MESSAGE_LENGTH_MAX);
    details.add_bad_request_violation(clip(field, METADATA_LENGTH_MAX), &sentence);
    Status::with_error_details(Code::InvalidArgument, sentence, details)
}

/// NOT_FOUND for a resource: kind ("microVM") and the name asked for.
#[must_use]
pub fn not_found(kind: &str, name: &str) -> Status {
    status(Code::NotFound, reason::NOT_FOUND, format!("{kind} not found: {name}"), &[("resource", name)])
}

/// UNAVAILABLE with a delay after which a retry makes sense.
#[must_use]
pub fn unavailable(reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(retry_after));
    let message = clip(&message.into(), MESSAGE_LENGTH_MAX);
    Status::with_error_details(Code::Unavailable, message, details)
}

/// UNAVAILABLE of a replica that does not lead, with the leader's address as far as
/// it is known, so that a caller can go there.
#[must_use]
pub fn not_leader(leader: &str, retry_after: Duration) -> Status {
    let metadata = HashMap::from([(LEADER.to_owned(), clip(leader, METADATA_LENGTH_MAX))]);
    let mut details = ErrorDetails::with_error_info(reason::NOT_LEADER, DOMAIN, metadata);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::Unavailable, "This scheduler does not lead.", details)
}

/// UNAVAILABLE of a replica of a service of which nobody can lead: its store is away, as far as this replica can see. Another
/// may see more.
#[must_use]
pub fn nobody_leads(message: impl Into<String>, retry_after: Duration) -> Status {
    let metadata = HashMap::from([(LEADER.to_owned(), String::new())]);
    let mut details = ErrorDetails::with_error_info(reason::STORE_UNAVAILABLE, DOMAIN, metadata);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::Unavailable, clip(&message.into(), MESSAGE_LENGTH_MAX), details)
}

/// Whether an error is of a replica that sees no store to be elected by: [`nobody_leads`].
#[must_use]
pub fn nobody_can_lead(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == reason::STORE_UNAVAILABLE && info.metadata.contains_key(LEADER))
}

/// The address that a replica named in [`not_leader`].
#[must_use]
pub fn leader_of(status: &Status) -> Option<String> {
    let info = status.get_details_error_info().filter(|info| info.reason == reason::NOT_LEADER)?;
    info.metadata.get(LEADER).filter(|leader| !leader.is_empty()).cloned()
}

/// The `ErrorInfo.reason` of an error, if it carries one.
#[must_use]
pub fn reason_of(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_outgrows_the_headers() {
        const HEADERS_MAX: usize = 16 * 1024;
        let long = "é ".repeat(20_000);
        let many: Vec<_> = (0..1000).map(|i| (format!("field[{i}]"), "must be shorter".to_owned())).collect();
        for refused in [
            not_found("image", &long),
            invalid_sentence(&long, &long),
            invalid(&many),
            invalid(&[(long.clone(), long.clone())]),
            unavailable(reason::STORE_UNAVAILABLE, long.clone(), Duration::ZERO),
        ] {
            let headers = refused.into_http::<()>().into_parts().0.headers;
            let size: usize =
                headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(size < HEADERS_MAX, "{size} bytes");
        }
        assert_eq!(invalid(&many).get_details_bad_request().unwrap().field_violations[0].field, "field[0]");
    }

    #[test]
    fn sentences_stand_by_themselves_and_fragments_behind_their_field() {
        let violations = [("a.b", "must be 1 to 5"), ("c", "Key 'X' is reserved")]
            .map(|(field, text)| (field.to_owned(), text.to_owned()));
        let status = invalid(&violations);
        assert_eq!(status.message(), "a.b: must be 1 to 5; Key 'X' is reserved");
        let fields: Vec<String> = status
            .get_details_bad_request()
            .map(|found| found.field_violations.into_iter().map(|one| one.field).collect())
            .unwrap_or_default();
        assert_eq!(fields, ["a.b", "c"]);
        assert_eq!(reason_of(&status).as_deref(), Some(reason::INVALID_ARGUMENT));
    }
}
