//! Token keys, followed in etcd.

use std::collections::BTreeMap;
use std::time::Duration;

use records::{Entries, Mirror, Store};
use serde::Deserialize;
use token::{Claims, Key, KeySet, VerifyError};

/// Prefix of the keys in etcd.
const PREFIX: &str = "keys/";
/// Most entries; a set of keys takes fewer.
const ENTRIES_MAX: usize = 64;
/// Longest wait for a key that a token names and that is not here: a token may
/// overtake the news of the key that sealed it.
const NEW_KEY: Duration = Duration::from_millis(500);

/// The token keys as they are now.
#[derive(Debug)]
pub struct TokenKeys(Mirror<KeySet>);

/// Why a token was not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// It does not open anything.
    Token(VerifyError),
    /// No keys have come yet.
    NotReady,
}

/// A value under the prefix: one key, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    One(Key),
    Several(KeySet),
}

impl TokenKeys {
    pub fn follow(store: &Store) -> Self {
        let entries = Entries::new(ENTRIES_MAX, parse);
        Self(Mirror::follow(store, PREFIX, entries, |keys: &BTreeMap<String, Vec<Key>>| {
            match KeySet::new(keys.values().flatten().cloned().collect()) {
                Ok(set) => {
                    tracing::info!(keys = set.keys().len(), "token keys changed");
                    Some(set)
                }
                Err(error) => {
                    tracing::error!(%error, "keeping the token keys of before");
                    None
                }
            }
        }))
    }

    /// Opens a token. Waits for keys, bounded, when they may be on their way.
    pub async fn verify(&self, token: &str, now: u64) -> Result<Claims, KeyError> {
        let known = self.0.get().await.ok_or(KeyError::NotReady)?;
        match known.verify(token, now) {
            Err(VerifyError::UnknownKey) => {
                let is_known = |set: &KeySet| set.verify(token, now) != Err(VerifyError::UnknownKey);
                // Boxed, like all that most requests never wait for: its state would be part of every idle connection.
                let known = Box::pin(self.0.when(NEW_KEY, is_known)).await;
                known.map_or(Err(VerifyError::UnknownKey), |set| set.verify(token, now))
            }
            result => result,
        }
        .map_err(KeyError::Token)
    }
}

fn parse(key: &str, value: &[u8]) -> Option<Vec<Key>> {
    match serde_json::from_slice(value) {
        Ok(Stored::One(key)) => Some(vec![key]),
        Ok(Stored::Several(set)) => Some(set.keys().to_vec()),
        Err(_) => {
            // Without the parser's words: they may quote the secret.
            tracing::error!(key, "not a token key; left out");
            None
        }
    }
}
