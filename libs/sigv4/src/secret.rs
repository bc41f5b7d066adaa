//! Secret access keys and what is derived from them.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Longest secret access key taken, in bytes. AWS's have 40.
pub const SECRET_LENGTH_MAX: usize = 256;

/// A secret access key. Wiped when dropped; `Debug` shows none of it; equality
/// takes the same time wherever the difference is.
#[derive(Clone)]
pub struct Secret {
    text: Zeroizing<String>,
    fingerprint: Zeroizing<[u8; 32]>,
}

/// A secret access key that is empty or over [`SECRET_LENGTH_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret access key has 1 to {SECRET_LENGTH_MAX} bytes, this one has {length}")]
pub struct SecretLength {
    /// Bytes given.
    pub length: usize,
}

impl Secret {
    /// Takes the secret over.
    pub fn new(text: String) -> Result<Self, SecretLength> {
        let text = Zeroizing::new(text);
        if text.is_empty() || text.len() > SECRET_LENGTH_MAX {
            return Err(SecretLength { length: text.len() });
        }
        let fingerprint = Zeroizing::new(Sha256::digest(text.as_bytes()).into());
        Ok(Self { text, fingerprint })
    }

    /// The secret itself, for whoever must show or store it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the secret: tells whether something was derived from it.
    pub(crate) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The key for one day, region and service.
    pub(crate) fn signing_key(&self, day: &str, region: &str, service: &str) -> SigningKey {
        let mut start = Zeroizing::new(Vec::with_capacity("AWS4".len() + self.text.len()));
        start.extend_from_slice(b"AWS4");
        start.extend_from_slice(self.text.as_bytes());
        let day = Zeroizing::new(hmac(&start, day.as_bytes()));
        let region = Zeroizing::new(hmac(day.as_slice(), region.as_bytes()));
        let service = Zeroizing::new(hmac(region.as_slice(), service.as_bytes()));
        SigningKey(Zeroizing::new(hmac(service.as_slice(), crate::TERMINATOR.as_bytes())))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint.as_slice().ct_eq(other.fingerprint.as_slice()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// What signs, for one secret, day, region and service. Wiped when dropped.
#[derive(Clone)]
pub(crate) struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// The signature of a string to sign.
    pub(crate) fn sign(&self, string_to_sign: &[u8]) -> [u8; 32] {
        hmac(self.0.as_slice(), string_to_sign)
    }
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}
