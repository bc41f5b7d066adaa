//! A build's way out: a network namespace with one link to the build machine,
//! translated addresses, and a firewall.
//!
//! RUN steps are strangers' programs: they reach public addresses, and neither the machine nor what is private to its
//! owner. Its loopback is another namespace's, and everything that arrives over the build's link for an address of the
//! machine is dropped. So no build talks to etcd, S3 or a gRPC port here. The networks closed to guests are closed to
//! builds ([`model::networks`]), and those that the machine is on. Of these are open, by address and port: the name
//! servers, the package sources and proxies that the machine's administrator has set up for it, and what
//! `build.open_networks` names.
//!
//! Limits: a machine-wide firewall that forbids forwarding is left as it is, and
//! builds then have no network. Names are looked up when the network is made: a source that moves to another private
//! address is out of a running build's reach.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use model::Subnet;
use model::networks::{CLOSED, CLOSED_ALWAYS};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Builds with a network on one machine, all replicas together.
const NETWORKS_MAX: u32 = 64;
/// Four addresses per build, counted from here.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 240, 0);
/// Hardware addresses of a link's two ends. Each link is a network of its own, so all have the same.
const OUR_MAC: &str = "06:00:a9:fe:f0:01";
const THEIR_MAC: &str = "06:00:a9:fe:f0:02";
const NAMESPACES: &str = "/run/netns";
const IPV6: &str = "/proc/sys/net/ipv6";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Most name servers passed on; the C library reads three.
const RESOLVERS_MAX: usize = 3;
const DNS_PORT: u16 = 53;
/// Most names of package sources and proxies that are looked up, and how long that may take.
const SOURCES_MAX: usize = 32;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Where this machine's package sources are written down: files, and directories of files.
const SOURCES: [&str; 3] = ["/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/pip.conf"];
/// Ports that every package source is open at: one server often has several kinds of packages.
const WEB_PORTS: [u16; 2] = [80, 443];
/// Passed from the builder's environment to builds, as every container tool does.
const PROXY_VARIABLES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
];

/// What builds of one replica may reach.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Closed besides what is closed anyway.
    pub closed: Vec<Subnet>,
    /// Open although they are closed otherwise.
    pub open: Vec<Subnet>,
    /// Name servers, if not the machine's.
    pub resolvers: Vec<String>,
    /// Names and ports of package sources and proxies.
    pub sources: BTreeSet<(String, u16)>,
}

/// The same at one moment, as addresses.
#[derive(Debug, Clone, Default)]
struct Addresses {
    /// Networks that the machine is on.
    own: Vec<Subnet>,
    resolvers: Vec<Ipv4Addr>,
    sources: BTreeSet<(Ipv4Addr, u16)>,
}

/// Makes and removes build networks of one replica.
#[derive(Debug, Clone)]
pub struct Networks {
    /// One file per network of ours, so that a restart finds them.
    records: PathBuf,
    reach: Reach,
}

/// One build's network. Must be given back with [`Networks::remove`]; what a
/// crash leaves is removed at the next start.
#[derive(Debug)]
pub struct Network {
    number: u32,
    /// The name servers that it lets through; none of one that is only to be removed.
    pub resolvers: Vec<String>,
}

impl Network {
    fn name(&self) -> String {
        format!("torpor-build-{}", self.number)
    }

    fn link(&self) -> String {
        format!("tbuild{}", self.number)
    }

    /// The namespace, for [`super::sandbox::Spec::network`].
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(self.name())
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(FIRST_ADDRESS) + self.number * 4 + offset)
    }
}

impl Networks {
    /// Networks recorded in the directory `records`.
    pub fn new(records: PathBuf, reach: Reach) -> Self {
        Self { records, reach }
    }

    /// Removes what an earlier process of this replica left.
    pub async fn reconcile(&self) -> io::Result<()> {
        tokio::fs::create_dir_all(&self.records).await?;
        let mut records = tokio::fs::read_dir(&self.records).await?;
        while let Some(record) = records.next_entry().await? {
            if let Some(number) = record.file_name().to_str().and_then(|name| name.parse().ok()) {
                self.remove(Network { number, resolvers: Vec::new() }).await;
            }
        }
        Ok(())
    }

    pub async fn create(&self) -> io::Result<Network> {
        let resolvers = resolvers(&self.reach.resolvers).await;
        let addresses = self.reach.look_up(&resolvers).await?;
        for number in 0..NETWORKS_MAX {
            let network = Network { number, resolvers: resolvers.clone() };
            if network.path().exists() {
                continue;
            }
            // Dying after this line leaves a record of nothing, which the next start removes.
            tokio::fs::write(self.records.join(number.to_string()), "").await?;
            // Fails when another process took the name meanwhile.
            if run("ip", &["netns", "add", &network.name()], "").await.is_err() {
                tokio::fs::remove_file(self.records.join(number.to_string())).await?;
                continue;
            }
            if let Err(error) = self.connect(&network, &addresses).await {
                self.remove(network).await;
                return Err(error);
            }
            return Ok(network);
        }
        Err(io::Error::other("too many build networks on this machine"))
    }

