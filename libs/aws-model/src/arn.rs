//! ARNs of the connectors that the platform itself owns.

/// The account part of everything that the platform owns.
pub const PLATFORM_ACCOUNT: &str = "aws";

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

    /// The connector of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|connector| connector.name() == name)
    }

    /// Its ARN, `arn:aws:lambda:<region>:aws:network-connector:aws-network-connector:<NAME>`.
    #[must_use]
    pub fn arn(self, region: &str) -> String {
        let name = self.name();
        format!("arn:aws:lambda:{region}:{PLATFORM_ACCOUNT}:network-connector:aws-network-connector:{name}")
    }
}

#[cfg(test)]
mod tests {
    use model::{ConnectorArn, ConnectorResource};

    use super::*;

    #[test]
    fn what_the_platform_owns_parses_as_its() {
        for connector in ManagedConnector::ALL {
            assert_eq!(ManagedConnector::from_name(connector.name()), Some(connector));
            let arn: ConnectorArn = connector.arn("us-east-1").parse().unwrap();
            let ConnectorResource::Managed(name) = arn.resource else {
                panic!("{connector:?} is the platform's")
            };
            assert_eq!(name.as_str(), connector.name());
        }
        assert_eq!(ManagedConnector::from_name("http_ingress"), None);
    }
}
