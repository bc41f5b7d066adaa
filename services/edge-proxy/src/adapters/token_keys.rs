//! Token keys, followed in etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use records::{Event, Store};
use serde::Deserialize;
use token::{Claims, Key, KeySet, VerifyError};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Prefix of the keys in etcd.
const PREFIX: &str = "keys/";
/// Longest wait for the first keys after a start.
const FIRST_KEYS: Duration = Duration::from_secs(5);
/// Longest wait for a key that a token names and that is not here: a token may
/// overtake the news of the key that sealed it.
const NEW_KEY: Duration = Duration::from_millis(500);
/// Requests that may wait for a key at one time; anybody can name a key.
const WAITING_MAX: usize = 256;

/// The token keys as they are now.
#[derive(Debug, Clone)]
pub struct TokenKeys {
    current: watch::Receiver<Option<Arc<KeySet>>>,
    waiting: Arc<Semaphore>,
}

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
    /// Follows the keys until `stop`.
    pub fn follow(store: &Store, stop: CancellationToken) -> Self {
        let (sender, current) = watch::channel(None);
        let mut events = store.watch(PREFIX);
        tokio::spawn(async move {
            let mut stored = BTreeMap::new();
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = stop.cancelled() => return,
                };
                apply(&mut stored, event);
                match KeySet::new(stored.values().flatten().cloned().collect()) {
                    Ok(set) => {
                        tracing::info!(keys = set.keys().len(), "token keys changed");
                        sender.send_replace(Some(Arc::new(set)));
                    }
                    Err(error) => tracing::error!(%error, "keeping the token keys of before"),
                }
            }
        });
        Self { current, waiting: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    /// Opens a token. Waits for keys, bounded, when they may be on their way.
    pub async fn verify(&self, token: &str, now: u64) -> Result<Claims, KeyError> {
        let known = self.current.borrow().clone();
        let known = match known {
            Some(known) => known,
            None => self.when(FIRST_KEYS, |_| true).await.ok_or(KeyError::NotReady)?,
        };
        match known.verify(token, now) {
            Err(VerifyError::UnknownKey) => {
                let known =
                    self.when(NEW_KEY, |set| set.verify(token, now) != Err(VerifyError::UnknownKey)).await;
                known.map_or(Err(VerifyError::UnknownKey), |set| set.verify(token, now))
            }
            result => result,
        }
        .map_err(KeyError::Token)
    }

    /// The keys once they are as wanted, if that happens soon.
    async fn when(&self, wait: Duration, wanted: impl Fn(&KeySet) -> bool) -> Option<Arc<KeySet>> {
        let _permit = self.waiting.try_acquire().ok()?;
        let mut current = self.current.clone();
        let arrived = current.wait_for(|set| set.as_deref().is_some_and(&wanted));
        let arrived = tokio::time::timeout(wait, arrived).await.ok()?.ok()?;
        arrived.clone()
    }
}

fn apply(stored: &mut BTreeMap<String, Vec<Key>>, event: Event) {
    match event {
        Event::Snapshot(all) => {
            *stored = all.into_iter().map(|(key, value)| (key.clone(), parse(&key, &value.value))).collect();
        }
        Event::Put(key, value) => {
            let keys = parse(&key, &value.value);
            stored.insert(key, keys);
        }
        Event::Delete(key) => {
            stored.remove(&key);
        }
    }
}

fn parse(key: &str, value: &[u8]) -> Vec<Key> {
    match serde_json::from_slice(value) {
        Ok(Stored::One(key)) => vec![key],
        Ok(Stored::Several(set)) => set.keys().to_vec(),
        Err(_) => {
            // Without the parser's words: they may quote the secret.
            tracing::error!(key, "not a token key; left out");
            Vec::new()
        }
    }
}
