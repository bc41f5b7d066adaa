//! Refusals, in the words and with the status codes that AWS uses.

use crate::date::Timestamp;
use std::time::Duration;

/// Why a request is not let in. `Display` is the message for the client: no variant carries anything secret,
/// and what it repeats of the request is bounded (see [`crate::ECHO_LENGTH_MAX`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither an `Authorization` header nor a signature in the query.
    #[error("Missing Authentication Token")]
    MissingAuthenticationToken,

    /// There is a signature, but parts are absent or malformed: the whole message.
    #[error("{0}")]
    IncompleteSignature(String),

    /// Signed too long ago for the clock skew, or past its `X-Amz-Expires`.
    #[error(
        "Signature expired: {signed_at} is now earlier than {} ({now} - {})",
        now.before(*validity),
        minutes(*validity)
    )]
    Expired {
        /// The time that the client signed.
        signed_at: Timestamp,
        /// Our clock.
        now: Timestamp,
        /// How long such a signature is good for.
        validity: Duration,
    },

    /// Signed in our future, by more than the clock skew.
    #[error(
        "Signature not yet current: {signed_at} is still later than {} ({now} + {})",
        now.after(*skew),
        minutes(*skew)
    )]
    NotYetCurrent {
        /// The time that the client signed.
        signed_at: Timestamp,
        /// Our clock.
        now: Timestamp,
        /// The clock skew that is let pass.
        skew: Duration,
    },

    /// The credential names another region, service, terminator or day: the
    /// whole message, one sentence for each.
    #[error("{0}")]
    Scope(String),

    /// A header that a signature must cover is not in `SignedHeaders`: the header's name, in quotes.
    #[error("{0} must be a 'SignedHeader' in the AWS Authorization.")]
    HeaderNotSigned(String),

    /// Something that decides the signature's meaning is there twice: the whole message.
    #[error("{0}")]
    Ambiguous(String),

    /// All is well-formed and current, and the signature is another one.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
         Access Key and signing method. Consult the service documentation for details."
    )]
    SignatureDoesNotMatch,

    /// Nobody has this access key id, or the session token is not one of ours.
    /// Only the caller, who looks keys up, can find this.
    #[error("The security token included in the request is invalid.")]
    UnrecognizedClient,
}

impl Error {
    /// The exception's name, for `X-Amzn-Errortype`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::IncompleteSignature(_) => "IncompleteSignatureException",
            Self::Expired { .. }
            | Self::NotYetCurrent { .. }
            | Self::Scope(_)
            | Self::HeaderNotSigned(_)
            | Self::Ambiguous(_)
            | Self::SignatureDoesNotMatch => "InvalidSignatureException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
        }
    }

    /// The HTTP status code: 403 for each, which is what Lambda documents for
    /// `IncompleteSignature` too (other services answer that with 400).
    pub fn status(&self) -> u16 {
        403
    }
}

/// `5 min.`, or seconds where the duration is no whole number of minutes.
fn minutes(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds.is_multiple_of(60) => format!("{} min.", seconds / 60),
        seconds => format!("{seconds} sec."),
    }
}
