//! Makes and destroys the namespace, devices and rules of one slot.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use model::Subnet;
use serde_json::Value;

use crate::command::{self, CommandError};
use crate::error::Error;
use crate::firewall::{self, Closed, UPLINK};
use crate::forget::forget;
use crate::inside::{Inside, Namespace};
use crate::settings::{Egress, PoolSettings};
use crate::{GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, TAP};

const NAMESPACES: &str = "/run/netns";
const DEVICES: &str = "/sys/class/net";
/// Hardware addresses of a slot's way out: the root namespace's end and the slot's. Each pair is a network of its own, so all
/// slots have the same.
const ROOT_MAC: &str = "06:00:0a:c9:00:01";
const UPLINK_MAC: &str = "06:00:0a:c9:00:02";
/// Switches of a fresh namespace, set before it has any device but loopback.
/// A kernel without IPv6 lacks the first two, which is as good.
const SWITCHES: &[(&str, &str)] = &[
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // Who asks by ARP in another's name is not answered, and leaves no entry in the machine's neighbour table: only
    // the guest's own address has its route over the tap. A namespace begins with the machine's switches, so those
    // that would make entries all the same are set as well.
    ("ipv4/conf/all/arp_filter", "1"),
    ("ipv4/conf/all/arp_accept", "0"),
    ("ipv4/conf/default/arp_accept", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv4/conf/default/proxy_arp", "0"),
    ("ipv4/ip_forward", "1"),
];
/// And those that say how long a closed connection is remembered, in seconds. The root namespace has the same
/// for connections of slots.
const CLOSED_TIMEOUTS: [&str; 2] =
    ["netfilter/nf_conntrack_tcp_timeout_time_wait", "netfilter/nf_conntrack_tcp_timeout_close"];

/// Makes a slot. On any error nothing of it remains.
pub(crate) async fn create(
    settings: &PoolSettings,
    index: u32,
    closed: &Closed,
    inside: &Inside,
) -> Result<Arc<Namespace>, Error> {
    let made = create_parts(settings, index, closed, inside).await;
    if made.is_err()
        && let Err(error) = destroy(settings, index).await
    {
        tracing::error!(%error, slot = settings.namespace(index), "cannot remove a half-made slot");
    }
    made
}

async fn create_parts(
    settings: &PoolSettings,
    index: u32,
    closed: &Closed,
    inside: &Inside,
) -> Result<Arc<Namespace>, Error> {
    let name = settings.namespace(index);
    let veth = settings.veth(index);
    let (root_side, slot_side) = settings.outer(index);
    // Dying anywhere from here on leaves a namespace of our prefix, which the next start removes.
    let mut script = format!(
        "netns add {name}\n\
         link add {veth} address {ROOT_MAC} arp off type veth \
         peer name {UPLINK} address {UPLINK_MAC} arp off netns {name}\n"
    );
    if Path::new("/proc/sys/net/ipv6").exists() {
        let _ = writeln!(script, "link set {veth} addrgenmode none");
    }
    // The root namespace gets a route and no address: browsers on this machine take an address that comes or goes for another
    // network, and end their connections. Nothing answers ARP on the pair, so both ends are told. Permanent entries do not
    // count towards the kernel's bound on neighbours, which is one for all namespaces.
    let _ = writeln!(
        script,
        "link set {veth} up\nroute add {slot_side}/32 dev {veth}\n\
         neigh replace {slot_side} lladdr {UPLINK_MAC} dev {veth} nud permanent"
    );
    ip(&["-batch", "-"], &script).await?;

    let namespace =
        Arc::new(Namespace::open(&name).map_err(|source| Error::Namespace { name: name.clone(), source })?);
    inside
        .run(&namespace, set_switches)
        .await
        .map_err(|source| Error::Namespace { name: name.clone(), source })?;
    // Rules first, then the devices that traffic could come through.
    apply_inside(&name, &firewall::slot_table(settings, closed, &Egress::Internet)).await?;

    let owner =
        settings.tap_owner.map(|owner| format!("user {} group {}", owner.uid, owner.gid)).unwrap_or_default();
    let [gateway_mac, guest_mac] =
        [GATEWAY_MAC, GUEST_MAC].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    // Guests ask for the gateway's hardware address, so ARP stays on here.
    let script = format!(
        "link set lo up\ntuntap add dev {TAP} mode tap {owner} vnet_hdr\nlink set {TAP} address {gateway_mac}\n\
         addr add {GATEWAY_ADDRESS} peer {GUEST_ADDRESS}/32 dev {TAP}\nlink set {TAP} up\n\
         neigh replace {GUEST_ADDRESS} lladdr {guest_mac} dev {TAP} nud permanent\n\
         addr add {slot_side}/30 dev {UPLINK}\nlink set {UPLINK} up\n\
         neigh replace {root_side} lladdr {ROOT_MAC} dev {UPLINK} nud permanent\nroute add default via {root_side}\n"
    );
    ip(&["-n", &name, "-batch", "-"], &script).await?;
    Ok(namespace)
}

fn set_switches() -> io::Result<()> {
    SWITCHES.iter().try_for_each(|(switch, value)| set_switch(switch, value))?;
    let seconds = firewall::CLOSED_SECONDS.to_string();
    CLOSED_TIMEOUTS.iter().try_for_each(|switch| set_switch(switch, &seconds))
}

fn set_switch(switch: &str, value: &str) -> io::Result<()> {
    match std::fs::write(Path::new("/proc/sys/net").join(switch), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && switch.starts_with("ipv6") => Ok(()),
        result => result,
    }
}

/// Removes whatever exists of a slot. Repeating it succeeds.
pub(crate) async fn destroy(settings: &PoolSettings, index: u32) -> Result<(), Error> {
    let (name, veth) = (settings.namespace(index), settings.veth(index));
    let has_veth = || Path::new(DEVICES).join(&veth).exists();
    let has_namespace = || Path::new(NAMESPACES).join(&name).exists();
    // The outer device goes first: it works at once, while the namespace lives
    // on for as long as any process or socket holds it.
    let mut script = String::new();
    if has_veth() {
        let _ = writeln!(script, "link del {veth}");
    }
    if has_namespace() {
        let _ = writeln!(script, "netns del {name}");
    }
    if script.is_empty() {
        return Ok(());
    }
    let result = ip(&["-force", "-batch", "-"], &script).await;
    // Somebody else may have removed a part in between; what counts is that nothing is left.
    if has_veth() || has_namespace() {
        return Err(result.err().map_or(Error::Remains { name }, Error::from));
    }
    // Not before the device is gone, by which more would come. Dying before this line leaves the slot's connections; the next
    // start deletes those of every address that no slot has.
    forget_connections(vec![settings.outer_network(index)]).await;
    Ok(())
}

/// Deletes what the root namespace's connection table has of slots that are gone. What is left takes room that
/// was made for slots, and goes by itself; so a failure is no reason to give up.
pub(crate) async fn forget_connections(networks: Vec<Subnet>) {
    if let Err(error) = forget(networks).await {
        tracing::warn!(%error, "cannot delete connections of slots that are gone");
    }
}

/// Indexes of which anything exists on this machine.
pub(crate) fn existing(settings: &PoolSettings) -> BTreeSet<u32> {
    let names = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let namespaces =
        names(NAMESPACES).into_iter().filter_map(|name| settings.index_of(&name)).collect::<Vec<_>>();
    let devices = names(DEVICES).into_iter().filter_map(|name| settings.index_of_veth(&name));
    namespaces.into_iter().chain(devices).collect()
}

/// Applies an `nft` document in a slot, all or nothing.
pub(crate) async fn apply_inside(namespace: &str, document: &Value) -> Result<(), Error> {
    command::run("ip", &["netns", "exec", namespace, "nft", "-j", "-f", "-"], &document.to_string()).await?;
    Ok(())
}

/// Applies an `nft` document in the root namespace, all or nothing.
pub(crate) async fn apply(document: &Value) -> Result<(), Error> {
    command::run("nft", &["-j", "-f", "-"], &document.to_string()).await?;
    Ok(())
}

/// The same with rules that are `nft` text.
pub(crate) async fn apply_text(rules: &str) -> Result<(), Error> {
    command::run("nft", &["-f", "-"], rules).await?;
    Ok(())
}

/// Names of all pools' tables in the root namespace.
pub(crate) async fn root_tables() -> Result<Vec<String>, Error> {
    let listing: Value = parse(&command::run("nft", &["-j", "list", "tables"], "").await?)?;
    let tables = listing["nftables"].as_array().into_iter().flatten();
    let names = tables.filter_map(|item| item["table"]["name"].as_str());
    Ok(names.filter(|name| name.starts_with(firewall::ROOT_TABLE_PREFIX)).map(str::to_owned).collect())
}

/// This machine's addresses: the device that has it, and the address with the length of the network it is on.
pub(crate) async fn own_networks() -> Result<Vec<(String, (Ipv4Addr, u8))>, Error> {
    let listing: Value = parse(&command::run("ip", &["-4", "-j", "addr", "show"], "").await?)?;
    let addresses = listing.as_array().into_iter().flatten().flat_map(|link| {
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        addresses.map(|address| (&link["ifname"], address))
    });
    let networks = addresses.filter_map(|(device, address)| {
        let length =
            u8::try_from(address["prefixlen"].as_u64()?).ok().filter(|length| (1..=32).contains(length))?;
        Some((device.as_str()?.to_owned(), (address["local"].as_str()?.parse().ok()?, length)))
    });
    Ok(networks.collect())
}

fn parse(output: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(output).map_err(Error::Listing)
}

async fn ip(arguments: &[&str], script: &str) -> Result<(), CommandError> {
    command::run("ip", arguments, script).await.map(|_| ())
}
