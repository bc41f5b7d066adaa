//! Why a call cannot be answered as asked. One list, so that one place turns it into a wire status.

use std::time::Duration;

use model::state::MicrovmState;
use model::{ConnectorName, DomainName, HostId, ImageArn, ImageName, MicrovmId, VersionNumber, Violations};

use crate::domain::placement::NoRoom;

/// Why a call cannot be answered as asked; the text is for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(Violations),
    /// A rule with a sentence of its own; the sentence is the whole message.
    #[error("{sentence}")]
    Sentence { field: String, sentence: String },
    #[error("{0} belongs to another account")]
    ForeignAccount(String),
    #[error("MicroVM not found: {0}")]
    MicrovmNotFound(MicrovmId),
    #[error("host not found: {0}")]
    HostNotFound(HostId),
    #[error("No active version found for MicroVM image {image}{}", pinned(*.version))]
    NoActiveVersion { image: ImageArn, version: Option<VersionNumber> },
    #[error("Network connector not found for: {0}")]
    ConnectorNotFound(String),
    #[error("A network connector with the name '{0}' already exists in this account")]
    ConnectorExists(ConnectorName),
    #[error("{text}")]
    ConnectorState { arn: String, state: &'static str, text: String },
    #[error("MicroVM image not found: {0}")]
    ImageNotFound(ImageName),
    #[error("Own domain not found: {0}")]
    DomainNotFound(DomainName),
    /// Whose it is, is not for the caller to learn.
    #[error("The own domain '{0}' is bound already")]
    DomainExists(DomainName),
    #[error("Access key not found: {0}")]
    AccessKeyNotFound(String),
    /// Used before, expired, revoked, brought to another endpoint, or never made: which of them is not for the caller to learn.
    #[error("The link was used before or has expired.")]
    InvitationSpent,
    #[error("{}", shell(*.mixed))]
    ShellNotAllowed { id: MicrovmId, mixed: bool },
    #[error("The client token was used before with other parameters.")]
    TokenConflict,
    #[error("The MicroVM {0} has been terminated and its state cannot be changed.")]
    Terminated(MicrovmId),
    #[error("The MicroVM {id} is {state}; it cannot be {action} now.")]
    StateConflict {
        id: MicrovmId,
        state: MicrovmState,
        /// "suspended", "resumed", "kept awake".
        action: &'static str,
    },
    #[error("Too many calls wait for {0}.")]
    Busy(String),
    #[error("{0}.")]
    NoRoom(NoRoom),
    #[error("{text}")]
    Quota {
        /// Of what: "microvms", "connectors", "domains".
        quota: &'static str,
        limit: usize,
        text: String,
    },
    #[error("The base maximum allocated memory limit has been reached for this account.")]
    MemoryQuota {
        /// The limit, MiB.
        limit: u64,
        /// What microVMs that have not ended hold, MiB.
        allocated: u64,
        /// What this one asked for, MiB.
        asked: u64,
    },
    /// How far a host's clock is off, and what to do.
    #[error("{0}")]
    HostClock(String),
    #[error(
        "No new MicroVMs for now: etcd holds {used_mib} MiB of records, and from {percent} % of the {bound_mib} MiB of \
         etcd_bytes_max on only what lives is served. Lower the scheduler's retention_seconds or retained_max, or raise etcd's \
         --quota-backend-bytes and etcd_bytes_max."
    )]
    StoreFull { used_mib: u64, bound_mib: u64, percent: u64 },
    #[error("The host {host} is away; {why}.")]
    HostAway { host: HostId, why: &'static str, retry_after: Duration },
    /// The app's output is not kept any more.
    /// With why the microVM has ended, when it has: of a launch that failed that is all there is.
    #[error("The log of the MicroVM {id} is no longer available.{}", end.as_ref().map_or(String::new(), |reason| format!(" It has ended: {reason}")))]
    LogGone { id: MicrovmId, end: Option<String> },
    /// What the host answered; passed on as it is.
    #[error("{}", .0.message())]
    Host(Box<tonic::Status>),
    /// This replica does not lead, or stopped leading during the call.
    #[error("This scheduler does not lead; try again.")]
    NotLeading,
    #[error("The record store is out of reach: {0}")]
    Store(String),
    #[error("internal error: {0}")]
    Internal(String),
}

/// When asking again makes sense while a host is away.
const HOST_RETRY_AFTER: Duration = Duration::from_secs(1);

impl Refusal {
    pub fn away(host: &HostId, why: &'static str) -> Self {
        Self::HostAway { host: host.clone(), why, retry_after: HOST_RETRY_AFTER }
    }

    /// A rule with a sentence of its own.
    pub fn sentence(field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self::Sentence { field: field.into(), sentence: sentence.into() }
    }
}

fn shell(mixed: bool) -> &'static str {
    if mixed {
        "ALL_INGRESS cannot be combined with other ingress network connectors; use HTTP_INGRESS and/or \
         SHELL_INGRESS instead"
    } else {
        "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM."
    }
}

fn pinned(version: Option<VersionNumber>) -> String {
    version.map_or_else(String::new, |version| format!(" and version {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_service_we_match() {
        let image: ImageArn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:app".parse().unwrap();
        let id: MicrovmId = "microvm-0190a5e2-7c3b-3f00-8000-000000000001".parse().unwrap();
        for (refusal, text) in [
            (
                Refusal::NoActiveVersion { image: image.clone(), version: None },
                "No active version found for MicroVM image arn:aws:lambda:us-east-1:000000000000:microvm-image:app",
            ),
            (
                Refusal::NoActiveVersion { image, version: Some(VersionNumber::FIRST) },
                "No active version found for MicroVM image \
                 arn:aws:lambda:us-east-1:000000000000:microvm-image:app and version 1.0",
            ),
            (
                Refusal::Terminated(id.clone()),
                "The MicroVM microvm-0190a5e2-7c3b-3f00-8000-000000000001 has been terminated and its state \
                 cannot be changed.",
            ),
            (
                Refusal::MicrovmNotFound(id.clone()),
                "MicroVM not found: microvm-0190a5e2-7c3b-3f00-8000-000000000001",
            ),
            (
                Refusal::ShellNotAllowed { id: id.clone(), mixed: false },
                "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.",
            ),
            (
                Refusal::ShellNotAllowed { id, mixed: true },
                "ALL_INGRESS cannot be combined with other ingress network connectors; use HTTP_INGRESS \
                 and/or SHELL_INGRESS instead",
            ),
            (
                Refusal::MemoryQuota { limit: 1, allocated: 1, asked: 1 },
                "The base maximum allocated memory limit has been reached for this account.",
            ),
        ] {
            assert_eq!(refusal.to_string(), text);
        }
    }
}
