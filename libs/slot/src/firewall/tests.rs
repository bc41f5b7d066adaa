//! The rules are judged by what they do: a small interpreter runs the documents
//! on packets, next to a plain statement of what should come out.

use proptest::prelude::*;

use super::*;
use crate::policy::Policy;

const OWN: (Ipv4Addr, u8) = (Ipv4Addr::new(192, 168, 7, 9), 24);

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn settings(openable: &[&str]) -> PoolSettings {
    PoolSettings {
        blocked: vec![subnet("198.41.0.0/24")],
        openable: openable.iter().map(|text| subnet(text)).collect(),
        ..PoolSettings::default()
    }
}

fn closed(openable: &[&str]) -> Closed {
    Closed::new(&settings(openable), &[OWN])
}

fn policy(allow: &[&str], deny: &[&str]) -> Egress {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    Egress::Policy(Policy::parse(&owned(allow), &owned(deny)).unwrap())
}

/// A first packet of a connection from a guest.
#[derive(Debug, Clone, Copy)]
struct Packet {
    to: Ipv4Addr,
    protocol: &'static str,
    port: u64,
    incoming: &'static str,
    outgoing: &'static str,
}

fn guest_packet(to: Ipv4Addr) -> Packet {
    Packet { to, protocol: "tcp", port: 443, incoming: TAP, outgoing: UPLINK }
}

/// Runs a document's commands into chains: (name, policy, rules).
fn chains(documents: &[&Value]) -> Vec<(String, Option<String>, Vec<Value>)> {
    let mut chains: Vec<(String, Option<String>, Vec<Value>)> = Vec::new();
    let commands = documents.iter().flat_map(|document| document["nftables"].as_array().unwrap());
    for command in commands {
        if let Some(chain) = command["add"].get("chain") {
            let policy = chain["policy"].as_str().map(str::to_owned);
            chains.push((chain["name"].as_str().unwrap().to_owned(), policy, Vec::new()));
        } else if let Some(rule) = command["add"].get("rule") {
            let chain = chains.iter_mut().find(|(name, ..)| rule["chain"] == **name).unwrap();
            chain.2.push(rule["expr"].clone());
        } else if let Some(flushed) = command.get("flush") {
            let chain = chains.iter_mut().find(|(name, ..)| flushed["chain"]["name"] == **name).unwrap();
            chain.2.clear();
        }
    }
    chains
}

/// True when a packet passes a base chain.
fn passes(documents: &[&Value], chain: &str, packet: Packet) -> bool {
    let chains = chains(documents);
    let policy = chains.iter().find(|(name, ..)| name == chain).unwrap().1.clone();
    verdict(&chains, chain, packet).unwrap_or(policy.as_deref() == Some("accept"))
}

fn verdict(chains: &[(String, Option<String>, Vec<Value>)], chain: &str, packet: Packet) -> Option<bool> {
    let (_, _, rules) = chains.iter().find(|(name, ..)| name == chain).unwrap();
    'rules: for rule in rules {
        for expression in rule.as_array().unwrap() {
            if let Some(condition) = expression.get("match") {
                if !holds(condition, packet) {
                    continue 'rules;
                }
            } else if ["limit", "ct count", "meter"].iter().any(|bound| expression.get(bound).is_some()) {
                // Holds only beyond the bound.
                continue 'rules;
            } else if expression.get("mangle").is_some() {
            } else if expression.get("accept").is_some() {
                return Some(true);
            } else if expression.get("drop").is_some() {
                return Some(false);
            } else if let Some(target) = expression["jump"]["target"].as_str() {
                if let Some(verdict) = verdict(chains, target, packet) {
                    return Some(verdict);
                }
            } else {
                panic!("unknown expression {expression}");
            }
        }
    }
    None
}

fn holds(condition: &Value, packet: Packet) -> bool {
    let (left, right) = (&condition["left"], &condition["right"]);
    let text = |wanted: &str, is: &str| match wanted.strip_suffix('*') {
        Some(start) => is.starts_with(start),
        None => wanted == is,
    };
    let device = |is: &str| match right.get("set").and_then(Value::as_array) {
        Some(set) => set.iter().any(|wanted| text(wanted.as_str().unwrap(), is)),
        None => text(right.as_str().unwrap(), is),
    };
    let equal = if left["meta"]["key"] == "iifname" {
        device(packet.incoming)
    } else if left["meta"]["key"] == "oifname" {
        device(packet.outgoing)
    } else if left["meta"]["key"] == "l4proto" {
        right == packet.protocol
    } else if left["meta"]["key"] == "nfproto" {
        right == "ipv4"
    } else if left["ct"]["key"] == "state" {
        right.as_array().unwrap().iter().any(|state| state == "new")
    } else if left["payload"]["field"] == "daddr" {
        contains(right, packet.to)
    } else if left["payload"]["field"] == "saddr" {
        // Guests inside, their outer addresses outside.
        true
    } else if left["payload"]["field"] == "dport" {
        left["payload"]["protocol"] == packet.protocol && *right == packet.port
    } else {
        panic!("unknown match {condition}");
    };
    match condition["op"].as_str().unwrap() {
        "==" | "in" => equal,
        "!=" => !equal,
        other => panic!("unknown operator {other}"),
    }
}

