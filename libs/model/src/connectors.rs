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

/// Which way a connector lets traffic through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into a microVM.
    Ingress,
    /// Out of it.
    Egress,
}

/// A connector of the platform, which every account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ManagedConnector {
    /// Requests to the endpoint; the default.
    HttpIngress,
    /// Requests to the endpoint; stands alone.
    AllIngress,
    /// Shells, beside requests to the endpoint.
    ShellIngress,
    /// Nothing from outside; stands alone.
    NoIngress,
    /// The internet; the default.
    InternetEgress,
}

impl ManagedConnector {
    /// Every one of them; the first of a direction is its default.
    pub const ALL: [Self; 5] =
        [Self::HttpIngress, Self::AllIngress, Self::ShellIngress, Self::NoIngress, Self::InternetEgress];

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

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|connector| connector.name() == name)
    }

    /// Which way it lets traffic through.
    #[must_use]
    pub fn direction(self) -> Direction {
        if self == Self::InternetEgress { Direction::Egress } else { Direction::Ingress }
    }

    /// Those of a direction, its default first.
    pub fn of(direction: Direction) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |connector| connector.direction() == direction)
    }
}

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
    /// A connector of the platform, by name; [`ConnectorArn::managed_connector`] says whether there is such a one.
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
    #[must_use]
    pub fn managed(region: &str, connector: ManagedConnector) -> Self {
        let name = connector.name().parse().expect("the platform's names have the form of names");
        Self { region: region.to_owned(), resource: ConnectorResource::Managed(name) }
    }

    /// The platform's connector that it names, if it names one.
    #[must_use]
    pub fn managed_connector(&self) -> Option<ManagedConnector> {
        match &self.resource {
            ConnectorResource::Managed(name) => ManagedConnector::from_name(name.as_str()),
            ConnectorResource::Customer { .. } => None,
        }
    }

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
        let resource = ConnectorResource::Managed(name.parse().ok()?);
        return Some(ConnectorArn { region: region.to_owned(), resource });
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

    #[test]
    fn managed_connectors_have_one_name_each_and_a_direction() {
        for connector in ManagedConnector::ALL {
            assert_eq!(ManagedConnector::from_name(connector.name()), Some(connector));
            let arn: ConnectorArn =
                ConnectorArn::managed("us-east-1", connector).to_string().parse().unwrap();
            assert_eq!(arn.managed_connector(), Some(connector));
        }
        let other = ConnectorArn::managed("r", ManagedConnector::NoIngress).to_string() + "S";
        assert_eq!(other.parse::<ConnectorArn>().unwrap().managed_connector(), None);
        let of = |direction| ManagedConnector::of(direction).map(ManagedConnector::name).collect::<Vec<_>>();
        assert_eq!(of(Direction::Ingress), ["HTTP_INGRESS", "ALL_INGRESS", "SHELL_INGRESS", "NO_INGRESS"]);
        assert_eq!(of(Direction::Egress), ["INTERNET_EGRESS"]);
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
