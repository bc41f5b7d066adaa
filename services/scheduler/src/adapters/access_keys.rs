//! Access keys in etcd, `access-keys/<id>`: written here, watched by the edges.
//! Their secrets pass through and are never kept in memory.

use api::access::v1::{AccessKey, StoredAccessKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;

pub const PREFIX: &str = "access-keys/";
pub const ID_PREFIX: &str = "AKIA";
pub const ID_LENGTH: usize = 20;
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Random bytes of a secret: 40 characters of base64.
const SECRET_BYTES: usize = 30;

#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

/// A fresh id and secret, 80 and 240 random bits.
pub fn generate() -> Result<(String, String), NoRandomness> {
    let mut id = [0; ID_LENGTH - ID_PREFIX.len()];
    let mut secret = [0; SECRET_BYTES];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| NoRandomness)?;
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| NoRandomness)?;
    // 256 is a multiple of 32: every character is as likely as every other.
    let tail = id.iter().map(|byte| char::from(ID_ALPHABET[usize::from(byte % 32)]));
    Ok((ID_PREFIX.chars().chain(tail).collect(), STANDARD.encode(secret)))
}

/// Whether text has the form of an id.
pub fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    text.len() == ID_LENGTH && text.starts_with(ID_PREFIX) && text.chars().all(allowed)
}

pub fn encode(stored: &StoredAccessKey) -> Vec<u8> {
    stored.encode_to_vec()
}

/// A key from bytes, without its secret; `None` when they are not one.
pub fn decode(bytes: &[u8]) -> Option<AccessKey> {
    StoredAccessKey::decode(bytes).ok()?.access_key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_and_secrets_have_their_form_and_do_not_repeat() {
        let made: Vec<_> = (0..200).map(|_| generate().unwrap()).collect();
        for (id, secret) in &made {
            assert!(is_id(id), "{id}");
            assert_eq!(secret.len(), 40);
        }
        let ids: HashSet<_> = made.iter().map(|(id, _)| id).collect();
        let secrets: HashSet<_> = made.iter().map(|(_, secret)| secret).collect();
        assert_eq!((ids.len(), secrets.len()), (200, 200));
        for character in ID_ALPHABET {
            let used = ids.iter().any(|id| id.as_bytes()[4..].contains(character));
            assert!(used, "{} never came", char::from(*character));
        }
        for text in ["", "AKIA", "AKIAabcdefghijklmnop", "ASIAAAAAAAAAAAAAAAAA", "AKIA/AAAAAAAAAAAAAAA"] {
            assert!(!is_id(text), "{text}");
        }
    }
}
