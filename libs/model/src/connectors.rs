//! ARNs of network connectors.
//!
//! ```text
//! managed   arn:aws:lambda:<region>:aws:network-connector:aws-network-connector:<NAME>
//! customer  arn:aws:lambda:<region>:<account>:network-connector:<id or name>[:<version>]
//! ```

use std::fmt;
use std::str::FromStr;

pub use crate::ids::ConnectorName;
use crate::ids::IdError;

/// What text that is no connector's ARN is told.
pub const MALFORMED: &str = "Malformed network connector ARN";
const MANAGED: &str = "aws-network-connector";

/// A network connector's ARN.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectorArn {
    /// Region, for example "us-east-1".
    pub region: String,
    /// What it names there.
    pub resource: ConnectorResource,
}

/// What a connector's ARN names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConnectorResource {
    /// A connector of the platform, by name: "INTERNET_EGRESS".
    Managed(ConnectorName),
    /// A connector of an account.
    Customer {
        /// The account, 12 digits.
        account: String,
        /// The connector's id or name.
        key: ConnectorName,
        /// Its version, from 1; absent means its newest.
        version: Option<u64>,
    },
}

impl ConnectorArn {
    /// ARN of a platform connector.
    #[must_use]
    pub fn managed(region: &str, name: ConnectorName) -> Self {
        Self { region: region.to_owned(), resource: ConnectorResource::Managed(name) }
    }

    /// ARN of an account's connector.
    #[must_use]
    pub fn customer(region: &str, account: &str, key: ConnectorName, version: Option<u64>) -> Self {
        Self {
            region: region.to_owned(),
            resource: ConnectorResource::Customer { account: account.to_owned(), key, version },
        }
    }
}

impl fmt::Display for ConnectorArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:lambda:{}:", self.region)?;
        match &self.resource {
            ConnectorResource::Managed(name) => write!(f, "aws:network-connector:{MANAGED}:{name}"),
            ConnectorResource::Customer { account, key, version } => {
                write!(f, "{account}:network-connector:{key}")?;
                version.map_or(Ok(()), |version| write!(f, ":{version}"))
            }
        }
    }
}

impl FromStr for ConnectorArn {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse(text).ok_or_else(|| IdError::new(MALFORMED))
    }
}

fn parse(text: &str) -> Option<ConnectorArn> {
    let (head, resource) = text.strip_prefix("arn:aws:lambda:")?.split_once(":network-connector:")?;
    let (region, account) = head.split_once(':')?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if region.is_empty() || !region.chars().all(plain) {
        return None;
    }
    if account == "aws" {
        let name = resource.strip_prefix(MANAGED)?.strip_prefix(':')?;
        return Some(ConnectorArn::managed(region, name.parse().ok()?));
    }
    if account.len() != 12 || !account.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let (key, version) = match resource.split_once(':') {
        Some((key, version)) => (key, Some(self::version(version)?)),
        None => (resource, None),
    };
    Some(ConnectorArn::customer(region, account, key.parse().ok()?, version))
}

/// A version in its one spelling.
fn version(text: &str) -> Option<u64> {
    let version: u64 = text.parse().ok()?;
    (version > 0 && version.to_string() == text).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arns_of_both_kinds_parse_and_nothing_else_does() {
        for (text, good) in [
            ("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS", true),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1", true),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:12", true),
            ("INTERNET_EGRESS", false),
            ("", false),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:", false),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:0", false),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:01", false),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:1:1", false),
            ("arn:aws:lambda:us-east-1:0000:network-connector:nc-1", false),
            ("arn:aws:lambda::000000000000:network-connector:nc-1", false),
            ("arn:aws:lambda:us-east-1:aws:network-connector:INTERNET_EGRESS", false),
            ("arn:aws:lambda:us-east-1:000000000000:microvm-image:app", false),
        ] {
            assert_eq!(text.parse::<ConnectorArn>().is_ok(), good, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(
            text in "(arn:aws:lambda:[a-z0-9-]{0,9}:([0-9]{12}|aws):network-connector:[a-zA-Z0-9:-]{0,30})|.{0,60}"
        ) {
            if let Ok(arn) = text.parse::<ConnectorArn>() {
                prop_assert_eq!(arn.to_string(), text);
            }
        }
    }
}
