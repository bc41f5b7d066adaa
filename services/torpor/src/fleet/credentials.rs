//! The key pairs that `torpor up` makes once per fleet.
//!
//! | pair | file | opens |
//! | --- | --- | --- |
//! | of the services | `config/s3-keys.toml` | the embedded S3 |
//! | the root access key | `config/root-key.toml` | the AWS-compatible API and the embedded S3 |
//!
//! They are two, so that a host's settings hold no access key of the API. The edges read keys from etcd; `torpor up` writes
//! the root access key there.

use std::io::ErrorKind;
use std::path::Path;

use api::access::v1::{AccessKey, StoredAccessKey};
use prost::Message as _;
use records::{Expect, Store};
use serde::{Deserialize, Serialize};

use super::files;
use super::plan::{ACCOUNT, Plan};
use crate::error::CliError;

/// Prefix of the fleet's records in etcd.
pub const ETCD_ROOT: &str = "/torpor/";
/// Prefix of the access keys among them; the id follows.
const ACCESS_KEYS: &str = "access-keys/";
/// Characters of an access key id after its "AKIA".
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const SECRET_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// An access key id with its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl std::fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// The pair of the services, made when there is none.
pub fn services(plan: &Plan) -> Result<S3Credentials, CliError> {
    kept(&plan.path("config/s3-keys.toml"))
}

/// The root access key, made when there is none.
pub fn root(plan: &Plan) -> Result<S3Credentials, CliError> {
    kept(&plan.path("config/root-key.toml"))
}

/// Writes the root access key to where the edges find every key. That is the scheduler's to write, so it happens before one
/// runs. The scheduler gives every key a time of creation: a key without one is a root key, and one with another id is of an
/// earlier file and stops working here.
///
/// When `torpor up` dies between the two writes, both keys work until it is started again.
pub async fn record_root(plan: &Plan, store: &Store) -> Result<(), CliError> {
    let root = root(plan)?;
    let (keys, _) = store.list(ACCESS_KEYS).await.map_err(unrecorded)?;
    let name = format!("{ACCESS_KEYS}{}", root.access_key_id);
    let stored = stored(root);
    let present = keys.iter().find(|(key, _)| *key == name);
    if present.is_none_or(|(_, value)| value.value != stored) {
        let expect = present.map_or(Expect::Absent, |(_, value)| Expect::Revision(value.revision));
        store.put_if(&name, stored, expect, None).await.map_err(unrecorded)?;
    }
    for (key, value) in keys.iter().filter(|(key, value)| *key != name && is_root(&value.value)) {
        store.delete_if(key, Expect::Revision(value.revision), None).await.map_err(unrecorded)?;
    }
    Ok(())
}

fn unrecorded(error: records::Error) -> CliError {
    CliError::failed(format!("cannot record the root access key: {:#}", anyhow::Error::new(error)))
}

fn stored(root: S3Credentials) -> Vec<u8> {
    let access_key = AccessKey {
        access_key_id: root.access_key_id,
        account_id: ACCOUNT.to_owned(),
        description: "root".to_owned(),
        ..AccessKey::default()
    };
    StoredAccessKey { access_key: Some(access_key), secret_access_key: root.secret_access_key }
        .encode_to_vec()
}

fn is_root(stored: &[u8]) -> bool {
    let key = StoredAccessKey::decode(stored).ok().and_then(|stored| stored.access_key);
    key.is_some_and(|key| key.create_time.is_none())
}

/// The pair in a file of our own, which is made when it is not there and is never written again.
fn kept(path: &Path) -> Result<S3Credentials, CliError> {
    match read(path)? {
        Some(keys) => {
            files::keep_private(path, None)?;
            Ok(keys)
        }
        None => {
            let keys = generate();
            let text = toml::to_string(&keys).map_err(|error| CliError::failed(error.to_string()))?;
            files::write_private(path, text.as_bytes(), None)?;
            Ok(keys)
        }
    }
}

fn read(path: &Path) -> Result<Option<S3Credentials>, CliError> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map(Some).map_err(|error| {
            // The error's own text would quote the line, secret and all.
            CliError::failed(format!("{} is damaged: {}", path.display(), error.message()))
                .next("delete it while the fleet is down; torpor up makes new keys")
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(files::named(path, &error).into()),
    }
}

/// A pair of AWS's form: 20 characters of id, 40 of secret (240 random bits).
fn generate() -> S3Credentials {
    let (id, secret): ([u8; 16], [u8; 40]) = (rand::random(), rand::random());
    // Both alphabets divide 256: every character is as likely as the others.
    let letter = |alphabet: &[u8], byte: u8| char::from(alphabet[usize::from(byte) % alphabet.len()]);
    let id: String = id.iter().map(|byte| letter(ID_ALPHABET, *byte)).collect();
    S3Credentials {
        access_key_id: format!("AKIA{id}"),
        secret_access_key: secret.iter().map(|byte| letter(SECRET_ALPHABET, *byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::fleet::plan::tests::plan;

    fn plan_in(directory: &Path) -> Plan {
        std::fs::create_dir(directory.join("config")).unwrap();
        Plan { data_dir: directory.to_owned(), ..plan(&[]) }
    }

    #[test]
    fn keys_are_made_once_and_have_the_form_that_clients_know() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        let (services, root) = (super::services(&plan).unwrap(), super::root(&plan).unwrap());
        assert_eq!(super::services(&plan).unwrap(), services);
        assert_eq!(super::root(&plan).unwrap(), root);
        assert_ne!(services, root);
        for key in [services, root] {
            let (id, secret) = (&key.access_key_id, &key.secret_access_key);
            assert!(id.len() == 20 && id.starts_with("AKIA"), "{id}");
            assert!(id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), "{id}");
            assert_eq!(secret.len(), 40);
            assert!(!format!("{key:?}").contains(secret.as_str()));
        }
    }

    #[test]
    fn the_files_are_ours_alone_and_left_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        let root = super::root(&plan).unwrap();
        let path = plan.path("config/root-key.toml");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        // An editor wrote it anew.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(super::root(&plan).unwrap(), root);
        assert_eq!((std::fs::read_to_string(&path).unwrap(), mode()), (text, 0o600));
    }

    #[test]
    fn root_keys_are_told_from_those_that_the_scheduler_makes() {
        let pair = generate();
        assert!(is_root(&stored(pair.clone())));
        let mut made = StoredAccessKey::decode(stored(pair).as_slice()).unwrap();
        let now = std::time::SystemTime::now();
        made.access_key.as_mut().unwrap().create_time = Some(api::timestamp(now));
        assert!(!is_root(&made.encode_to_vec()));
        assert!(!is_root(b"no key"));
    }

    #[test]
    fn a_damaged_file_is_named_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        for text in [
            "access_key_id = \"AKIA1\"\nsecret_access_key = \"hunter2",
            "access_key_id = \"AKIA1\"\nsecret = \"hunter2\"",
            "",
        ] {
            std::fs::write(plan.path("config/root-key.toml"), text).unwrap();
            let failure = super::root(&plan).expect_err(text);
            assert!(failure.message.contains("root-key.toml"), "{}", failure.message);
            assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        }
    }
}
