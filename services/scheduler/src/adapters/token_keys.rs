//! Token keys in etcd, `keys/<id>`: the leader makes and rotates them, the edges watch them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use model::limits::BROWSER_SESSION_MAX;
use records::{Expect, Leadership, Store};
use token::{Claims, Key, KeySet};

const PREFIX: &str = "keys/";
/// How long an old key opens tokens after its successor was made: the longest token, which is a browser session's, and a margin.
const KEEP: Duration = BROWSER_SESSION_MAX.saturating_add(Duration::from_secs(3600));
/// A new key seals only after this long, when every edge has seen it.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum TokenKeysError {
    #[error(transparent)]
    Store(#[from] records::Error),
    #[error("token keys: {0}")]
    Key(String),
}

#[derive(Debug, Default)]
pub struct TokenKeys {
    keys: Mutex<BTreeMap<String, Key>>,
}

impl TokenKeys {
    /// Reads the keys, and makes the first one where there is none.
    pub async fn load(
        store: &Store,
        leadership: &Leadership,
        now: SystemTime,
    ) -> Result<Self, TokenKeysError> {
        let mut found = BTreeMap::new();
        for (key, value) in store.list(PREFIX).await?.0 {
            match serde_json::from_slice::<Key>(&value.value) {
                Ok(parsed) => drop(found.insert(key, parsed)),
                // One broken key must not keep the fleet from launching.
                Err(_) => tracing::error!(key, "a token key cannot be read; its tokens do not work"),
            }
        }
        let keys = Self { keys: Mutex::new(found) };
        if keys.newest_age(now).is_none() {
            keys.add(store, leadership, now).await?;
        }
        Ok(keys)
    }

    /// Makes a successor when the newest key is older than `rotation`, and drops
    /// keys that no living token can name.
    pub async fn rotate(
        &self,
        store: &Store,
        leadership: &Leadership,
        rotation: Duration,
        now: SystemTime,
    ) -> Result<(), TokenKeysError> {
        if self.newest_age(now).is_none_or(|age| age >= rotation) {
            self.add(store, leadership, now).await?;
            tracing::info!("token key rotated");
        }
        for key in self.outlived(now) {
            store.delete_if(&key, Expect::Any, Some(leadership)).await?;
            self.lock().remove(&key);
        }
        Ok(())
    }

    pub fn mint(&self, claims: &Claims, now: SystemTime) -> Result<String, TokenKeysError> {
        let settled = seconds(now).saturating_sub(SETTLE.as_secs());
        let all: Vec<Key> = self.lock().values().cloned().collect();
        let old_enough: Vec<Key> = all.iter().filter(|key| key.created_at <= settled).cloned().collect();
        let usable = if old_enough.is_empty() { all } else { old_enough };
        let set = KeySet::new(usable).map_err(|error| TokenKeysError::Key(error.to_string()))?;
        set.mint(claims).map_err(|error| TokenKeysError::Key(error.to_string()))
    }

    async fn add(
        &self,
        store: &Store,
        leadership: &Leadership,
        now: SystemTime,
    ) -> Result<(), TokenKeysError> {
        let key = Key::generate(seconds(now)).map_err(|error| TokenKeysError::Key(error.to_string()))?;
        let name = format!("{PREFIX}{}", key.id);
        let value = serde_json::to_vec(&key).map_err(|error| TokenKeysError::Key(error.to_string()))?;
        // Dying after this line is fine: the next leader finds the key and uses it.
        store.put_if(&name, value, Expect::Absent, Some(leadership)).await?;
        self.lock().insert(name, key);
        Ok(())
    }

    fn newest_age(&self, now: SystemTime) -> Option<Duration> {
        let newest = self.lock().values().map(|key| key.created_at).max()?;
        Some(Duration::from_secs(seconds(now).saturating_sub(newest)))
    }

    /// Keys whose successor is older than any token they sealed.
    fn outlived(&self, now: SystemTime) -> Vec<String> {
        let keys = self.lock();
        let succeeded_long_ago = |key: &Key| {
            keys.values().any(|other| {
                other.created_at > key.created_at && other.created_at + KEEP.as_secs() < seconds(now)
            })
        };
        keys.iter().filter(|(_, key)| succeeded_long_ago(key)).map(|(name, _)| name.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
