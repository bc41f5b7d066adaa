//! The rules, as `nft` JSON. Pure: builds documents, applies nothing.
//!
//! Two tables guard each other. The slot's own table decides what its guest
//! may reach; the root namespace's table trusts none of the slots.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::settings::{Egress, PoolSettings, Subnet};
use crate::{DNS_PORT, GATEWAY_ADDRESS, GUEST_ADDRESS, TAP};

/// Start of every pool's table name in the root namespace.
pub(crate) const ROOT_TABLE_PREFIX: &str = "torpor_";
/// Name of the table inside a slot.
const SLOT_TABLE: &str = "torpor";
/// Name of the inner end of a slot's veth pair.
pub(crate) const UPLINK: &str = "uplink";

/// Networks no guest may reach: private, shared, loopback, link-local (the
/// cloud's metadata service among them), documentation, benchmarking,
/// multicast, reserved.
const CLOSED: &[(u32, u8)] = &[
    (0x0000_0000, 8),
    (0x0a00_0000, 8),
    (0x6440_0000, 10),
    (0x7f00_0000, 8),
    (0xa9fe_0000, 16),
    (0xac10_0000, 12),
    (0xc000_0000, 24),
    (0xc000_0200, 24),
    (0xc058_6300, 24),
    (0xc0a8_0000, 16),
    (0xc612_0000, 15),
    (0xc633_6400, 24),
    (0xcb00_7100, 24),
    (0xe000_0000, 3),
];

/// All closed networks, `more` included, without those that lie in another.
pub(crate) fn closed(more: &[Subnet]) -> Vec<Subnet> {
    let built_in = CLOSED
        .iter()
        .map(|(bits, length)| Subnet::new(Ipv4Addr::from_bits(*bits), *length));
    let mut all: Vec<Subnet> = built_in.chain(more.iter().copied()).collect();
    all.sort_by_key(|network| (network.length, network.address));
    let mut kept: Vec<Subnet> = Vec::new();
    for network in all {
        if !kept.iter().any(|wider| wider.contains(&network)) {
            kept.push(network);
        }
    }
    kept.sort_by_key(|network| network.address);
    kept
}

/// Builds one table's commands in order.
struct Table {
    name: String,
    commands: Vec<Value>,
}

impl Table {
    fn new(name: &str) -> Self {
        // Adding before deleting makes the replacement work whether or not the
        // table is there, in the same transaction as the new rules.
        let table = json!({"table": {"family": "inet", "name": name}});
        let commands = vec![
            json!({"add": table}),
            json!({"delete": table}),
            json!({"add": table}),
        ];
        Self {
            name: name.to_owned(),
            commands,
        }
    }

