//! Why a call cannot be answered as asked. One list, so that one place turns it
//! into a wire status.

use std::time::Duration;

use model::state::MicrovmState;
use model::{HostId, ImageArn, MicrovmId, VersionNumber, Violations};

use crate::domain::placement::NoRoom;

/// Why a call cannot be answered as asked; the text is for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Fields break rules.
    #[error("{0}")]
    Invalid(Violations),
    /// No such microVM.
    #[error("MicroVM not found: {0}")]
    MicrovmNotFound(MicrovmId),
    /// No such host.
    #[error("host not found: {0}")]
    HostNotFound(HostId),
    /// Nothing of the image can be launched.
    #[error("No active version found for MicroVM image {image}{}", pinned(*.version))]
    NoActiveVersion {
        /// The image.
        image: ImageArn,
        /// The version, if the caller named one.
        version: Option<VersionNumber>,
    },
    /// The client token belongs to another request.
    #[error("The client token was used before with other parameters.")]
    TokenConflict,
    /// The microVM has ended.
    #[error("The MicroVM {0} has been terminated and its state cannot be changed.")]
    Terminated(MicrovmId),
    /// The state forbids the call.
    #[error("The MicroVM {id} is {state}; it cannot be {action} now.")]
    StateConflict {
        /// The microVM.
        id: MicrovmId,
        /// Its state.
        state: MicrovmState,
        /// "suspended", "resumed".
        action: &'static str,
    },
    /// Too many calls wait for the same microVM.
    #[error("Too many calls wait for the MicroVM {0}.")]
    Busy(MicrovmId),
    /// No host has room.
    #[error("{0}.")]
    NoRoom(NoRoom),
    /// The fleet holds as many microVMs as it may.
    #[error("The limit of {limit} MicroVMs is reached.")]
    Quota {
        /// The limit.
        limit: usize,
    },
    /// The host that is needed is away for now.
    #[error("The host {host} is away; {why}.")]
    HostAway {
        /// The host.
        host: HostId,
        /// What that means for the call.
        why: &'static str,
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// The app's output is not kept any more.
    #[error("The log of the MicroVM {0} is no longer available.")]
    LogGone(MicrovmId),
    /// What the host answered; passed on as it is.
    #[error("{}", .0.message())]
    Host(Box<tonic::Status>),
    /// This replica does not lead, or stopped leading during the call.
    #[error("This scheduler does not lead; try again.")]
    NotLeading,
    /// The store refused or is out of reach.
    #[error("The record store is out of reach: {0}")]
    Store(String),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

fn pinned(version: Option<VersionNumber>) -> String {
    version.map_or_else(String::new, |version| format!(" and version {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_service_we_match() {
        let image: ImageArn = "arn:aws:lambda:local-1:000000000000:microvm-image:app"
            .parse()
            .unwrap();
        let id: MicrovmId = "microvm-0190a5e2-7c3b-3f00-8000-000000000001".parse().unwrap();
        for (refusal, text) in [
            (
                Refusal::NoActiveVersion {
                    image: image.clone(),
                    version: None,
                },
                "No active version found for MicroVM image arn:aws:lambda:local-1:000000000000:microvm-image:app",
            ),
            (
                Refusal::NoActiveVersion {
                    image,
                    version: Some(VersionNumber::FIRST),
                },
                "No active version found for MicroVM image \
                 arn:aws:lambda:local-1:000000000000:microvm-image:app and version 1.0",
            ),
            (
                Refusal::Terminated(id.clone()),
                "The MicroVM microvm-0190a5e2-7c3b-3f00-8000-000000000001 has been terminated and its state \
                 cannot be changed.",
            ),
            (
                Refusal::MicrovmNotFound(id),
                "MicroVM not found: microvm-0190a5e2-7c3b-3f00-8000-000000000001",
            ),
        ] {
            assert_eq!(refusal.to_string(), text);
        }
    }
}
