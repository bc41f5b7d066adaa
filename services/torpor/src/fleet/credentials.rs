//! The key pairs that `torpor up` makes once per fleet.
//!
//! | pair | file | opens |
//! | --- | --- | --- |
//! | of the services | `config/s3-keys.toml` | the embedded S3 |
//! | the root access key | `config/access-keys.toml` | the AWS-compatible API and the embedded S3 |
//!
//! They are two, so that a host's settings hold no access key of the API. The
//! edge reads the second file itself, and more keys may stand in it; the first
//! one of the file is the root access key.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files;
use super::plan::{ACCOUNT, Plan, users};
use crate::error::CliError;

/// Characters of an access key id after its "AKIA".
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Characters of a secret.
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

/// The access key file. What the edge reads of a key besides the pair is its own
/// affair.
#[derive(Deserialize)]
struct KeyFile {
    keys: Vec<ListedKey>,
}

#[derive(Deserialize)]
struct ListedKey {
    access_key_id: String,
    secret_access_key: String,
}

pub fn file(plan: &Plan) -> PathBuf {
    plan.path("config/access-keys.toml")
}

/// The pair of the services, made when there is none.
pub fn services(plan: &Plan) -> Result<S3Credentials, CliError> {
    let path = plan.path("config/s3-keys.toml");
    match read(&path)? {
        Some(keys) => Ok(keys),
        None => {
            let keys = generate();
            let text = toml::to_string(&keys).map_err(|error| CliError::failed(error.to_string()))?;
            files::write_private(&path, text.as_bytes(), None)?;
            Ok(keys)
        }
    }
}

/// The root access key; its file is made when there is none, and is never
/// written again.
pub fn root(plan: &Plan) -> Result<S3Credentials, CliError> {
    let path = file(plan);
    match read::<KeyFile>(&path)? {
        Some(file) => {
            let first = file.keys.into_iter().next().ok_or_else(|| {
                CliError::failed(format!("{} lists no key", path.display()))
                    .next("delete it; torpor up makes a new root access key")
            })?;
            files::keep_private(&path, Some(users::EDGE_PROXY))?;
            Ok(S3Credentials {
                access_key_id: first.access_key_id,
                secret_access_key: first.secret_access_key,
            })
        }
        None => {
            let key = generate();
            let text = format!(
                "# Access keys of the AWS-compatible API. The first one is the fleet's root access key: it\n\
                 # also opens the embedded S3, and torpor env exports it. torpor key create makes others.\n\
                 [[keys]]\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n\
                 account_id = \"{ACCOUNT}\"\ndescription = \"root\"\n",
                key.access_key_id, key.secret_access_key
            );
            files::write_private(&path, text.as_bytes(), Some(users::EDGE_PROXY))?;
            Ok(key)
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CliError> {
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
    fn the_access_key_file_is_the_edges_own_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        let root = super::root(&plan).unwrap();
        let path = file(&plan);
        let owner = || {
            let metadata = std::fs::metadata(&path).unwrap();
            (metadata.uid(), metadata.mode() & 0o777)
        };
        assert_eq!(owner(), (users::EDGE_PROXY, 0o600));
        // Somebody adds a key with an editor that writes a new file.
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(
            "[[keys]]\naccess_key_id = \"AKIAOTHER\"\nsecret_access_key = \"x\"\nfurther = { a = 1 }\n",
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(super::root(&plan).unwrap(), root, "the first one");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(owner(), (users::EDGE_PROXY, 0o600));
    }

    #[test]
    fn a_damaged_file_is_named_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        for text in [
            "[[keys]]\naccess_key_id = \"AKIA1\"\nsecret_access_key = \"hunter2",
            "[[keys]]\naccess_key_id = \"AKIA1\"\nsecret = \"hunter2\"",
            "keys = []",
            "",
        ] {
            std::fs::write(file(&plan), text).unwrap();
            let failure = super::root(&plan).expect_err(text);
            assert!(failure.message.contains("access-keys.toml"), "{}", failure.message);
            assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        }
    }
}