    fn base_chain(&mut self, name: &str, kind: &str, hook: &str, priority: i32, policy: &str) {
        self.commands.push(
            json!({"add": {"chain": {"family": "inet", "table": self.name, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": policy}}}),
        );
    }

    fn chain(&mut self, name: &str) {
        self.commands
            .push(json!({"add": {"chain": {"family": "inet", "table": self.name, "name": name}}}));
    }

    fn rule(&mut self, chain: &str, expressions: &[Value]) {
        self.commands.push(add_rule(&self.name, chain, expressions));
    }

    fn document(self) -> Value {
        json!({"nftables": self.commands})
    }
}

fn add_rule(table: &str, chain: &str, expressions: &[Value]) -> Value {
    json!({"add": {"rule": {"family": "inet", "table": table, "chain": chain, "expr": expressions}}})
}

fn compare(operator: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

fn incoming(device: &str) -> Value {
    compare("==", json!({"meta": {"key": "iifname"}}), json!(device))
}

fn outgoing(device: &str) -> Value {
    compare("==", json!({"meta": {"key": "oifname"}}), json!(device))
}

fn source(operator: &str, network: Value) -> Value {
    compare(
        operator,
        json!({"payload": {"protocol": "ip", "field": "saddr"}}),
        network,
    )
}

fn destination(network: Value) -> Value {
    compare(
        "==",
        json!({"payload": {"protocol": "ip", "field": "daddr"}}),
        network,
    )
}

fn tracked(states: &[&str]) -> Value {
    compare("in", json!({"ct": {"key": "state"}}), json!(states))
}

fn prefix(network: &Subnet) -> Value {
    json!({"prefix": {"addr": network.address.to_string(), "len": network.length}})
}

fn any_of(networks: &[Subnet]) -> Value {
    json!({"set": networks.iter().map(prefix).collect::<Vec<_>>()})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop() -> Value {
    json!({"drop": null})
}

/// The table of a pool in the root namespace. `closed` as of [`closed`].
pub(crate) fn root_table(settings: &PoolSettings, closed: &[Subnet]) -> Value {
    let slots = format!("{}-v*", settings.prefix);
    let outer = prefix(&settings.outer_subnet);
    let mut table = Table::new(&settings.table());
    // Nothing from a slot is for this machine: the host's own connections to a
    // guest are made inside the slot and never pass here.
    table.base_chain("input", "filter", "input", -10, "accept");
    table.rule("input", &[incoming(&slots), drop()]);
    table.base_chain("forward", "filter", "forward", -10, "accept");
    table.rule("forward", &[incoming(&slots), tracked(&["invalid"]), drop()]);
    table.rule(
        "forward",
        &[incoming(&slots), source("!=", outer.clone()), drop()],
    );
    table.rule(
        "forward",
        &[
            incoming(&slots),
            json!({"match": {"op": "==",
        "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}),
            drop(),
        ],
    );
    table.rule("forward", &[incoming(&slots), outgoing(&slots), drop()]);
    table.rule(
        "forward",
        &[incoming(&slots), destination(any_of(closed)), drop()],
    );
    // Only answers go in.
    table.rule(
        "forward",
        &[outgoing(&slots), tracked(&["established", "related"]), accept()],
    );
    table.rule("forward", &[outgoing(&slots), drop()]);
    table.base_chain("postrouting", "nat", "postrouting", 100, "accept");
    table.rule("postrouting", &[source("==", outer), json!({"masquerade": null})]);
    table.document()
}

/// Removes a pool's table from the root namespace.
pub(crate) fn without_root_table(name: &str) -> Value {
    let table = json!({"table": {"family": "inet", "name": name}});
    json!({"nftables": [{"add": table}, {"delete": table}]})
}

/// The table inside a slot.
pub(crate) fn slot_table(closed: &[Subnet], egress: Egress) -> Value {
    let mut table = Table::new(SLOT_TABLE);
    table.base_chain("input", "filter", "input", 0, "drop");
    table.rule("input", &[incoming("lo"), accept()]);
    // Answers to connections the host made to the guest.
    table.rule("input", &[incoming(TAP), tracked(&["established"]), accept()]);
    table.chain("names");
    table.rule(
        "input",
        &[
            incoming(TAP),
            source("==", json!(GUEST_ADDRESS.to_string())),
            destination(json!(GATEWAY_ADDRESS.to_string())),
            json!({"jump": {"target": "names"}}),
        ],
    );
    table.base_chain("forward", "filter", "forward", 0, "drop");
    table.rule("forward", &[tracked(&["invalid"]), drop()]);
    table.rule(
        "forward",
        &[
            incoming(UPLINK),
            outgoing(TAP),
            tracked(&["established", "related"]),
            accept(),
        ],
    );
    table.chain("egress");
    table.rule(
        "forward",
        &[
            incoming(TAP),
            source("!=", json!(GUEST_ADDRESS.to_string())),
            drop(),
        ],
    );
    table.rule("forward", &[incoming(TAP), destination(any_of(closed)), drop()]);
    table.rule(
        "forward",
        &[
            incoming(TAP),
            outgoing(UPLINK),
            json!({"jump": {"target": "egress"}}),
        ],
    );
    table.base_chain("postrouting", "nat", "postrouting", 100, "accept");
    table.rule("postrouting", &[outgoing(UPLINK), json!({"masquerade": null})]);
    table.commands.extend(egress_rules(egress));
    table.document()
}

/// Changes what a slot's guest may reach, in one transaction.
pub(crate) fn change_egress(egress: Egress) -> Value {
    let flush =
        |chain: &str| json!({"flush": {"chain": {"family": "inet", "table": SLOT_TABLE, "name": chain}}});
    let mut commands = vec![flush("names"), flush("egress")];
    commands.extend(egress_rules(egress));
    json!({"nftables": commands})
}

fn egress_rules(egress: Egress) -> Vec<Value> {
    let port = |protocol: &str| {
        compare(
            "==",
            json!({"payload": {"protocol": protocol, "field": "dport"}}),
            json!(DNS_PORT),
        )
    };
    match egress {
        Egress::None => Vec::new(),
        Egress::Internet => vec![
            add_rule(SLOT_TABLE, "names", &[port("udp"), accept()]),
            add_rule(SLOT_TABLE, "names", &[port("tcp"), accept()]),
            add_rule(
                SLOT_TABLE,
                "egress",
                &[
                    compare("==", json!({"meta": {"key": "l4proto"}}), json!("tcp")),
                    accept(),
                ],
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn closed_networks_hold_no_nested_ones() {
        let outer = "10.201.0.0/16".parse().unwrap();
        let public = "203.0.114.0/24".parse().unwrap();
        let all = closed(&[outer, public]);
        assert!(!all.contains(&outer));
        assert!(all.contains(&public));
        assert_eq!(closed(&["0.0.0.0/0".parse().unwrap()]).len(), 1);
    }

    proptest! {
        #[test]
        fn closed_covers_what_it_is_given(bits in any::<u32>(), length in 0u8..=32) {
            let network = Subnet::new(Ipv4Addr::from_bits(bits), length);
            let all = closed(&[network]);
            prop_assert!(all.iter().any(|wider| wider.contains(&network)));
            for (position, one) in all.iter().enumerate() {
                for other in &all[position + 1..] {
                    prop_assert!(!one.contains(other) && !other.contains(one));
                }
            }
        }
    }

    #[test]
    fn no_egress_adds_no_rules() {
        let text = slot_table(&closed(&[]), Egress::None).to_string();
        assert!(!text.contains("dport"));
        assert!(
            slot_table(&closed(&[]), Egress::Internet)
                .to_string()
                .contains("dport")
        );
    }
}
