//! Token keys, followed in etcd.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use records::{Entries, Mirror, Store};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
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

/// The token that a connection showed last. Its next request most often shows the same one, and is spared opening it.
#[derive(Default)]
pub struct LastToken(Mutex<Option<Opened>>);

struct Opened {
    token: Box<str>,
    /// What opened it: with other keys it is opened anew.
    keys: Arc<KeySet>,
    claims: Arc<Claims>,
}

impl fmt::Debug for LastToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastToken")
    }
}

impl LastToken {
    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back its memory.
    pub fn forget(&self) {
        *self.opened() = None;
    }

    fn claims(&self, token: &str, keys: &Arc<KeySet>, now: u64) -> Option<Arc<Claims>> {
        let opened = self.opened();
        let last = opened.as_ref().filter(|last| Arc::ptr_eq(&last.keys, keys))?;
        let same = bool::from(last.token.as_bytes().ct_eq(token.as_bytes()));
        (same && last.claims.expires_at > now).then(|| last.claims.clone())
    }

    fn remember(&self, token: &str, keys: Arc<KeySet>, claims: &Arc<Claims>) {
        *self.opened() = Some(Opened { token: token.into(), keys, claims: claims.clone() });
    }
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
    pub async fn verify(&self, token: &str, last: &LastToken, now: u64) -> Result<Arc<Claims>, KeyError> {
        let mut keys = self.0.get().await.ok_or(KeyError::NotReady)?;
        if let Some(claims) = last.claims(token, &keys, now) {
            return Ok(claims);
        }
        let mut verified = keys.verify(token, now);
        if verified == Err(VerifyError::UnknownKey) {
            let is_known = |set: &KeySet| set.verify(token, now) != Err(VerifyError::UnknownKey);
            // Boxed, like all that most requests never wait for: its state would be part of every idle connection.
            if let Some(newer) = Box::pin(self.0.when(NEW_KEY, is_known)).await {
                (verified, keys) = (newer.verify(token, now), newer);
            }
        }
        let claims = Arc::new(verified.map_err(KeyError::Token)?);
        last.remember(token, keys, &claims);
        Ok(claims)
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
