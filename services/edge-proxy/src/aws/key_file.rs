//! Access keys in a TOML file, read again when it changes.
//!
//! ```toml
//! [[keys]]
//! access_key_id = "AKIA..."
//! secret_access_key = "..."
//! account_id = "000000000000"
//! description = "build-bot"             # optional
//! expire_time = 2027-01-01T00:00:00Z    # optional
//!
//! [[keys.policy.statements]]            # optional; without a policy it may do everything
//! effect = "allow"                      # or "deny"
//! actions = ["lambda:Get*"]
//! resources = ["*"]
//! ```

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::access::v1 as wire;
use serde::Deserialize;
use settings::Secret;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::aws::keys::{AccessKey, KEYS_MAX, KeyFault, KeyMap, Keys};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest file in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    access_key_id: String,
    secret_access_key: Secret,
    account_id: String,
    #[serde(default)]
    description: String,
    expire_time: Option<toml::value::Datetime>,
    policy: Option<Policy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    #[serde(default)]
    statements: Vec<Statement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    effect: Effect,
    actions: Vec<String>,
    resources: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Effect {
    Allow,
    Deny,
}

/// Why a file cannot be used. Says nothing secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] std::io::Error),
    /// It is larger than a file of keys can be.
    #[error("has more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// It is not a list of keys.
    #[error("line {line} is not as it should be")]
    Form {
        /// Where, from 1.
        line: usize,
    },
    /// A key breaks a rule.
    #[error("key {number}: {fault}")]
    Key {
        /// Which one, from 1.
        number: usize,
        /// The rule.
        fault: KeyFault,
    },
    /// Two keys have one id.
    #[error("key {number} has the id of another")]
    Twice {
        /// Which one, from 1.
        number: usize,
    },
    /// Too many.
    #[error("has more than {KEYS_MAX} keys")]
    TooMany,
}

/// What tells one state of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Of the inode: its owner and rights too.
    changed: (i64, i64),
}

/// A file of keys that is looked at again and again.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    account: String,
    /// The state that was read last, whether it could be used or not.
    read: Option<Stamp>,
}

impl KeyFile {
    /// Reads the file for the first time. `account` is the fleet's.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn open(path: &Path, account: &str) -> Result<(Self, KeyMap), KeyFileError> {
        let mut file = Self { path: path.to_owned(), account: account.to_owned(), read: None };
        let keys = file.changed()?.unwrap_or_default();
        Ok((file, keys))
    }

    /// The keys, if the file changed since it was read last.
    fn changed(&mut self) -> Result<Option<KeyMap>, KeyFileError> {
        let metadata = std::fs::metadata(&self.path)?;
        let stamp = Stamp {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if self.read == Some(stamp) {
            return Ok(None);
        }
        if stamp.size > FILE_BYTES_MAX {
            self.read = Some(stamp);
            return Err(KeyFileError::TooLarge);
        }
        // A file that cannot be read is tried again at every look. The stamp is of before
        // the content: a change in between shows at the next look.
        let text = std::fs::read_to_string(&self.path)?;
        self.read = Some(stamp);
        parse(&text, &self.account).map(Some)
    }

    /// Brings changes to `keys` until `stop`. A file that cannot be used any more
    /// leaves the keys as they are.
    pub async fn follow(mut self, keys: Arc<Keys>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let mut away = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let looked = tokio::task::spawn_blocking(move || {
                let changed = self.changed();
                (self, changed)
            });
            let Ok((file, changed)) = looked.await else { return };
            self = file;
            match changed {
                Ok(None) => away = false,
                Ok(Some(map)) => {
                    tracing::info!(keys = map.len(), file = %self.path.display(), "read the access keys");
                    keys.set_file(map);
                    away = false;
                }
                Err(error) => {
                    if !away {
                        tracing::error!(%error, file = %self.path.display(), "keeping the access keys of before");
                    }
                    // Said once, not every second; a file that came back is news.
                    away = matches!(error, KeyFileError::Read(_));
                }
            }
        }
    }
}

