//! Ids and names. Each parses from text in one place, so that everything behind
//! the edge holds a value that is already known to be well-formed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that is not a well-formed id; the message says what one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IdError {
    message: String,
}

impl IdError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// A microVM's id: `microvm-` and a UUID in lower-case hyphenated form.
    MicrovmId
);
text_id!(
    /// An image's name: 1 to 64 characters of `[a-zA-Z0-9-_]`.
    ImageName
);
text_id!(
    /// A network connector's name: 1 to 64 characters of `[a-zA-Z0-9-_]`.
    ConnectorName
);
text_id!(
    /// A host's id: 1 to 63 characters of `[a-z0-9-]`.
    HostId
);
text_id!(
    /// A caller's idempotency token: 1 to 128 characters, of any kind.
    ClientToken
);
text_id!(
    /// A role's ARN, `arn:aws:iam::<12 digits>:role/<path and name>`, 20 to 2048
    /// characters. Whether there is such a role nobody here knows.
    RoleArn
);
text_id!(
    /// A KMS key as a caller names it, 1 to 2048 characters: the ARN of a key or of an alias, `alias/<name>`,
    /// or a key's id. Whether there is such a key nobody here knows.
    KmsKeyIdentifier
);

const MICROVM_PREFIX: &str = "microvm-";
/// Account of what the platform itself provides, in ARNs.
pub const PLATFORM_ACCOUNT: &str = "aws";
const ACCOUNT_DIGITS: usize = 12;
const ROLE_ARN_LENGTH: std::ops::RangeInclusive<usize> = 20..=2048;
const KMS_KEY_BYTES_MAX: usize = 2048;

impl MicrovmId {
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(format!("{MICROVM_PREFIX}{}", uuid.hyphenated()))
    }

    #[must_use]
    pub fn uuid(&self) -> Uuid {
        Uuid::parse_str(&self.0[MICROVM_PREFIX.len()..]).expect("checked when it was parsed")
    }
}

impl FromStr for MicrovmId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let well_formed = text
            .strip_prefix(MICROVM_PREFIX)
            .filter(|rest| rest.len() == 36)
            .and_then(|rest| Uuid::try_parse(rest).ok().filter(|uuid| uuid.hyphenated().to_string() == rest));
        match well_formed {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(IdError::new("must be 'microvm-' followed by a lower-case UUID")),
        }
    }
}

fn is_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '-' || character == '_'
}

/// The text itself when it is a name.
fn name(text: &str) -> Result<String, IdError> {
    if text.is_empty() || text.len() > 64 || !text.chars().all(is_name_character) {
        return Err(IdError::new("must be 1 to 64 characters of [a-zA-Z0-9-_]"));
    }
    Ok(text.to_owned())
}

impl FromStr for ImageName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        name(text).map(Self)
    }
}

impl FromStr for ConnectorName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        name(text).map(Self)
    }
}

