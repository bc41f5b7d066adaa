//! What a pool is made from, checked once.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use model::Subnet;
use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// Longest prefix: device names hold 15 characters, `<prefix>-v<index>`, and an
/// index has at most five digits.
const PREFIX_LENGTH_MAX: usize = 8;
/// Length of the network that a slot's two outer addresses are in.
const OUTER_LENGTH: u8 = 30;
/// Most networks of `blocked`, and of `openable`.
const NETWORKS_MAX: usize = 256;
/// Most slots of one pool.
pub(crate) const TOTAL_MAX: u32 = 16_384;
/// Most that [`PoolSettings::connections_max`] may be, and the same of the rate: the kernel goes through a slot's
/// connections to count them.
const CONNECTIONS_MAX: u32 = 16_384;
const CONNECTIONS_PER_SECOND_MAX: u32 = 10_000;

/// What a guest may reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Egress {
    /// TCP to public addresses, and names through the resolver relay.
    Internet,
    /// What a policy leaves of that. Names resolve as ever; what they resolve to
    /// is reached only where the policy lets it.
    Policy(Policy),
    /// Nothing at all; names neither, since DNS carries data out too.
    None,
}

/// Who may open a slot's tap device besides root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapOwner {
    pub uid: u32,
    pub gid: u32,
}

