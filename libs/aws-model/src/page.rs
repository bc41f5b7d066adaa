//! Page tokens: opaque to callers, good only for the listing that gave them.
//!
//! ```text
//! base64url( version 1 | keyed digest, 16 bytes | the backend's token )
//! ```
//!
//! The digest covers the operation, its filters and the backend's token, so that a token that was changed, or is used with
//! other filters, is refused. Edges that share the key accept each other's tokens. What the backend put in is not hidden.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::error::Rejection;
use crate::input::Input;
use crate::operation::Service;

const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 16;

/// Longest token that is looked at, characters.
pub const PAGE_TOKEN_MAX: usize = 8192;

/// Seals and opens page tokens.
pub struct PageTokens {
    key: [u8; 32],
}

impl std::fmt::Debug for PageTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageTokens")
    }
}

impl PageTokens {
    /// Tokens under a key that all edges of a fleet share. Any secret will do; a context of its own keeps this use apart.
    pub fn new(secret: &[u8]) -> Self {
        Self { key: blake3::derive_key("torpor 2026 aws-model page tokens", secret) }
    }

    /// The token for the next page of `input`'s listing; the backend calls that page `inner`.
    pub fn seal(&self, input: &Input, inner: &str) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(&self.digest(input, inner.as_bytes()).as_bytes()[..DIGEST_BYTES]);
        bytes.extend(inner.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The backend's token in the token that `input` carries; empty when it carries none.
    ///
    /// # Errors
    /// 400 when the token is not one of ours, was changed, or belongs to another listing.
    pub fn open(&self, input: &Input) -> Result<String, Rejection> {
        let (member, _) = names(input);
        let Some(token) = input.members().text(member) else {
            return Ok(String::new());
        };
        self.unseal(input, token).ok_or_else(|| {
            let class = input.operation().invalid();
            Rejection::new(class, format!("The {member} is not valid for this request"))
        })
    }

    fn unseal(&self, input: &Input, token: &str) -> Option<String> {
        if token.len() > PAGE_TOKEN_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok()?;
        let (&version, rest) = bytes.split_first()?;
        let (digest, inner) = rest.split_at_checked(DIGEST_BYTES)?;
        let mut expected = [0; 32];
        expected[..DIGEST_BYTES].copy_from_slice(digest);
        let mut actual = *self.digest(input, inner).as_bytes();
        actual[DIGEST_BYTES..].fill(0);
        // The comparison of hashes takes the same time wherever they differ.
        let same = blake3::Hash::from_bytes(expected) == blake3::Hash::from_bytes(actual);
        if version != VERSION || !same {
            return None;
        }
        String::from_utf8(inner.to_vec()).ok()
    }

    fn digest(&self, input: &Input, inner: &[u8]) -> blake3::Hash {
        let (token, size) = names(input);
        let filters = input.members().iter().filter(|(name, _)| *name != token && *name != size);
        let filters: serde_json::Map<String, Value> =
            filters.map(|(name, value)| (name.clone(), value.clone())).collect();
        let listing = serde_json::json!([input.operation().name.as_str(), filters]).to_string();
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(listing.len() as u64).to_le_bytes());
        hasher.update(listing.as_bytes());
        hasher.update(inner);
        hasher.finalize()
    }
}

/// The members that carry the token and the page size.
fn names(input: &Input) -> (&'static str, &'static str) {
    match input.operation().service {
        Service::Microvms => ("nextToken", "maxResults"),
        Service::Core => ("Marker", "MaxItems"),
    }
}