fn parse(text: &str, account: &str) -> Result<KeyMap, KeyFileError> {
    // Without the parser's words: they quote the line, and with it the secret.
    let file: File = toml::from_str(text).map_err(|error| KeyFileError::Form {
        line: 1 + error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(0, |before| before.matches('\n').count()),
    })?;
    if file.keys.len() > KEYS_MAX {
        return Err(KeyFileError::TooMany);
    }
    let mut keys = KeyMap::new();
    for (index, entry) in file.keys.into_iter().enumerate() {
        let number = index + 1;
        let failed = |fault| KeyFileError::Key { number, fault };
        let stored = entry.stored().ok_or(failed(KeyFault::Expiry))?;
        let key = AccessKey::new(stored, account).map_err(failed)?;
        if keys.insert(key.id.clone(), Arc::new(key)).is_some() {
            return Err(KeyFileError::Twice { number });
        }
    }
    Ok(keys)
}

impl Entry {
    /// As it would be in etcd; `None` when the expiry is no point in time.
    fn stored(self) -> Option<wire::StoredAccessKey> {
        let expire_time = match self.expire_time {
            None => None,
            Some(given) => {
                let given = OffsetDateTime::parse(&given.to_string(), &Rfc3339).ok()?;
                Some(api::timestamp(given.into()))
            }
        };
        let policy = self.policy.map(|policy| wire::Policy {
            statements: policy.statements.into_iter().map(Statement::stored).collect(),
        });
        Some(wire::StoredAccessKey {
            access_key: Some(wire::AccessKey {
                access_key_id: self.access_key_id,
                account_id: self.account_id,
                description: self.description,
                policy,
                create_time: None,
                expire_time,
            }),
            secret_access_key: self.secret_access_key.expose().to_owned(),
        })
    }
}

impl Statement {
    fn stored(self) -> wire::Statement {
        let effect = match self.effect {
            Effect::Allow => wire::Effect::Allow,
            Effect::Deny => wire::Effect::Deny,
        };
        wire::Statement { effect: effect.into(), actions: self.actions, resources: self.resources }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "000000000000";
    const TWO: &str = r#"
        [[keys]]
        access_key_id = "AKIAONE"
        secret_access_key = "one"
        account_id = "000000000000"
        expire_time = 2027-01-01T00:00:00Z
        [[keys.policy.statements]]
        effect = "allow"
        actions = ["lambda:Get*"]
        resources = ["*"]

        [[keys]]
        access_key_id = "AKIATWO"
        secret_access_key = "two"
        account_id = "000000000000"
        description = "bot"
    "#;

    #[test]
    fn keys_are_read() {
        let keys = parse(TWO, ACCOUNT).unwrap();
        let one = &keys["AKIAONE"];
        assert_eq!(one.secret.expose(), "one");
        let expires = OffsetDateTime::from(one.expires.unwrap());
        assert_eq!(expires.unix_timestamp(), 1_798_761_600);
        let policy = one.policy.as_ref().unwrap();
        assert!(policy.permits("lambda:GetMicrovm", &["x"]) && !policy.permits("lambda:RunMicrovm", &["x"]));
        assert_eq!(keys["AKIATWO"].user, "bot");
        assert!(parse("", ACCOUNT).unwrap().is_empty());
    }

    #[test]
    fn faults_say_where_and_never_what() {
        for (text, said) in [
            ("[[keys]]\naccess_key_id = hush", "line 2 is not as it should be"),
            ("\n\n[[keys]]\naccess_key_id = 'AKIA'\nsecret = 'hush'", "line 5"),
            (&TWO.replace("AKIATWO", "AKIAONE"), "key 2 has the id of another"),
            (&TWO.replace("\"two\"", "\"\""), "key 2: a secret access key has"),
            (&TWO.replacen("000000000000", "111111111111", 1), "key 1: acts for the account 111111111111"),
            (&TWO.replace("2027-01-01T00:00:00Z", "2027-01-01"), "key 1: the expiry is not a time"),
        ] {
            let error = parse(text, ACCOUNT).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_change_is_seen_and_a_broken_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        std::fs::write(&path, TWO).unwrap();
        let (file, map) = KeyFile::open(&path, ACCOUNT).unwrap();
        let keys = Arc::new(Keys::default());
        keys.set_stored(KeyMap::new());
        keys.set_file(map);
        let stop = CancellationToken::new();
        let following = tokio::spawn(file.follow(keys.clone(), stop.clone()));
        std::fs::write(&path, TWO.replace("AKIATWO", "AKIATHREE")).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while keys.find("AKIATHREE").await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the change was not seen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(keys.find("AKIATWO").await.is_err());
        std::fs::write(&path, "no keys").unwrap();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(keys.find("AKIATHREE").await.is_ok());
        stop.cancel();
        following.await.unwrap();
    }
}