/// A pool's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// Prefix of every name this pool makes, unique on the machine; lower-case
    /// letters, digits and dashes, at most 8 characters.
    pub prefix: String,
    /// Network that the slots' outer /30s are cut from. Pools on one machine must not overlap.
    pub outer_subnet: Subnet,
    /// Slots kept made and waiting.
    pub ready: u32,
    /// Most slots at one time, waiting or taken.
    pub total: u32,
    /// Owner of the tap devices; absent means root only.
    pub tap_owner: Option<TapOwner>,
    /// False keeps the machine from forwarding at all: [`Egress::Internet`] then
    /// reaches nothing but the resolver relay.
    pub forwarding: bool,
    /// Networks closed to guests besides the private, reserved and on-link ones.
    pub blocked: Vec<Subnet>,
    /// Networks among the closed ones that a [`Policy`]'s allow list reaches, for
    /// private services behind this machine. Its own addresses, slots, loopback,
    /// link-local and [`PoolSettings::blocked`] stay closed.
    pub openable: Vec<Subnet>,
    /// Resolvers the relay asks; empty means those of `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
    /// Most connections that a slot has open to the outside at a time; a further one is dropped.
    pub connections_max: u32,
    /// Most connections that a slot begins in a second; as many may come at once.
    pub connections_per_second: u32,
    /// Longest wait for a slot, in milliseconds.
    pub take_timeout_ms: u64,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            prefix: "tp-h1".to_owned(),
            outer_subnet: Subnet::new(Ipv4Addr::new(10, 201, 0, 0), 16),
            ready: 8,
            total: 512,
            tap_owner: None,
            forwarding: true,
            blocked: Vec::new(),
            openable: Vec::new(),
            resolvers: Vec::new(),
            connections_max: 2048,
            connections_per_second: 500,
            take_timeout_ms: 10_000,
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("slots: {0}")]
pub struct SettingsError(pub(crate) &'static str);

impl PoolSettings {
    /// Checks every field.
    pub fn check(&self) -> Result<(), SettingsError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.prefix.is_empty()
            || self.prefix.len() > PREFIX_LENGTH_MAX
            || !self.prefix.chars().all(allowed)
        {
            return Err(SettingsError("prefix: 1 to 8 lower-case letters, digits and dashes"));
        }
        if !self.prefix.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(SettingsError("prefix: starts with a letter"));
        }
        if self.total == 0 || self.total > TOTAL_MAX {
            return Err(SettingsError("total: 1 to 16384"));
        }
        if self.ready > self.total {
            return Err(SettingsError("ready: at most total"));
        }
        let room = 1u64 << (32 - u32::from(self.outer_subnet.length.min(32)));
        if room / 4 < u64::from(self.total) {
            return Err(SettingsError("outer_subnet: too small, each slot takes four addresses"));
        }
        if self.outer_subnet.address.octets()[0] == 0 {
            // Connections are marked with these addresses, and zero is the mark of all others on the machine.
            return Err(SettingsError("outer_subnet: not within 0.0.0.0/8"));
        }
        if self.blocked.len() > NETWORKS_MAX {
            return Err(SettingsError("blocked: at most 256 networks"));
        }
        if self.openable.len() > NETWORKS_MAX {
            return Err(SettingsError("openable: at most 256 networks"));
        }
        if self.connections_max == 0 || self.connections_max > CONNECTIONS_MAX {
            return Err(SettingsError("connections_max: 1 to 16384"));
        }
        if self.connections_per_second == 0 || self.connections_per_second > CONNECTIONS_PER_SECOND_MAX {
            return Err(SettingsError("connections_per_second: 1 to 10000"));
        }
        if self.take_timeout_ms == 0 || self.take_timeout_ms > 600_000 {
            return Err(SettingsError("take_timeout_ms: 1 to 600000"));
        }
        Ok(())
    }

    pub(crate) fn take_timeout(&self) -> Duration {
        Duration::from_millis(self.take_timeout_ms)
    }

    #[must_use]
    pub fn namespace(&self, index: u32) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// Index of a namespace this pool named.
    #[must_use]
    pub fn index_of(&self, namespace: &str) -> Option<u32> {
        index_after(namespace, &format!("{}-", self.prefix))
    }

    pub(crate) fn veth(&self, index: u32) -> String {
        format!("{}-v{index}", self.prefix)
    }

    pub(crate) fn index_of_veth(&self, device: &str) -> Option<u32> {
        index_after(device, &format!("{}-v", self.prefix))
    }

    /// Name of this pool's table in the root namespace.
    pub(crate) fn table(&self) -> String {
        format!("{}{}", crate::firewall::ROOT_TABLE_PREFIX, self.prefix.replace('-', "_"))
    }

    /// Name of the table beside it that has the timeouts of closed connections.
    pub(crate) fn timeouts_table(&self) -> String {
        format!("{}_closed", self.table())
    }

    /// The root namespace's ends of all this pool's slots, as rules name them.
    pub(crate) fn veths(&self) -> String {
        format!("{}-v*", self.prefix)
    }

    /// Most entries that all slots together have in the root namespace's connection table: open connections, and
    /// those that were closed a short time ago.
    pub(crate) fn tracked_max(&self) -> u64 {
        let closed = u64::from(self.connections_per_second) * u64::from(crate::firewall::CLOSED_SECONDS + 1);
        u64::from(self.total) * (u64::from(self.connections_max) + closed)
    }

    /// Outer addresses of a slot: root side, namespace side.
    pub(crate) fn outer(&self, index: u32) -> (Ipv4Addr, Ipv4Addr) {
        let base = self.outer_subnet.address.to_bits() + index * 4;
        (Ipv4Addr::from_bits(base + 1), Ipv4Addr::from_bits(base + 2))
    }

    /// The /30 that holds both.
    pub(crate) fn outer_network(&self, index: u32) -> Subnet {
        Subnet::new(self.outer(index).1, OUTER_LENGTH)
    }

    /// Everything of the outer subnet but the networks of some slots, in few pieces.
    pub(crate) fn outer_without(&self, slots: &BTreeSet<u32>) -> Vec<Subnet> {
        let start = self.outer_subnet.address.to_bits();
        let (mut left, mut without) = (vec![self.outer_subnet], Vec::new());
        while let Some(network) = left.pop() {
            let first = (network.address.to_bits() - start) / 4;
            let count = 1u32 << OUTER_LENGTH.saturating_sub(network.length);
            if slots.range(first..first + count).next().is_none() {
                without.push(network);
            } else if network.length < OUTER_LENGTH {
                let length = network.length + 1;
                let second = Ipv4Addr::from_bits(network.address.to_bits() | 1 << (32 - length));
                left.extend([network.address, second].map(|address| Subnet::new(address, length)));
            }
        }
        without
    }
}

