//! IPv4 networks, and those that code of strangers may not reach: a guest's at run time, a build's steps before.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const fn subnet(first: [u8; 4], length: u8) -> Subnet {
    Subnet::new(Ipv4Addr::new(first[0], first[1], first[2], first[3]), length)
}

/// Private, shared, documentation, benchmarking (RFC 6890): closed unless a setting or a policy opens them.
pub const CLOSED: [Subnet; 10] = [
    subnet([10, 0, 0, 0], 8),
    subnet([100, 64, 0, 0], 10),
    subnet([172, 16, 0, 0], 12),
    subnet([192, 0, 0, 0], 24),
    subnet([192, 0, 2, 0], 24),
    subnet([192, 88, 99, 0], 24),
    subnet([192, 168, 0, 0], 16),
    subnet([198, 18, 0, 0], 15),
    subnet([198, 51, 100, 0], 24),
    subnet([203, 0, 113, 0], 24),
];

/// Those that nothing opens: this network, loopback, link-local (most clouds' metadata services among them), Azure's
/// wire server, multicast, reserved.
pub const CLOSED_ALWAYS: [Subnet; 5] = [
    subnet([0, 0, 0, 0], 8),
    subnet([127, 0, 0, 0], 8),
    subnet([168, 63, 129, 16], 32),
    subnet([169, 254, 0, 0], 16),
    subnet([224, 0, 0, 0], 3),
];

/// A text that is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SubnetError(&'static str);

/// An IPv4 network, written "10.201.0.0/16".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    /// First address.
    pub address: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub length: u8,
}

impl Subnet {
    /// Network of `length` bits that holds `address`.
    #[must_use]
    pub const fn new(address: Ipv4Addr, length: u8) -> Self {
        let mask = if length == 0 { 0 } else { u32::MAX << (32 - length as u32) };
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask), length }
    }

    /// True when every address of `other` lies in this network.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.length <= other.length && Self::new(other.address, self.length) == *self
    }

    /// The same addresses without networks that lie in another, by address.
    #[must_use]
    pub fn disjoint(mut networks: Vec<Self>) -> Vec<Self> {
        networks.sort_by_key(|network| (network.length, network.address));
        let mut kept: Vec<Self> = Vec::new();
        for network in networks {
            if !kept.iter().any(|wider| wider.contains(&network)) {
                kept.push(network);
            }
        }
        kept.sort_by_key(|network| network.address);
        kept
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let parsed = text.split_once('/').and_then(|(address, length)| {
            let (address, length) =
                (address.parse().ok()?, length.parse().ok().filter(|length| *length <= 32)?);
            Some((address, length))
        });
        let (address, length) = parsed.ok_or(SubnetError("a network is written ADDRESS/LENGTH"))?;
        let network = Self::new(address, length);
        if network.address == address {
            Ok(network)
        } else {
            Err(SubnetError("a network's host bits are zero"))
        }
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
