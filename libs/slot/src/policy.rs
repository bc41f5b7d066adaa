//! What a customer's connectors let a guest reach, checked once.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::Subnet;

/// Most networks of one list of a [`Policy`]: more than fit into the tags of all
/// the connectors a microVM may have.
pub const POLICY_NETWORKS_MAX: usize = 1024;
/// Most characters of a wrong network that an error repeats.
const SHOWN_MAX: usize = 64;

/// Destinations a guest may reach: never a denied one, and where there is an allow list only what is in it.
///
/// A policy takes away from [`Egress::Internet`](crate::Egress::Internet). What is
/// closed to every guest stays closed, except that an allow list reaches the
/// networks of [`PoolSettings::openable`](crate::PoolSettings::openable).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Disjoint; absent: no allow list. Empty: a list that names nothing a slot can reach.
    pub(crate) allow: Option<Vec<Subnet>>,
    /// Disjoint.
    pub(crate) deny: Vec<Subnet>,
}

/// A list that cannot be used: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PolicyError {
    /// "allow_cidrs" or "deny_cidrs", with the index of the network at fault.
    pub field: String,
    pub message: String,
}

impl Policy {
    /// Reads two lists of networks in CIDR form, IPv4 or IPv6, at most [`POLICY_NETWORKS_MAX`] each. Bits
    /// beyond the prefix length do not count. An empty allow list is none. Slots carry IPv4 only, so that an
    /// IPv6 network matches nothing; an allow list of nothing else lets nothing out.
    ///
    /// # Errors
    /// Names the first list or network that breaks a rule.
    pub fn parse(allow: &[String], deny: &[String]) -> Result<Self, PolicyError> {
        let networks = read("allow_cidrs", allow)?;
        Ok(Self { allow: (!allow.is_empty()).then_some(networks), deny: read("deny_cidrs", deny)? })
    }
}

fn read(field: &str, list: &[String]) -> Result<Vec<Subnet>, PolicyError> {
    if list.len() > POLICY_NETWORKS_MAX {
        return Err(PolicyError {
            field: field.to_owned(),
            message: format!("at most {POLICY_NETWORKS_MAX} networks, not {}", list.len()),
        });
    }
    let mut networks = Vec::new();
    for (index, text) in list.iter().enumerate() {
        match network(text) {
            Some(Network::V4(network)) => networks.push(network),
            Some(Network::V6) => {}
            None => {
                let shown: String = text.chars().take(SHOWN_MAX).collect();
                return Err(PolicyError {
                    field: format!("{field}[{index}]"),
                    message: format!("'{shown}' is not a network in CIDR form, for example 203.0.113.0/24"),
                });
            }
        }
    }
    Ok(Subnet::disjoint(networks))
}

enum Network {
    V4(Subnet),
    /// Checked; no slot carries it.
    V6,
}

fn network(text: &str) -> Option<Network> {
    let (address, length) = text.split_once('/')?;
    let bits: u8 = length.parse().ok()?;
    if bits.to_string() != length {
        return None;
    }
    if let Ok(address) = address.parse::<Ipv4Addr>() {
        return (bits <= 32).then(|| Network::V4(Subnet::new(address, bits)));
    }
    let address: Ipv6Addr = address.parse().ok()?;
    if bits > 128 {
        return None;
    }
    Some(match (address.to_ipv4_mapped(), bits.checked_sub(96)) {
        // It means IPv4 traffic, and as IPv6 it would be a rule that does nothing.
        (Some(mapped), Some(bits)) => Network::V4(Subnet::new(mapped, bits)),
        _ => Network::V6,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lists(allow: &[&str], deny: &[&str]) -> Result<Policy, PolicyError> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Policy::parse(&owned(allow), &owned(deny))
    }

    #[test]
    fn lists_are_read() {
        let policy = lists(&["10.1.2.3/8", "10.4.0.0/16", "2001:db8::/32"], &["0.0.0.0/0"]).unwrap();
        assert_eq!(policy.allow, Some(vec!["10.0.0.0/8".parse().unwrap()]));
        assert_eq!(policy.deny, ["0.0.0.0/0".parse().unwrap()]);
        assert_eq!(lists(&[], &[]).unwrap().allow, None);
        let mapped = lists(&[], &["::ffff:10.0.0.0/104", "::ffff:0.0.0.0/90"]).unwrap();
        assert_eq!(mapped.deny, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(
            lists(&["::/0"], &[]).unwrap().allow,
            Some(Vec::new()),
            "a list that lets nothing of IPv4 out is not an absent one"
        );
    }

    #[test]
    fn wrong_networks_are_named() {
        let wrong = [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "256.0.0.0/8",
            "::/129",
            "example.com/8",
        ];
        for text in wrong {
            let error = lists(&[], &["10.0.0.0/8", text]).expect_err(text);
            assert_eq!(error.field, "deny_cidrs[1]");
            assert!(error.message.contains(&format!("'{text}'")), "{error}");
        }
        let long = "x".repeat(10_000);
        assert!(lists(&[&long], &[]).expect_err("long").message.len() < 200);
    }

    #[test]
    fn lists_are_bounded() {
        let networks = |count: usize| (0..count).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256));
        let (full, over): (Vec<_>, Vec<_>) = (networks(1024).collect(), networks(1025).collect());
        assert_eq!(Policy::parse(&full, &full).unwrap().deny.len(), 1024);
        for (allow, deny, field) in [(&over, &full, "allow_cidrs"), (&full, &over, "deny_cidrs")] {
            let error = Policy::parse(allow, deny).expect_err(field);
            assert_eq!(
                (error.field.as_str(), error.message.as_str()),
                (field, "at most 1024 networks, not 1025")
            );
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[0-9a-f:./ ]{0,50}") {
            let _ = lists(&[&text], &[&text]);
        }
    }
}