/// The number after `start`, when that is all there is and it is written the one way we write it.
fn index_after(name: &str, start: &str) -> Option<u32> {
    let digits = name.strip_prefix(start)?;
    let index = digits.parse().ok()?;
    (format!("{index}") == digits).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_of_a_slot() {
        let settings = PoolSettings::default();
        assert_eq!(settings.namespace(12), "tp-h1-12");
        assert_eq!(settings.veth(12), "tp-h1-v12");
        assert_eq!(settings.table(), "torpor_tp_h1");
        assert_eq!(settings.outer(0), (Ipv4Addr::new(10, 201, 0, 1), Ipv4Addr::new(10, 201, 0, 2)));
        assert_eq!(settings.outer(300).0, Ipv4Addr::new(10, 201, 4, 177));
        for (name, index) in [
            ("tp-h1-7", Some(7)),
            ("tp-h1-07", None),
            ("tp-h1-v7", None),
            ("tp-h10-7", None),
            ("tp-h1-", None),
        ] {
            assert_eq!(settings.index_of(name), index, "{name}");
        }
        assert_eq!(settings.index_of_veth("tp-h1-v7"), Some(7));
        assert_eq!(settings.index_of_veth("tp-h1-7"), None);
    }

    #[test]
    fn an_outer_subnet_is_cut_around_slots() {
        let settings =
            PoolSettings { outer_subnet: "10.201.0.0/27".parse().unwrap(), ..PoolSettings::default() };
        for (slots, expected) in [
            (&[][..], &["10.201.0.0/27"][..]),
            (&[0], &["10.201.0.4/30", "10.201.0.8/29", "10.201.0.16/28"]),
            (&[3, 4], &["10.201.0.0/29", "10.201.0.8/30", "10.201.0.20/30", "10.201.0.24/29"]),
            (&[0, 1, 2, 3, 4, 5, 6, 7], &[]),
        ] {
            let mut pieces = settings.outer_without(&slots.iter().copied().collect());
            pieces.sort_by_key(|network| network.address);
            let pieces: Vec<String> = pieces.iter().map(Subnet::to_string).collect();
            assert_eq!(pieces, expected, "{slots:?}");
        }
        assert_eq!(settings.outer_network(2).to_string(), "10.201.0.8/30");
    }

    #[test]
    fn settings_are_checked() {
        let ok = PoolSettings::default();
        assert_eq!(ok.check(), Ok(()));
        type Change = fn(&mut PoolSettings);
        let broken: &[(&str, Change)] = &[
            ("prefix", |s| s.prefix = "too-long-x".into()),
            ("prefix", |s| s.prefix = "Tp".into()),
            ("prefix", |s| s.prefix = "-tp".into()),
            ("total", |s| s.total = 0),
            ("ready", |s| s.ready = s.total + 1),
            ("outer_subnet", |s| s.outer_subnet = "10.0.0.0/24".parse().unwrap()),
            ("connections_max", |s| s.connections_max = 0),
            ("connections_max", |s| s.connections_max = 16_385),
            ("connections_per_second", |s| s.connections_per_second = 0),
            ("connections_per_second", |s| s.connections_per_second = 10_001),
            ("outer_subnet", |s| s.outer_subnet = "0.0.0.0/0".parse().unwrap()),
            ("take_timeout_ms", |s| s.take_timeout_ms = 0),
            ("blocked", |s| s.blocked = vec![s.outer_subnet; 257]),
            ("openable", |s| s.openable = vec![s.outer_subnet; 257]),
        ];
        for (field, break_it) in broken {
            let mut settings = ok.clone();
            break_it(&mut settings);
            let error = settings.check().unwrap_err();
            assert!(error.0.starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn networks_parse_and_nest() {
        let private: Subnet = "10.0.0.0/8".parse().unwrap();
        assert!(private.contains(&"10.201.0.0/16".parse().unwrap()));
        assert!(!private.contains(&"11.0.0.0/16".parse().unwrap()));
        assert!("10.0.0.1/8".parse::<Subnet>().is_err());
        assert!("10.0.0.0/33".parse::<Subnet>().is_err());
        assert!("0.0.0.0/0".parse::<Subnet>().unwrap().contains(&private));
    }
}