    async fn connect(&self, network: &Network, addresses: &Addresses) -> io::Result<()> {
        let (name, link) = (network.name(), network.link());
        let (ours, theirs) = (network.address(1), network.address(2));
        // A link of that name can only be what a crash left of an older network.
        let _ = run("ip", &["link", "delete", &link], "").await;
        // The machine gets a route and no address: browsers on it take an address that comes or goes for another network, and
        // end their connections. Without an address nothing answers ARP, so both ends are told.
        let no_address = if Path::new(IPV6).exists() { "addrgenmode none" } else { "" };
        let outside = format!(
            "link add {link} address {OUR_MAC} type veth peer name eth0 address {THEIR_MAC} netns {name}\n\
             link set {link} up {no_address}\n\
             route add {theirs}/32 dev {link}\n\
             neigh replace {theirs} lladdr {THEIR_MAC} dev {link} nud permanent\n"
        );
        run("ip", &["-batch", "-"], &outside).await?;
        let inside = format!(
            "addr add {theirs}/30 dev eth0\nlink set eth0 up\nlink set lo up\n\
             neigh replace {ours} lladdr {OUR_MAC} dev eth0 nud permanent\nroute add default via {ours}\n"
        );
        run("ip", &["-n", &name, "-batch", "-"], &inside).await?;
        run("nft", &["-f", "-"], &firewall(&link, theirs, &self.reach, addresses)).await?;
        // Needed while anything forwards on this machine; left on, like every container runtime does.
        if tokio::fs::read_to_string(FORWARDING).await?.trim() != "1" {
            tokio::fs::write(FORWARDING, "1").await?;
        }
        Ok(())
    }

    /// Removes a network. Failures are logged; the record then stays for the next start.
    pub async fn remove(&self, network: Network) {
        let (name, link) = (network.name(), network.link());
        let table = format!("{}\n{}\n", add_table(&link), delete_table(&link));
        let firewall = run("nft", &["-f", "-"], &table).await;
        // Takes the peer inside the namespace along.
        let _ = run("ip", &["link", "delete", &link], "").await;
        let namespace = match network.path().exists() {
            true => run("ip", &["netns", "delete", &name], "").await,
            false => Ok(()),
        };
        match firewall.and(namespace) {
            Ok(()) => {
                let _ = tokio::fs::remove_file(self.records.join(network.number.to_string())).await;
            }
            Err(error) => tracing::warn!(%error, network = name, "a build network is left over"),
        }
    }
}

fn add_table(link: &str) -> String {
    format!("add table inet torpor_{link}")
}

fn delete_table(link: &str) -> String {
    format!("delete table inet torpor_{link}")
}

impl Reach {
    async fn look_up(&self, resolvers: &[String]) -> io::Result<Addresses> {
        let look_up = |(name, port): &(String, u16)| tokio::net::lookup_host((name.clone(), *port));
        // A source that has no address now is one that the build cannot use either.
        let found = tokio::time::timeout(
            LOOKUP_TIMEOUT,
            join_all(self.sources.iter().take(SOURCES_MAX).map(look_up)),
        );
        let found = found.await.unwrap_or_default();
        let sources = found.into_iter().flatten().flatten().filter_map(|address| match address {
            SocketAddr::V4(address) => Some((*address.ip(), address.port())),
            SocketAddr::V6(_) => None,
        });
        Ok(Addresses {
            own: own_networks().await?,
            resolvers: resolvers.iter().filter_map(|address| address.parse().ok()).collect(),
            sources: sources.collect(),
        })
    }
}

/// The networks that the machine's addresses are in.
async fn own_networks() -> io::Result<Vec<Subnet>> {
    let output =
        Command::new("ip").args(["-json", "-4", "address", "show"]).kill_on_drop(true).output().await?;
    let devices: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let addresses =
        devices.as_array().into_iter().flatten().filter_map(|device| device["addr_info"].as_array());
    let networks = addresses.flatten().filter_map(|address| {
        let length = address["prefixlen"].as_u64().and_then(|length| u8::try_from(length).ok())?;
        Some(Subnet::new(address["local"].as_str()?.parse().ok()?, length))
    });
    Ok(networks.collect())
}

/// The package sources and proxies that this machine is set up with. Blocking.
pub fn machine_sources() -> BTreeSet<(String, u16)> {
    let listed =
        |place: &str| std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = SOURCES.iter().flat_map(|place| std::iter::once(PathBuf::from(place)).chain(listed(place)));
    let texts: String =
        files.filter_map(|file| std::fs::read_to_string(file).ok()).map(|text| text + "\n").collect();
    let mut sources = servers(&texts);
    for (name, _) in sources.clone() {
        sources.extend(WEB_PORTS.map(|port| (name.clone(), port)));
    }
    sources.extend(proxies().values().flat_map(|value| servers(value)));
    sources
}

/// The variables by which builds find this machine's proxies. One that holds a password is kept from them: who wants
/// builds to have it says so in `build.environment`.
pub fn proxies() -> BTreeMap<String, String> {
    let set =
        PROXY_VARIABLES.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    set.filter(|(_, value)| !value.contains('@')).collect()
}