fn contains(networks: &Value, address: Ipv4Addr) -> bool {
    let one = |value: &Value| match value.get("prefix") {
        Some(prefix) => {
            let length = u8::try_from(prefix["len"].as_u64().unwrap()).unwrap();
            let network = subnet(&format!("{}/{length}", prefix["addr"].as_str().unwrap()));
            network.contains(&Subnet::new(address, 32))
        }
        None => value.as_str().unwrap() == address.to_string(),
    };
    match networks.get("set") {
        Some(set) => set.as_array().unwrap().iter().any(one),
        None => one(networks),
    }
}

/// Whether a guest's connection passes its slot's rules and the machine's.
fn reaches(openable: &[&str], egress: &Egress, to: Ipv4Addr) -> bool {
    let closed = closed(openable);
    let made = slot_table(&settings(openable), &closed, &Egress::Internet);
    let taken = change_egress(egress);
    let adopted = slot_table(&settings(openable), &closed, egress);
    let packet = guest_packet(to);
    let inside = passes(&[&made, &taken], "forward", packet);
    assert_eq!(
        inside,
        passes(&[&adopted], "forward", packet),
        "an adopted slot has other rules than a taken one: {egress:?} {to}"
    );
    let root = root_table(&settings(openable), &closed, &["eth0".to_owned()]);
    let outside = Packet { incoming: "tp-h1-v3", outgoing: "eth0", ..packet };
    // The slot's rules are the narrower ones; the machine's are there in case they fail.
    inside && passes(&[&root], "forward", outside)
}