impl FromStr for HostId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > 63 || !text.chars().all(allowed) {
            return Err(IdError::new("must be 1 to 63 characters of [a-z0-9-]"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for ClientToken {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        // Records are filed under its digest, so any character will do.
        if !(1..=128).contains(&text.chars().count()) {
            return Err(IdError::new("must be 1 to 128 characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether `text` is an AWS partition, "aws" or "aws-cn".
fn is_partition(text: &str) -> bool {
    text.strip_prefix("aws").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
}

fn is_account(text: &str) -> bool {
    text.len() == ACCOUNT_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl FromStr for RoleArn {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let well_formed = || {
            let (partition, rest) = text.strip_prefix("arn:")?.split_once(":iam::")?;
            let (account, name) = rest.split_once(":role")?;
            let name = name.strip_prefix('/').unwrap_or(name);
            let good = is_partition(partition)
                && is_account(account)
                && !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "+=,.@-_/".contains(c))
                && ROLE_ARN_LENGTH.contains(&text.len());
            good.then_some(())
        };
        match well_formed() {
            Some(()) => Ok(Self(text.to_owned())),
            None => Err(IdError::new(
                "must be the ARN of a role, 'arn:aws:iam::<12 digits>:role/<name>', of at most 2048 characters",
            )),
        }
    }
}

impl FromStr for KmsKeyIdentifier {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let of = |name: &str, others: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        let is_arn = |rest: &str| match rest.splitn(5, ':').collect::<Vec<_>>()[..] {
            [partition, "kms", region, account, key] => {
                let name = key.strip_prefix("key/").or_else(|| key.strip_prefix("alias/"));
                is_partition(partition)
                    && !region.is_empty()
                    && region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                    && is_account(account)
                    && name.is_some_and(|name| of(name, ":/_-"))
            }
            _ => false,
        };
        let well_formed = match (text.strip_prefix("arn:"), text.strip_prefix("alias/")) {
            (Some(rest), _) => is_arn(rest),
            (_, Some(name)) => of(name, ":/_-"),
            _ => of(text, "-"),
        };
        if !well_formed || text.len() > KMS_KEY_BYTES_MAX {
            return Err(IdError::new(
                "must be the ARN of a KMS key or alias, 'alias/<name>' or a key's id, of at most 2048 characters",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// An image version, `"major.minor"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VersionNumber {
    /// Rises by one with every build.
    pub major: u32,
    /// Always 0 so far.
    pub minor: u32,
}

impl VersionNumber {
    /// The first version of an image, "1.0".
    pub const FIRST: Self = Self { major: 1, minor: 0 };

    /// The version the next build makes.
    #[must_use]
    pub fn next(self) -> Self {
        Self { major: self.major.saturating_add(1), minor: 0 }
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for VersionNumber {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let (major, minor) = text.split_once('.')?;
            let version = Self { major: major.parse().ok()?, minor: minor.parse().ok()? };
            // One spelling per version: no signs, no leading zeros.
            (version.to_string() == text && version.major > 0).then_some(version)
        };
        parse().ok_or_else(|| IdError::new("must have the form 'major.minor', for example '1.0'"))
    }
}

impl TryFrom<String> for VersionNumber {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<VersionNumber> for String {
    fn from(version: VersionNumber) -> String {
        version.to_string()
    }
}

/// `arn:aws:lambda:<region>:<account>:microvm-image:<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageArn {
    /// Region, for example "us-east-1".
    pub region: String,
    /// Account, 12 digits, or "aws" for a platform image.
    pub account: String,
    pub name: ImageName,
}

impl fmt::Display for ImageArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:lambda:{}:{}:microvm-image:{}", self.region, self.account, self.name)
    }
}

impl FromStr for ImageArn {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let form = || IdError::new(format!("Invalid ARN format: {text}"));
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", "aws", "lambda", region, account, "microvm-image", name] = parts[..] else {
            return Err(form());
        };
        if region.is_empty() || account.is_empty() {
            return Err(form());
        }
        let name = name.parse().map_err(|_| form())?;
        Ok(Self { region: region.to_owned(), account: account.to_owned(), name })
    }
}

/// An image as a caller names it: by name or by ARN, always of this fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIdentifier(ImageName);

impl ImageIdentifier {
    /// Parses a name, or an ARN of the given region and account.
    ///
    /// # Errors
    /// When it is neither, or the ARN belongs to another region or account.
    pub fn parse(text: &str, region: &str, account: &str) -> Result<Self, IdError> {
        if !text.starts_with("arn:") {
            return Ok(Self(text.parse()?));
        }
        let arn: ImageArn = text.parse()?;
        if arn.region != region || arn.account != account {
            return Err(IdError::new(format!("belongs to another account or region: {text}")));
        }
        Ok(Self(arn.name))
    }

    #[must_use]
    pub fn name(&self) -> &ImageName {
        &self.0
    }

    #[must_use]
    pub fn into_name(self) -> ImageName {
        self.0
    }
}

#[cfg(test)]
mod tests;
