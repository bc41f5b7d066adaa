//! Tokens that open a microVM's endpoint: sealed by the scheduler, opened by
//! the edge, opaque to everybody else.
//!
//! A token is a compact JWE with direct encryption, five segments of base64url without padding:
//!
//! ```text
//! {"kid":"<uuid>","alg":"dir","enc":"A256GCM"} . (empty) . nonce . claims . tag
//! ```
//!
//! The key never travels, so whoever can open a token could have made it: the
//! keys belong to the control plane and the edges only. Tokens are short-lived, and a
//! key set that drops a key drops its tokens. A token says how often the tokens of its
//! microVM had been revoked when it was made: who knows that number as it is now knows,
//! without asking anybody, whether the token is still good.
//!
//! What this does not do: keep keys, rotate them, read clocks. Times are seconds since 1970 and passed in.

mod claims;
mod keys;
mod scope;
mod seal;

pub use claims::{Claims, Kind, PortScope};
pub use keys::{Key, KeySet, KeySetError};
pub use scope::is_plain_path;
pub use seal::{MintError, TOKEN_LENGTH_MAX, VerifyError};

/// Header that carries a token.
pub const AUTH_HEADER: &str = "X-aws-proxy-auth";
