//! Verification of AWS Signature Version 4: the header form and the presigned
//! query form, for services that hash the once-encoded path again (all but S3).
//!
//! ```text
//! parse(request) -> UnverifiedSignature                shape: forms, parameters, dates, signed headers
//! Verifier::check(unverified, now)                     currency and scope; no secret needed
//! (caller looks the secret up by UnverifiedSignature::access_key_id)
//! Verifier::verify(unverified, secret, payload, now)   check again, then the signature
//! ```
//!
//! The order is AWS's order of refusals: a malformed signature is told before an expired one, an expired one
//! before an unknown key, an unknown key before a wrong signature. Nothing before `verify` reads the body, so
//! a request without a sound signature need not be buffered.
//!
//! The signature covers [`normal_path`], not the path as sent: whoever routes
//! must route on `normal_path`, or refuse paths that differ from it.
//!
//! What this does not do: look up keys, decide on session tokens, sign, read
//! clocks, chunked (`STREAMING-...`) payloads, SigV4A, remember signatures: while
//! one is current, whoever saw the request can send it again, as with AWS.

#![warn(missing_docs)]

mod canonical;
mod date;
mod error;
mod header_form;
mod query;
mod query_form;
mod secret;
mod unverified;
mod verifier;

pub use canonical::normal_path;
pub use date::Timestamp;
pub use error::Error;
pub use secret::{SECRET_LENGTH_MAX, Secret, SecretLength};
pub use unverified::{UnverifiedSignature, parse};
pub use verifier::{CLOCK_SKEW, Payload, SIGNING_KEYS_MAX, Verifier};

/// The one algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// How a credential's scope ends.
pub const TERMINATOR: &str = "aws4_request";

/// Longest `Authorization` header read, in bytes.
pub const AUTHORIZATION_LENGTH_MAX: usize = 8 * 1024;

/// Longest query read, in bytes.
pub const QUERY_LENGTH_MAX: usize = 32 * 1024;

/// Most parameters in a query.
pub const QUERY_PARAMETERS_MAX: usize = 512;

/// Most names in `SignedHeaders`.
pub const SIGNED_HEADERS_MAX: usize = 64;

/// Longest piece of the request that an error message repeats, in bytes.
pub const ECHO_LENGTH_MAX: usize = 256;

/// Longest life of a presigned request, in seconds: a week.
pub const EXPIRES_SECONDS_MAX: u64 = 604_800;

/// The head of a request, as it came in. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// HTTP/2's `:authority`, which stands for the header `host` where there is none. `None` over HTTP/1.
    pub authority: Option<&'a str>,
    /// The path, percent-encoded as sent, without the query.
    pub raw_path: &'a str,
    /// What followed the `?`, as sent; empty where there was none.
    pub raw_query: &'a str,
    /// All headers, as sent, repeated ones in order.
    pub headers: &'a http::HeaderMap,
}