/// Names and ports of the servers that `text` names by their addresses on the web: a list of package sources, a proxy.
pub fn servers(text: &str) -> BTreeSet<(String, u16)> {
    let mut found = BTreeSet::new();
    for word in
        text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace)
    {
        for (scheme, default) in [("http://", 80), ("https://", 443)] {
            let Some(at) = word.find(scheme) else { continue };
            let rest = &word[at + scheme.len()..];
            let authority = &rest[..rest.find(['/', '?', '#', '"', '\'', ',']).unwrap_or(rest.len())];
            let server = authority.rsplit('@').next().unwrap_or(authority);
            let (name, port) = match server.rsplit_once(':') {
                Some((name, port)) => (name, port.parse().ok()),
                None => (server, Some(default)),
            };
            if let (false, Some(port)) = (name.is_empty(), port) {
                found.insert((name.to_ascii_lowercase(), port));
            }
        }
    }
    found
}

/// Replaces the table of this link, so that leftovers do not matter.
fn firewall(link: &str, inside: Ipv4Addr, reach: &Reach, addresses: &Addresses) -> String {
    let from = format!("    iifname \"{link}\"");
    let set = |networks: &[Subnet]| {
        let texts: Vec<String> = Subnet::disjoint(networks.to_vec()).iter().map(Subnet::to_string).collect();
        texts.join(", ")
    };
    let mut rules = String::new();
    for resolver in &addresses.resolvers {
        for protocol in ["udp", "tcp"] {
            rules += &format!("{from} ip daddr {resolver} {protocol} dport {DNS_PORT} accept\n");
        }
    }
    rules += &format!("{from} ip daddr {{ {} }} drop\n", set(&CLOSED_ALWAYS));
    for (address, port) in &addresses.sources {
        rules += &format!("{from} ip daddr {address} tcp dport {port} accept\n");
    }
    if !reach.open.is_empty() {
        rules += &format!("{from} ip daddr {{ {} }} accept\n", set(&reach.open));
    }
    let closed = set(&[&CLOSED, &*reach.closed, &*addresses.own].concat());
    rules += &format!("{from} ip daddr {{ {closed} }} drop\n{from} meta nfproto ipv6 drop\n");
    format!(
        "{}\n{}\ntable inet torpor_{link} {{\n\
         \x20 chain translate {{\n    type nat hook postrouting priority srcnat;\n\
         \x20   ip saddr {inside} oifname != \"{link}\" masquerade\n  }}\n\
         \x20 chain outward {{\n    type filter hook forward priority filter;\n{rules}  }}\n\
         \x20 chain machine {{\n    type filter hook input priority filter;\n    iifname \"{link}\" drop\n  }}\n}}\n",
        add_table(link),
        delete_table(link),
    )
}

/// Name servers a build can reach: the given ones, else the machine's that are not on its loopback.
async fn resolvers(given: &[String]) -> Vec<String> {
    if !given.is_empty() {
        return given.iter().take(RESOLVERS_MAX).cloned().collect();
    }
    for file in RESOLVERS {
        let text = tokio::fs::read_to_string(file).await.unwrap_or_default();
        let found = name_servers(&text);
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn name_servers(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|address| address.is_ipv4() && !address.is_loopback() && !address.is_unspecified())
        .map(|address| address.to_string())
        .take(RESOLVERS_MAX)
        .collect()
}

async fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_name_servers_a_build_can_reach_are_passed_on() {
        let text =
            "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\nsearch x\nnameserver 9.9.9.9\n";
        assert_eq!(name_servers(text), ["10.0.0.2", "9.9.9.9"]);
        assert!(name_servers("nameserver 127.0.0.1\n").is_empty());
    }

    #[test]
    fn servers_are_found_in_what_administrators_write() {
        let text = "# deb http://old/debian x main\ndeb [arch=amd64] http://Mirror.example/debian bookworm main\n\
                    URIs: https://a.example:8443/x http://b.example\nindex-url = https://user:word@c.example/simple\n\
                    registry=\"https://d.example/\"\nhttp:///\nhttps://e.example:port/\n";
        let found: Vec<String> = servers(text).iter().map(|(name, port)| format!("{name} {port}")).collect();
        assert_eq!(
            found,
            ["a.example 8443", "b.example 80", "c.example 443", "d.example 443", "mirror.example 80"]
        );
    }

    #[test]
    fn the_firewall_reads_as_intended() {
        let reach = Reach {
            closed: vec!["8.8.8.0/24".parse().unwrap()],
            open: vec!["10.1.0.0/16".parse().unwrap()],
            ..Reach::default()
        };
        let addresses = Addresses {
            own: vec!["192.168.7.0/24".parse().unwrap(), "5.6.0.0/20".parse().unwrap()],
            resolvers: vec![Ipv4Addr::new(169, 254, 169, 253)],
            sources: BTreeSet::from([(Ipv4Addr::new(10, 9, 9, 9), 443)]),
        };
        insta::assert_snapshot!(firewall("tbuild0", Ipv4Addr::new(169, 254, 240, 2), &reach, &addresses));
    }
}