#[test]
fn policies_take_away_and_open_only_what_may_be_opened() {
    let internet = Egress::Internet;
    let allowed = policy(
        &["8.8.0.0/16", "10.9.0.0/16", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8"],
        &["8.8.4.0/24"],
    );
    let everything = policy(&["0.0.0.0/0"], &[]);
    let denied = policy(&[], &["8.8.4.0/24", "10.0.0.0/8"]);
    let only_ipv6 = policy(&["2001:db8::/32"], &[]);
    let nothing = policy(&["8.8.0.0/16", "10.9.0.0/16"], &["0.0.0.0/0"]);
    let openable = &["10.0.0.0/8", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8", "198.41.0.0/16"][..];
    let none = &[][..];
    for (openable, egress, to, expected) in [
        (none, &internet, "8.8.8.8", true),
        (none, &internet, "10.9.0.1", false),
        (none, &Egress::None, "8.8.8.8", false),
        (none, &allowed, "8.8.8.8", true),
        (none, &allowed, "8.8.4.4", false),
        (none, &allowed, "9.9.9.9", false),
        (none, &allowed, "10.9.0.1", false),
        (none, &everything, "9.9.9.9", true),
        (none, &everything, "10.9.0.1", false),
        (none, &denied, "8.8.8.8", true),
        (none, &denied, "8.8.4.4", false),
        (none, &only_ipv6, "8.8.8.8", false),
        (none, &nothing, "8.8.8.8", false),
        (openable, &internet, "10.9.0.1", false),
        (openable, &denied, "10.9.0.1", false),
        (openable, &denied, "192.168.1.1", false),
        (openable, &nothing, "10.9.0.1", false),
        (openable, &allowed, "8.8.8.8", true),
        (openable, &allowed, "8.8.4.4", false),
        (openable, &allowed, "9.9.9.9", false),
        (openable, &allowed, "10.9.0.1", true),
        (openable, &allowed, "10.8.0.1", false),
        // A neighbour of the machine, the machine itself, link-local, loopback.
        (openable, &allowed, "192.168.7.1", true),
        (openable, &allowed, "192.168.7.9", false),
        (openable, &allowed, "169.254.169.254", false),
        (openable, &allowed, "127.0.0.1", false),
        // A slot, and what the settings block.
        (openable, &everything, "10.201.3.2", false),
        (openable, &everything, "198.41.0.7", false),
        (openable, &everything, "198.41.1.7", true),
    ] {
        let reached = reaches(openable, egress, to.parse().unwrap());
        assert_eq!(reached, expected, "{openable:?} {egress:?} {to}");
    }
}

#[test]
fn names_are_asked_unless_egress_is_closed() {
    for (egress, expected) in
        [(Egress::Internet, true), (Egress::None, false), (policy(&["10.0.0.0/8"], &["0.0.0.0/0"]), true)]
    {
        let table = slot_table(&settings(&[]), &closed(&[]), &egress);
        for (protocol, port, answered) in
            [("udp", 53, expected), ("tcp", 53, expected), ("udp", 54, false), ("tcp", 80, false)]
        {
            let packet = Packet { protocol, port, ..guest_packet(GATEWAY_ADDRESS) };
            assert_eq!(passes(&[&table], "input", packet), answered, "{egress:?} {protocol} {port}");
        }
        let elsewhere = Packet { protocol: "udp", port: 53, ..guest_packet(Ipv4Addr::new(8, 8, 8, 8)) };
        assert!(!passes(&[&table], "forward", elsewhere), "{egress:?}");
    }
}

#[test]
fn the_machine_does_not_forward_among_devices_that_are_kept_apart() {
    let apart = ["eth0", "eth1"].map(str::to_owned);
    let root = root_table(&settings(&[]), &closed(&[]), &apart);
    for (incoming, outgoing, passed) in [
        ("eth0", "eth1", false),
        ("eth1", "eth1", false),
        ("docker0", "eth0", true),
        ("eth0", "docker0", true),
        ("tp-h1-v3", "eth0", true),
    ] {
        let packet = Packet { incoming, outgoing, ..guest_packet(Ipv4Addr::new(8, 8, 8, 8)) };
        assert_eq!(passes(&[&root], "forward", packet), passed, "{incoming} {outgoing}");
    }
    let root = root_table(&settings(&[]), &closed(&[]), &[]);
    let packet = Packet { incoming: "eth0", outgoing: "eth1", ..guest_packet(Ipv4Addr::new(8, 8, 8, 8)) };
    assert!(passes(&[&root], "forward", packet), "a machine that forwards by itself goes on");
}

#[test]
fn every_new_connection_is_bounded_in_both_tables() {
    let (settings, closed) = (settings(&["10.0.0.0/8"]), closed(&["10.0.0.0/8"]));
    for (table, accepts) in [
        (slot_table(&settings, &closed, &Egress::Internet), "jump"),
        (root_table(&settings, &closed, &[]), "mangle"),
    ] {
        let (_, _, rules) = chains(&[&table]).into_iter().find(|(name, ..)| name == "forward").unwrap();
        let texts: Vec<String> = rules.iter().map(Value::to_string).collect();
        let place = |part: &str| texts.iter().position(|text| text.contains(part)).expect(part);
        let (rate, count) = (place("\"rate\":500"), place("\"val\":2048"));
        assert!(rate < count && count < place(accepts), "{texts:?}");
        for bound in [rate, count] {
            assert!(
                texts[bound].contains("\"inv\":true") && texts[bound].contains("drop"),
                "{}",
                texts[bound]
            );
        }
    }
}

#[test]
fn closed_networks_hold_no_nested_ones() {
    let all = closed(&[]).all;
    assert!(all.contains(&subnet("198.41.0.0/24")) && all.contains(&subnet("10.0.0.0/8")));
    assert!(!all.contains(&subnet("10.201.0.0/16")));
    let everything = PoolSettings { blocked: vec![subnet("0.0.0.0/0")], ..PoolSettings::default() };
    assert_eq!(Closed::new(&everything, &[]).all.len(), 1);
}

fn any_subnet() -> impl Strategy<Value = Subnet> {
    (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| Subnet::new(Ipv4Addr::from_bits(bits), length))
}

/// Networks and an address that is in one of them half of the time.
fn lists() -> impl Strategy<Value = (Vec<Subnet>, Vec<Subnet>, Vec<Subnet>, Ipv4Addr)> {
    let list = || prop::collection::vec(any_subnet(), 0..4);
    (list(), list(), list(), any::<u32>(), any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(allow, deny, openable, bits, index, inside)| {
            let all: Vec<Subnet> = allow.iter().chain(&deny).chain(&openable).copied().collect();
            let bits = match all.is_empty() || !inside {
                true => bits,
                false => {
                    let network = index.get(&all);
                    let below = u32::MAX.checked_shr(u32::from(network.length)).unwrap_or(0);
                    network.address.to_bits() | (bits & below)
                }
            };
            (allow, deny, openable, Ipv4Addr::from_bits(bits))
        },
    )
}

proptest! {
    #[test]
    fn rules_do_what_the_lists_say((allow, deny, openable, to) in lists()) {
        let texts = |list: &[Subnet]| list.iter().map(Subnet::to_string).collect::<Vec<_>>();
        let (allow_texts, deny_texts, openable) = (texts(&allow), texts(&deny), texts(&openable));
        let openable: Vec<&str> = openable.iter().map(String::as_str).collect();
        let egress = Egress::Policy(Policy::parse(&allow_texts, &deny_texts).unwrap());
        let within = |list: &[Subnet]| list.iter().any(|network| network.contains(&Subnet::new(to, 32)));
        let closed = closed(&openable);
        let permitted = !within(&deny) && (allow.is_empty() || within(&allow));
        let open = !within(&closed.all)
            || (!within(&closed.always) && within(&closed.openable) && !allow.is_empty());
        prop_assert_eq!(reaches(&openable, &egress, to), permitted && open);
    }

    #[test]
    fn disjoint_networks_cover_what_they_are_made_of(networks in prop::collection::vec(any_subnet(), 0..20)) {
        let kept = Subnet::disjoint(networks.clone());
        for network in &networks {
            prop_assert!(kept.iter().any(|wider| wider.contains(network)));
        }
        for (position, one) in kept.iter().enumerate() {
            prop_assert!(networks.contains(one));
            for other in &kept[position + 1..] {
                prop_assert!(!one.contains(other) && !other.contains(one));
            }
        }
    }
}
