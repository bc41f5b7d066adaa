//! The access keys in etcd, by id, as they are now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use api::access::v1::StoredAccessKey;
use prost::Message as _;
use records::{Entries, Mirror, Store};
use sigv4::Secret;

use crate::aws::rights::policy::{Policy, PolicyError};

/// Prefix of the keys in etcd; the id follows.
const PREFIX: &str = "access-keys/";
const KEYS_MAX: usize = 100_000;
/// Bounds of an id's length; those of AWS have 20 characters.
const ID_LENGTH: std::ops::RangeInclusive<usize> = 4..=128;
/// Longest name of a user in ARNs.
const USER_LENGTH_MAX: usize = 64;

type KeyMap = HashMap<String, Arc<AccessKey>>;

#[derive(Debug)]
pub(crate) struct AccessKey {
    pub id: String,
    pub secret: Secret,
    pub account: String,
    /// Name of who holds it, as in its ARN.
    pub user: String,
    /// What it may do; absent means everything.
    pub policy: Option<Policy>,
    pub expires: Option<SystemTime>,
}

/// Why a key cannot be used. Says nothing secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessKeyError {
    #[error("an access key id has {} to {} letters, digits and underscores", ID_LENGTH.start(), ID_LENGTH.end())]
    Id,
    #[error(transparent)]
    Secret(#[from] sigv4::SecretLength),
    #[error("acts for the account {0}, not for the fleet's")]
    Account(String),
    #[error("policy: {0}")]
    Policy(#[from] PolicyError),
    #[error("the expiry is not a time")]
    Expiry,
}

impl AccessKey {
    /// Checks a key as it is stored. `account` is the fleet's.
    pub fn new(stored: StoredAccessKey, account: &str) -> Result<Self, AccessKeyError> {
        let key = stored.access_key.unwrap_or_default();
        let id = key.access_key_id;
        let letters = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !ID_LENGTH.contains(&id.len()) || !letters {
            return Err(AccessKeyError::Id);
        }
        if key.account_id != account {
            return Err(AccessKeyError::Account(key.account_id));
        }
        let expires = key.expire_time.as_ref().map(api::system_time).transpose();
        let user = if is_user_name(&key.description) { key.description } else { id.clone() };
        Ok(Self {
            secret: Secret::new(stored.secret_access_key)?,
            account: key.account_id,
            user,
            policy: key.policy.map(Policy::new).transpose()?,
            expires: expires.map_err(|_| AccessKeyError::Expiry)?,
            id,
        })
    }

    /// The ARN of who holds it.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:user/{}", self.account, self.user)
    }

    pub fn expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// Whether a description can stand in an ARN as it is.
fn is_user_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    (1..=USER_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupError {
    Unknown,
    /// The keys in etcd are not known yet.
    NotReady,
}

/// All keys, as they are now.
#[derive(Debug)]
pub(crate) struct AccessKeys(Mirror<KeyMap>);

impl AccessKeys {
    /// Follows the keys in etcd. `account` is the fleet's.
    pub fn follow(store: &Store, account: String) -> Self {
        Self(Mirror::follow(store, PREFIX, entries(account), |keys| {
            tracing::info!(keys = keys.len(), "access keys changed");
            Some(keys.values().map(|key| (key.id.clone(), key.clone())).collect())
        }))
    }

    /// Finds a key. While etcd's keys have never been read it waits for them, a bounded time.
    pub async fn find(&self, id: &str) -> Result<Arc<AccessKey>, LookupError> {
        let keys = self.0.get().await.ok_or(LookupError::NotReady)?;
        keys.get(id).cloned().ok_or(LookupError::Unknown)
    }
}

fn entries(account: String) -> Entries<Arc<AccessKey>> {
    Entries::new(KEYS_MAX, move |name, value| {
        let key = read(name, value, &account);
        key.inspect_err(|fault| tracing::error!(name, fault, "an access key is left out")).ok().map(Arc::new)
    })
}

/// The key of an entry, or why it opens nothing.
fn read(name: &str, value: &[u8], account: &str) -> Result<AccessKey, String> {
    // Without the decoder's words: they may quote the secret.
    let stored = StoredAccessKey::decode(value).map_err(|_| "not an access key")?;
    let key = AccessKey::new(stored, account).map_err(|error| error.to_string())?;
    if name.strip_prefix(PREFIX) != Some(key.id.as_str()) {
        return Err("stored under another id".to_owned());
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use api::access::v1 as wire;
    use std::time::Duration;

    use records::{Event, Versioned};
    use tokio::sync::watch;

    use super::*;

    const ACCOUNT: &str = "000000000000";
    const ID: &str = "AKIAIOSFODNN7EXAMPLE";

    fn stored(id: &str) -> StoredAccessKey {
        StoredAccessKey {
            access_key: Some(wire::AccessKey {
                access_key_id: id.to_owned(),
                account_id: ACCOUNT.to_owned(),
                description: "build-bot".to_owned(),
                ..wire::AccessKey::default()
            }),
            secret_access_key: "secret".to_owned(),
        }
    }

    fn changed(change: impl FnOnce(&mut StoredAccessKey, &mut wire::AccessKey)) -> StoredAccessKey {
        let mut stored = stored(ID);
        let mut key = stored.access_key.take().unwrap();
        change(&mut stored, &mut key);
        stored.access_key = Some(key);
        stored
    }

    #[test]
    fn keys_are_checked_before_they_open_anything() {
        let key = AccessKey::new(stored(ID), ACCOUNT).unwrap();
        assert_eq!((key.id.as_str(), key.user.as_str()), (ID, "build-bot"));
        assert!(key.policy.is_none());
        for (stored, fault) in [
            (changed(|_, key| key.access_key_id = "a/b/c/d".into()), AccessKeyError::Id),
            (changed(|_, key| key.access_key_id = "abc".into()), AccessKeyError::Id),
            (
                changed(|_, key| key.account_id = "111111111111".into()),
                AccessKeyError::Account("111111111111".into()),
            ),
            (
                changed(|_, key| {
                    key.policy = Some(wire::Policy { statements: vec![wire::Statement::default()] });
                }),
                AccessKeyError::Policy(PolicyError::Effect),
            ),
        ] {
            assert_eq!(AccessKey::new(stored, ACCOUNT).unwrap_err(), fault);
        }
        let secretless = changed(|stored, _| stored.secret_access_key.clear());
        assert!(matches!(AccessKey::new(secretless, ACCOUNT), Err(AccessKeyError::Secret(_))));
    }

    #[test]
    fn a_description_that_is_no_name_gives_way_to_the_id() {
        let key = AccessKey::new(changed(|_, key| key.description = "bot \"x\"".into()), ACCOUNT).unwrap();
        assert_eq!(key.user, ID);
    }

    #[test]
    fn keys_expire() {
        let now = SystemTime::now();
        let key =
            AccessKey::new(changed(|_, key| key.expire_time = Some(api::timestamp(now))), ACCOUNT).unwrap();
        assert!(key.expired(now));
        assert!(!key.expired(now - Duration::from_secs(1)));
    }

    #[test]
    fn changes_in_etcd_are_followed() {
        let value = |stored: &StoredAccessKey| Versioned { value: stored.encode_to_vec(), revision: 1 };
        let name = |id: &str| format!("{PREFIX}{id}");
        let mut keys = entries(ACCOUNT.to_owned());
        let other = "AKIAIOSFODNN7EXAMPL2";
        keys.apply(Event::Snapshot(vec![(name(ID), value(&stored(ID)))]));
        keys.apply(Event::Put(name(other), value(&stored(other))));
        assert_eq!(keys.all().len(), 2);
        // One that turns bad opens nothing any more.
        let bad = Versioned { value: vec![0xff], revision: 2 };
        keys.apply(Event::Put(name(other), bad));
        assert_eq!(keys.all().keys().collect::<Vec<_>>(), [&name(ID)]);
        // Nor does one under another's name.
        keys.apply(Event::Put(name(other), value(&stored(ID))));
        assert_eq!(keys.all().len(), 1);
        keys.apply(Event::Delete(name(ID)));
        assert!(keys.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn until_etcd_answers_there_is_no_saying() {
        let (sender, current) = watch::channel(None);
        let keys = AccessKeys(Mirror::of(current));
        assert_eq!(keys.find(ID).await.unwrap_err(), LookupError::NotReady);
        let key = Arc::new(AccessKey::new(stored(ID), ACCOUNT).unwrap());
        sender.send_replace(Some(Arc::new(KeyMap::from([(ID.to_owned(), key)]))));
        assert_eq!(keys.find(ID).await.unwrap().id, ID);
        assert_eq!(keys.find("AKIANOBODY").await.unwrap_err(), LookupError::Unknown);
    }
}
