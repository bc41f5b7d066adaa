//! Names of resources that `libs/model` does not know: managed images, connectors, roles.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use regex::Regex;

/// The account part of everything that the platform owns.
pub const PLATFORM_ACCOUNT: &str = "aws";

/// A text that is not an ARN of the wanted kind. The message is the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArnError(&'static str);

impl fmt::Display for ArnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ArnError {}

/// The ARN of a managed image, `arn:aws:lambda:<region>:aws:microvm-image:<name>`.
#[must_use]
pub fn managed_image(region: &str, name: &str) -> String {
    format!("arn:aws:lambda:{region}:{PLATFORM_ACCOUNT}:microvm-image:{name}")
}

/// A connector that every account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ManagedConnector {
    /// Requests to the endpoint; the default.
    HttpIngress,
    /// Requests to the endpoint, and whatever else may come.
    AllIngress,
    /// Shell sessions.
    ShellIngress,
    /// Nothing from outside.
    NoIngress,
    /// The internet; the default.
    InternetEgress,
}

impl ManagedConnector {
    /// Every managed connector.
    pub const ALL: [Self; 5] = [
        Self::HttpIngress,
        Self::AllIngress,
        Self::ShellIngress,
        Self::NoIngress,
        Self::InternetEgress,
    ];

    /// The last part of its ARN.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HttpIngress => "HTTP_INGRESS",
            Self::AllIngress => "ALL_INGRESS",
            Self::ShellIngress => "SHELL_INGRESS",
            Self::NoIngress => "NO_INGRESS",
            Self::InternetEgress => "INTERNET_EGRESS",
        }
    }

    /// The connector of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|connector| connector.name() == name)
    }

    /// True for what a microVM takes in.
    #[must_use]
    pub fn is_ingress(self) -> bool {
        self != Self::InternetEgress
    }

    /// Its ARN, `arn:aws:lambda:<region>:aws:network-connector:aws-network-connector:<NAME>`.
    #[must_use]
    pub fn arn(self, region: &str) -> String {
        let name = self.name();
        format!("arn:aws:lambda:{region}:{PLATFORM_ACCOUNT}:network-connector:aws-network-connector:{name}")
    }
}

/// The ARN of a connector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConnectorArn {
    /// One that every account has.
    Managed {
        /// "us-east-1".
        region: String,
        /// Which one.
        connector: ManagedConnector,
    },
    /// One that an account made.
    Customer {
        /// "us-east-1".
        region: String,
        /// 12 digits.
        account: String,
        /// Id or name, 1 or more of `[a-zA-Z0-9-_]`.
        id: String,
        /// Version, from 1; the latest when absent.
        version: Option<u64>,
    },
}

impl fmt::Display for ConnectorArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Managed { region, connector } => f.write_str(&connector.arn(region)),
            Self::Customer {
                region,
                account,
                id,
                version,
            } => {
                write!(f, "arn:aws:lambda:{region}:{account}:network-connector:{id}")?;
                version.map_or(Ok(()), |version| write!(f, ":{version}"))
            }
        }
    }
}

impl FromStr for ConnectorArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let malformed = ArnError("Malformed network connector ARN");
        let mut parts = text.split(':');
        let head: [Option<&str>; 6] = std::array::from_fn(|_| parts.next());
        let [
            Some("arn"),
            Some("aws"),
            Some("lambda"),
            Some(region),
            Some(account),
            Some("network-connector"),
        ] = head
        else {
            return Err(malformed);
        };
        let rest: Vec<&str> = parts.take(3).collect();
        let is_region = !region.is_empty() && region.bytes().all(|byte| is_word(byte) && byte != b'_');
        if !is_region {
            return Err(malformed);
        }
        let region = region.to_owned();
        if account == PLATFORM_ACCOUNT {
            let ["aws-network-connector", name] = rest[..] else {
                return Err(malformed);
            };
            let connector = ManagedConnector::from_name(name).ok_or(malformed)?;
            return Ok(Self::Managed { region, connector });
        }
        let (id, version) = match rest[..] {
            [id] => (id, None),
            [id, version] => (id, Some(version_number(version).ok_or(malformed.clone())?)),
            _ => return Err(malformed),
        };
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        if !is_account || id.is_empty() || !id.bytes().all(is_word) {
            return Err(malformed);
        }
        Ok(Self::Customer {
            region,
            account: account.to_owned(),
            id: id.to_owned(),
            version,
        })
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// One spelling per version: no sign, no leading zero.
fn version_number(text: &str) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|version: &u64| *version > 0 && version.to_string() == text)
}

/// The ARN of an IAM role. Any well-formed one is good; nothing stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoleArn(String);

impl RoleArn {
    /// The ARN as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The account of the role, 12 digits.
    #[must_use]
    pub fn account(&self) -> &str {
        self.0.split(':').nth(4).expect("checked when it was parsed")
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RoleArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        static FORM: OnceLock<Regex> = OnceLock::new();
        let form = FORM.get_or_init(|| {
            Regex::new(r"\Aarn:aws[a-z\-]*:iam::[0-9]{12}:role/[a-zA-Z_0-9+=,.@\-_/]+\z").expect("a literal")
        });
        if text.len() > 2048 || !form.is_match(text) {
            return Err(ArnError("Malformed role ARN"));
        }
        Ok(Self(text.to_owned()))
    }
}
