//! The rules, as `nft` JSON. Pure: builds documents, applies nothing.
//!
//! Two tables guard each other. The slot's own table decides what its guest
//! may reach; the root namespace's table trusts none of the slots. Both bound how
//! many connections a slot has in the kernel's tables: the first for the guest, the
//! second for whatever else runs in the slot.

use std::net::Ipv4Addr;

use model::Subnet;
use model::networks::{CLOSED, CLOSED_ALWAYS};
use serde_json::{Value, json};

use crate::settings::{Egress, PoolSettings};
use crate::{DNS_PORT, GATEWAY_ADDRESS, GUEST_ADDRESS, TAP};

/// Start of every pool's table name in the root namespace.
pub(crate) const ROOT_TABLE_PREFIX: &str = "torpor_";
/// Name of the table inside a slot.
const SLOT_TABLE: &str = "torpor";
/// Chains of a slot's table that its guest's egress decides on.
const EGRESS_CHAINS: [&str; 3] = ["names", "opened", "egress"];
/// Name of the inner end of a slot's veth pair.
pub(crate) const UPLINK: &str = "uplink";
/// How long a closed connection stays in the connection tables, in seconds. The kernel does not count it among the
/// open ones, so that only the rate of new connections bounds how many of these there are.
pub(crate) const CLOSED_SECONDS: u32 = 5;
/// Most slots that the root namespace's table counts connections of: all that there can be.
const SLOTS_COUNTED: u32 = crate::settings::TOTAL_MAX;

/// Networks closed to the guests of a pool; each list without networks that lie in another of it.
#[derive(Debug)]
pub(crate) struct Closed {
    /// Closed to every guest.
    all: Vec<Subnet>,
    /// Those that nothing opens. They lie in `all`.
    always: Vec<Subnet>,
    /// Those that an allow list may open.
    openable: Vec<Subnet>,
}

