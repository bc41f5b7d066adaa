//! Keys: the newest seals, all open.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Bytes of key material.
pub(crate) const SECRET: usize = 32;
/// Most keys in a set: rotation needs two or three.
const KEYS_MAX: usize = 32;

/// One key. Its serialized form holds the secret; its `Debug` does not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its id, the token header's "kid".
    pub id: Uuid,
    /// When it was made, in seconds since 1970; orders the keys.
    pub created_at: u64,
    #[serde(serialize_with = "secret_out", deserialize_with = "secret_in")]
    secret: [u8; SECRET],
}

impl Key {
    /// A fresh random key.
    pub fn generate(now: u64) -> Result<Self, KeySetError> {
        let mut secret = [0; SECRET];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| KeySetError::NoRandomness)?;
        Ok(Self { id: Uuid::new_v4(), created_at: now, secret })
    }

    pub(crate) fn secret(&self) -> &[u8; SECRET] {
        &self.secret
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

fn secret_out<S: Serializer>(secret: &[u8; SECRET], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(secret))
}

fn secret_in<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; SECRET], D::Error> {
    // The text is kept out of the error: it is a secret, if a broken one.
    let bytes = STANDARD.decode(String::deserialize(deserializer)?).unwrap_or_default();
    bytes.try_into().map_err(|_| serde::de::Error::custom("a key's secret is 32 bytes of base64"))
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("the system gives no randomness")]
    NoRandomness,
    #[error("more than {KEYS_MAX} keys")]
    TooMany,
}

/// Several keys, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Key>", into = "Vec<Key>")]
pub struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// A set of the given keys, in any order; of two with one id the first stays.
    pub fn new(mut keys: Vec<Key>) -> Result<Self, KeySetError> {
        if keys.len() > KEYS_MAX {
            return Err(KeySetError::TooMany);
        }
        // The id breaks ties, so that every process picks the same newest key.
        keys.sort_by_key(|key| (std::cmp::Reverse(key.created_at), key.id));
        keys.dedup_by_key(|key| key.id);
        Ok(Self { keys })
    }

    /// The keys, newest first.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The key that seals.
    #[must_use]
    pub fn newest(&self) -> Option<&Key> {
        self.keys.first()
    }

    #[must_use]
    pub fn find(&self, id: Uuid) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }
}

impl TryFrom<Vec<Key>> for KeySet {
    type Error = KeySetError;

    fn try_from(keys: Vec<Key>) -> Result<Self, KeySetError> {
        Self::new(keys)
    }
}

impl From<KeySet> for Vec<Key> {
    fn from(set: KeySet) -> Self {
        set.keys
    }
}
