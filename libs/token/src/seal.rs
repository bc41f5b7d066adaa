//! Minting and verifying.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::claims::Claims;
use crate::keys::{Key, KeySet};

/// Longest token, in characters.
pub const TOKEN_LENGTH_MAX: usize = 8000;
const TAG: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error("there is no key to seal tokens with")]
    NoKey,
    #[error("the token would be longer than {TOKEN_LENGTH_MAX} characters")]
    TooLong,
    #[error("the system gives no randomness")]
    NoRandomness,
}

/// Why a token does not open anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("not a token")]
    Malformed,
    #[error("sealed with an unknown key")]
    UnknownKey,
    #[error("the seal is broken")]
    Bad,
    #[error("expired")]
    Expired,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kid: Uuid,
    alg: String,
    enc: String,
}

impl KeySet {
    /// Seals claims with the newest key.
    pub fn mint(&self, claims: &Claims) -> Result<String, MintError> {
        let key = self.newest().ok_or(MintError::NoKey)?;
        let header = Header { kid: key.id, alg: "dir".to_owned(), enc: "A256GCM".to_owned() };
        let header = serde_json::to_vec(&header).expect("a header of strings has a JSON form");
        let header = URL_SAFE_NO_PAD.encode(header);
        // Random nonces of 96 bits: a key may seal some 2^32 tokens, which rotation keeps far away.
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| MintError::NoRandomness)?;
        let mut body = serde_json::to_vec(claims).expect("claims have a JSON form");
        let tag = aead(key)
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(header.as_bytes()),
                &mut body,
            )
            .map_err(|_| MintError::TooLong)?;
        let [nonce, body, tag] = [&nonce[..], &body, tag.as_ref()].map(|part| URL_SAFE_NO_PAD.encode(part));
        let token = format!("{header}..{nonce}.{body}.{tag}");
        if token.len() > TOKEN_LENGTH_MAX { Err(MintError::TooLong) } else { Ok(token) }
    }

    /// Opens a token with whichever key sealed it. The seal is compared in
    /// constant time; nothing of the claims is looked at before it holds.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, VerifyError> {
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(VerifyError::Malformed);
        }
        let segments: Vec<&str> = token.splitn(6, '.').collect();
        let [header, "", nonce, body, tag] = segments[..] else {
            return Err(VerifyError::Malformed);
        };
        let decode = |segment: &str| URL_SAFE_NO_PAD.decode(segment).map_err(|_| VerifyError::Malformed);
        let parsed: Header = serde_json::from_slice(&decode(header)?).map_err(|_| VerifyError::Malformed)?;
        if parsed.alg != "dir" || parsed.enc != "A256GCM" {
            return Err(VerifyError::Malformed);
        }
        let nonce: [u8; NONCE_LEN] = decode(nonce)?.try_into().map_err(|_| VerifyError::Malformed)?;
        let mut sealed = decode(body)?;
        let tag = decode(tag)?;
        if tag.len() != TAG {
            return Err(VerifyError::Malformed);
        }
        let key = self.find(parsed.kid).ok_or(VerifyError::UnknownKey)?;
        sealed.extend_from_slice(&tag);
        let body = aead(key)
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(header.as_bytes()), &mut sealed)
            .map_err(|_| VerifyError::Bad)?;
        // Sealed by us and still not claims: made by a version that says more.
        let claims: Claims = serde_json::from_slice(body).map_err(|_| VerifyError::Bad)?;
        if claims.expires_at <= now { Err(VerifyError::Expired) } else { Ok(claims) }
    }
}

fn aead(key: &Key) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.secret()).expect("a key has the cipher's length"))
}
