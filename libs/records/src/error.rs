//! Why a call failed, and whether a write may have happened all the same.

use std::error::Error as StdError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is not as the caller expected; nothing was written.
    #[error("{key} changed meanwhile")]
    Conflict {
        /// The first key that differs, without root prefix.
        key: String,
    },
    /// The guarding leadership is over; nothing was written.
    #[error("leadership was lost")]
    LeadershipLost,
    /// The lease is over; nothing was written.
    #[error("lease has ended")]
    LeaseLost,
    /// A key, value, list or transaction is over its bound; nothing was written.
    #[error("{what} exceeds its limit of {limit}")]
    TooLarge { what: String, limit: usize },
    /// etcd did not answer in time or is out of reach.
    #[error("etcd is unavailable: {detail}")]
    Unavailable {
        /// True when a write certainly did not happen.
        determinate: bool,
        detail: String,
    },
    /// etcd answered no (credentials, a bad argument); repeating will not help.
    #[error("etcd refused: {detail}")]
    Refused { detail: String },
    /// A setting does not make sense (address, certificate file).
    #[error("etcd settings: {detail}")]
    Settings { detail: String },
}

impl Error {
    /// False when a write may or may not have happened: read before deciding.
    #[must_use]
    pub fn is_determinate(&self) -> bool {
        !matches!(self, Self::Unavailable { determinate: false, .. })
    }

    /// True when trying again later makes sense.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// What etcd says of a write under a lease that it does not know any more: nothing was written.
    pub(crate) fn or_lease_lost(self) -> Self {
        match self {
            Self::Refused { detail } if detail.contains("lease not found") => Self::LeaseLost,
            other => other,
        }
    }

    pub(crate) fn timeout(what: &str) -> Self {
        Self::Unavailable { determinate: false, detail: format!("{what} timed out") }
    }

    /// Sorts an etcd-client error. A refused connection proves that the request
    /// was never sent; everything else that broke on the way proves nothing.
    pub(crate) fn from_etcd(error: etcd_client::Error) -> Self {
        use etcd_client::Error as E;
        let determinate = never_sent(&error);
        match error {
            // Somebody's rights changed between the look at ours and the call.
            E::GRpcStatus(status) if RIGHTS_CHANGED.iter().any(|said| status.message().contains(said)) => {
                Self::Unavailable { determinate: true, detail: status.message().to_owned() }
            }
            E::GRpcStatus(status) => match CODES_RETRYABLE.contains(&(status.code() as i32)) {
                true => Self::Unavailable {
                    determinate: determinate || status_never_sent(&status),
                    detail: status.message().to_owned(),
                },
                false => Self::Refused { detail: format!("{:?}: {}", status.code(), status.message()) },
            },
            E::InvalidArgs(detail) => Self::Refused { detail },
            E::InvalidUri(source) => Self::Settings { detail: source.to_string() },
            other => Self::Unavailable { determinate, detail: other.to_string() },
        }
    }
}

/// gRPC codes after which trying again makes sense: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED,
/// RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE. (etcd answers UNKNOWN and INTERNAL while it stops.)
const CODES_RETRYABLE: [i32; 7] = [1, 2, 4, 8, 10, 13, 14];

/// What etcd says when rights changed under a call, which it did not do then.
const RIGHTS_CHANGED: [&str; 2] = ["revision of auth store is old", "revision in header is old"];

fn never_sent(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::TransportError(source) => refused(source),
        _ => false,
    }
}

fn status_never_sent(status: &(dyn StdError + 'static)) -> bool {
    refused(status)
}

fn refused(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        next = current.source();
    }
    false
}
