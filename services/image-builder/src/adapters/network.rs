//! A build's way out: a network namespace with one link to the build machine,
//! translated addresses, and a firewall.
//!
//! RUN steps reach what the machine reaches (package registries), but not the machine itself: its loopback is
//! another namespace's, and everything that arrives over the build's link for an address of the machine is
//! dropped. So no build talks to etcd, S3 or a gRPC port here. Networks named in the settings (link-local by
//! default, where clouds keep credentials) are dropped as well.
//!
//! Limits: a machine-wide firewall that forbids forwarding is left as it is, and
//! builds then have no network. What listens on *other* machines of the same
//! network is protected by its own TLS, or by `build.denied_networks`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

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

/// Makes and removes build networks of one replica.
#[derive(Debug, Clone)]
pub struct Networks {
    /// One file per network of ours, so that a restart finds them.
    records: PathBuf,
    denied: Vec<String>,
}

/// One build's network. Must be given back with [`Networks::remove`]; what a
/// crash leaves is removed at the next start.
#[derive(Debug)]
pub struct Network {
    number: u32,
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
    pub fn new(records: PathBuf, denied: Vec<String>) -> Self {
        Self { records, denied }
    }

    /// Removes what an earlier process of this replica left.
    pub async fn reconcile(&self) -> io::Result<()> {
        tokio::fs::create_dir_all(&self.records).await?;
        let mut records = tokio::fs::read_dir(&self.records).await?;
        while let Some(record) = records.next_entry().await? {
            if let Some(number) = record.file_name().to_str().and_then(|name| name.parse().ok()) {
                self.remove(Network { number }).await;
            }
        }
        Ok(())
    }

    pub async fn create(&self) -> io::Result<Network> {
        for number in 0..NETWORKS_MAX {
            let network = Network { number };
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
            if let Err(error) = self.connect(&network).await {
                self.remove(network).await;
                return Err(error);
            }
            return Ok(network);
        }
        Err(io::Error::other("too many build networks on this machine"))
    }

    async fn connect(&self, network: &Network) -> io::Result<()> {
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
        run("nft", &["-f", "-"], &firewall(&link, theirs, &self.denied)).await?;
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

/// Replaces the table of this link, so that leftovers do not matter.
fn firewall(link: &str, inside: Ipv4Addr, denied: &[String]) -> String {
    let denials: String = denied
        .iter()
        .map(|network| {
            let family = if network.contains(':') { "ip6" } else { "ip" };
            format!("    iifname \"{link}\" {family} daddr {network} drop\n")
        })
        .collect();
    format!(
        "{}\n{}\ntable inet torpor_{link} {{\n\
         \x20 chain translate {{\n    type nat hook postrouting priority srcnat;\n\
         \x20   ip saddr {inside} oifname != \"{link}\" masquerade\n  }}\n\
         \x20 chain outward {{\n    type filter hook forward priority filter;\n{denials}  }}\n\
         \x20 chain machine {{\n    type filter hook input priority filter;\n    iifname \"{link}\" drop\n  }}\n}}\n",
        add_table(link),
        delete_table(link),
    )
}

/// Name servers a build can reach: the given ones, else the machine's that are not on its loopback.
pub async fn resolvers(given: &[String]) -> Vec<String> {
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
    fn the_firewall_reads_as_intended() {
        let rules = firewall("tbuild0", Ipv4Addr::new(169, 254, 240, 2), &["169.254.0.0/16".to_owned()]);
        insta::assert_snapshot!(rules);
    }
}