impl Closed {
    /// `own`: this machine's addresses, with the length of the network each is on.
    pub(crate) fn new(settings: &PoolSettings, own: &[(Ipv4Addr, u8)]) -> Self {
        let mut always = CLOSED_ALWAYS.to_vec();
        always.extend(settings.blocked.iter().chain([&settings.outer_subnet]));
        always.extend(own.iter().map(|(address, _)| Subnet::new(*address, 32)));
        let mut all = CLOSED.to_vec();
        all.extend(&always);
        all.extend(own.iter().map(|(address, length)| Subnet::new(*address, *length)));
        Self {
            all: Subnet::disjoint(all),
            always: Subnet::disjoint(always),
            openable: Subnet::disjoint(settings.openable.clone()),
        }
    }
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
        let commands = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        Self { name: name.to_owned(), commands }
    }

    fn base_chain(&mut self, name: &str, kind: &str, hook: &str, priority: i32, policy: &str) {
        self.commands.push(json!({"add": {"chain": {"family": "inet", "table": self.name, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": policy}}}));
    }

    fn chain(&mut self, name: &str) {
        self.commands.push(json!({"add": {"chain": {"family": "inet", "table": self.name, "name": name}}}));
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
    compare(operator, json!({"payload": {"protocol": "ip", "field": "saddr"}}), network)
}

fn destination(operator: &str, network: Value) -> Value {
    compare(operator, json!({"payload": {"protocol": "ip", "field": "daddr"}}), network)
}

fn tracked(states: &[&str]) -> Value {
    compare("in", json!({"ct": {"key": "state"}}), json!(states))
}

fn prefix(network: &Subnet) -> Value {
    json!({"prefix": {"addr": network.address.to_string(), "len": network.length}})
}

/// The networks must be disjoint, and at least one.
fn any_of(networks: &[Subnet]) -> Value {
    json!({"set": networks.iter().map(prefix).collect::<Vec<_>>()})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop() -> Value {
    json!({"drop": null})
}

fn notrack() -> Value {
    json!({"notrack": null})
}

fn jump(chain: &str) -> Value {
    json!({"jump": {"target": chain}})
}

fn tcp() -> Value {
    compare("==", json!({"meta": {"key": "l4proto"}}), json!("tcp"))
}

/// Packets on this port from one end of the link between guest and gateway to the other.
fn of_relay(protocol: &str, port: &str) -> Value {
    compare("==", json!({"payload": {"protocol": protocol, "field": port}}), json!(DNS_PORT))
}

/// Holds while new connections come faster than the settings allow. A second's worth may come at once.
fn too_fast(settings: &PoolSettings) -> Value {
    let rate = settings.connections_per_second;
    json!({"limit": {"rate": rate, "burst": rate, "per": "second", "inv": true}})
}

/// Holds for a connection beyond the number that may be open.
fn too_many(settings: &PoolSettings) -> Value {
    json!({"ct count": {"val": settings.connections_max, "inv": true}})
}

/// A statement with a state of its own for every device that packets come in by. The device and not the address: what
/// has broken out of a guest may send from any address.
fn per_device(name: &str, statement: &Value) -> Value {
    json!({"meter": {"name": name, "key": {"meta": {"key": "iifname"}}, "size": SLOTS_COUNTED, "stmt": statement}})
}

/// Marks a connection with its slot's outer address, which is how it is found when the slot goes.
fn mark_with_slot(settings: &PoolSettings) -> Value {
    let slots = (0..settings.total).map(|index| settings.outer(index).1);
    let marks: Vec<Value> = slots.map(|slot| json!([slot.to_string(), slot.to_bits()])).collect();
    let address = json!({"payload": {"protocol": "ip", "field": "saddr"}});
    json!({"mangle": {"key": {"ct": {"key": "mark"}},
        "value": {"map": {"key": address, "data": {"set": marks}}}}})
}

/// The table of a pool in the root namespace. `apart`: devices of this machine among which nothing is forwarded.
pub(crate) fn root_table(settings: &PoolSettings, closed: &Closed, apart: &[String]) -> Value {
    let slots = settings.veths();
    let outer = prefix(&settings.outer_subnet);
    let mut table = Table::new(&settings.table());
    // Nothing from a slot is for this machine: the host's own connections to a
    // guest are made inside the slot and never pass here.
    table.base_chain("input", "filter", "input", -10, "accept");
    table.rule("input", &[incoming(&slots), drop()]);
    table.base_chain("forward", "filter", "forward", -10, "accept");
    table.rule("forward", &[incoming(&slots), tracked(&["invalid"]), drop()]);
    table.rule("forward", &[incoming(&slots), source("!=", outer.clone()), drop()]);
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
    // Before anything is looked up, so that what is dropped below costs its slot, too.
    let new = || [incoming(&slots), tracked(&["new"])];
    let bounded =
        |name: &str, statement: Value| [&new()[..], &[per_device(name, &statement), drop()]].concat();
    table.rule("forward", &bounded("rates", too_fast(settings)));
    table.rule("forward", &bounded("connections", too_many(settings)));
    table.rule("forward", &[&new()[..], &[mark_with_slot(settings)]].concat());
    // Which guest may use what is open here is for its slot's table to say.
    let mut rest = vec![incoming(&slots), destination("==", any_of(&closed.all))];
    if !closed.openable.is_empty() {
        let always = destination("==", any_of(&closed.always));
        table.rule("forward", &[incoming(&slots), always, drop()]);
        rest.push(destination("!=", any_of(&closed.openable)));
    }
    rest.push(drop());
    table.rule("forward", &rest);
    // Only answers go in.
    table.rule("forward", &[outgoing(&slots), tracked(&["established", "related"]), accept()]);
    table.rule("forward", &[outgoing(&slots), drop()]);
    if !apart.is_empty() {
        let own = json!({"set": apart});
        let [from, to] =
            ["iifname", "oifname"].map(|key| compare("==", json!({"meta": {"key": key}}), own.clone()));
        table.rule("forward", &[from, to, drop()]);
    }
    table.base_chain("postrouting", "nat", "postrouting", 100, "accept");
    table.rule("postrouting", &[source("==", outer), json!({"masquerade": null})]);
    table.document()
}

/// A second table of a pool in the root namespace, as `nft` text: how long its slots' closed connections are
/// remembered. `nft` before 1.0.7 reads a timeout policy from text only, and so this is no part of the other.
pub(crate) fn timeouts_table(settings: &PoolSettings) -> String {
    let (table, slots) = (settings.timeouts_table(), settings.veths());
    format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
         \x20 ct timeout closed {{\n    protocol tcp\n    l3proto ip\n\
         \x20   policy = {{ time_wait : {CLOSED_SECONDS}, close : {CLOSED_SECONDS} }}\n  }}\n\
         \x20 chain forward {{\n    type filter hook forward priority -11; policy accept;\n\
         \x20   iifname \"{slots}\" ct state new ct timeout set \"closed\"\n  }}\n}}\n"
    )
}

/// Removes a pool's tables from the root namespace.
pub(crate) fn without_root_tables(settings: &PoolSettings) -> Value {
    let both = [settings.table(), settings.timeouts_table()];
    let tables = both.map(|name| json!({"table": {"family": "inet", "name": name}}));
    let commands: Vec<Value> =
        tables.iter().flat_map(|table| [json!({"add": table}), json!({"delete": table})]).collect();
    json!({"nftables": commands})
}

/// The table inside a slot. What depends on the guest's egress is in chains of its own: `names` (the resolver
/// relay), `opened` (closed networks that its allow list opens; no verdict means closed), `egress` (the rest;
/// no verdict means closed too).
pub(crate) fn slot_table(settings: &PoolSettings, closed: &Closed, egress: &Egress) -> Value {
    let mut table = Table::new(SLOT_TABLE);
    // The relay's questions take no place among the connections: each comes from a port of its own.
    table.base_chain("untracked", "filter", "prerouting", -300, "accept");
    table.base_chain("untracked_out", "filter", "output", -300, "accept");
    let gateway = || json!(GATEWAY_ADDRESS.to_string());
    for protocol in ["udp", "tcp"] {
        let question = [incoming(TAP), destination("==", gateway()), of_relay(protocol, "dport"), notrack()];
        table.rule("untracked", &question);
        let answer = [outgoing(TAP), source("==", gateway()), of_relay(protocol, "sport"), notrack()];
        table.rule("untracked_out", &answer);
    }
    table.base_chain("input", "filter", "input", 0, "drop");
    table.rule("input", &[incoming("lo"), accept()]);
    // Answers to connections the host made to the guest.
    table.rule("input", &[incoming(TAP), tracked(&["established"]), accept()]);
    for chain in EGRESS_CHAINS {
        table.chain(chain);
    }
    table.rule(
        "input",
        &[
            incoming(TAP),
            source("==", json!(GUEST_ADDRESS.to_string())),
            destination("==", gateway()),
            jump("names"),
        ],
    );
    table.base_chain("forward", "filter", "forward", 0, "drop");
    table.rule("forward", &[tracked(&["invalid"]), drop()]);
    table.rule("forward", &[incoming(UPLINK), outgoing(TAP), tracked(&["established", "related"]), accept()]);
    table.rule("forward", &[incoming(TAP), source("!=", json!(GUEST_ADDRESS.to_string())), drop()]);
    // A host-agent that restarts replaces this table and counts anew: what is open then is not counted.
    for bound in [too_fast(settings), too_many(settings)] {
        table.rule("forward", &[incoming(TAP), tracked(&["new"]), bound, drop()]);
    }
    if !closed.openable.is_empty() {
        let always = destination("==", any_of(&closed.always));
        table.rule("forward", &[incoming(TAP), always, drop()]);
        let openable = destination("==", any_of(&closed.openable));
        table.rule("forward", &[incoming(TAP), outgoing(UPLINK), openable, jump("opened")]);
    }
    let all = destination("==", any_of(&closed.all));
    table.rule("forward", &[incoming(TAP), all, drop()]);
    table.rule("forward", &[incoming(TAP), outgoing(UPLINK), jump("egress")]);
    table.base_chain("postrouting", "nat", "postrouting", 100, "accept");
    table.rule("postrouting", &[outgoing(UPLINK), json!({"masquerade": null})]);
    table.commands.extend(egress_rules(egress));
    table.document()
}

/// Changes what a slot's guest may reach, in one transaction.
pub(crate) fn change_egress(egress: &Egress) -> Value {
    let flush =
        |chain: &str| json!({"flush": {"chain": {"family": "inet", "table": SLOT_TABLE, "name": chain}}});
    let mut commands: Vec<Value> = EGRESS_CHAINS.into_iter().map(flush).collect();
    commands.extend(egress_rules(egress));
    json!({"nftables": commands})
}

fn egress_rules(egress: &Egress) -> Vec<Value> {
    let mut rules = Vec::new();
    let mut add = |chain: &str, expressions: &[Value]| rules.push(add_rule(SLOT_TABLE, chain, expressions));
    if *egress == Egress::None {
        return rules;
    }
    for protocol in ["udp", "tcp"] {
        add("names", &[of_relay(protocol, "dport"), accept()]);
    }
    let Egress::Policy(policy) = egress else {
        add("egress", &[tcp(), accept()]);
        return rules;
    };
    if !policy.deny.is_empty() {
        for chain in ["opened", "egress"] {
            add(chain, &[destination("==", any_of(&policy.deny)), drop()]);
        }
    }
    match policy.allow.as_deref() {
        None => add("egress", &[tcp(), accept()]),
        Some([]) => {}
        Some(allow) => {
            for chain in ["opened", "egress"] {
                add(chain, &[destination("==", any_of(allow)), tcp(), accept()]);
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests;
