//! Arguments of the commands that run a fleet.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Most replicas of one service, and most members of etcd.
const REPLICAS_MAX: i64 = 5;

/// Arguments of `torpor up`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  torpor up                                    in the foreground, Ctrl-C stops it
  torpor up --detach                           in the background
  torpor up --detach --hosts 2                 two host-agents, to see microVMs move
  torpor up --detach --hosts 3 --schedulers 2 --edges 2 --builders 2 --etcd-members 3
                                               nothing that is there only once but S3
  torpor up --set scheduler.limits.idle_min_seconds=5
                                               a setting of one service

What it needs: root, Debian's packages (deploy/packages installs them), the guest
bundle (deploy/guest-bundle makes it) and the toolbox that images are built in
(deploy/toolbox makes it). Everything it keeps is in the data directory; torpor
down leaves it there, and the next up wakes what slept.")]
pub struct Up {
    /// Number of host-agents, each with its own data directory; 0 for a fleet whose
    /// hosts are elsewhere or simulated (loadtest api).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=16))]
    pub hosts: u16,
    /// Number of schedulers, of which one leads.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=REPLICAS_MAX))]
    pub schedulers: u16,
    /// Number of edge-proxies. The first has the port of the endpoints and of the API, each other has ports
    /// of its own (7740 and 7760 plus its number, plus the port offset).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=REPLICAS_MAX))]
    pub edges: u16,
    /// Number of image-builders; each takes builds.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=REPLICAS_MAX))]
    pub builders: u16,
    /// Members of the etcd cluster: 1, or 3 or 5 to stand the loss of one or two. It is settled by the first
    /// torpor up of a data directory.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = etcd_members)]
    pub etcd_members: u16,
    /// Return when everything is healthy and leave it running.
    #[arg(long)]
    pub detach: bool,
    /// Port of the endpoints (HTTPS); default: 443 where it is free, else 8443; 8443 plus the
    /// port offset for a fleet that has one.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub edge_port: Option<u16>,
    /// Address the endpoints listen on; may be repeated. Default: 127.0.0.1 and ::1.
    #[arg(long, value_name = "IP")]
    pub edge_address: Vec<std::net::IpAddr>,
    /// Port of the AWS-compatible API (HTTPS, on loopback); default: 8444 plus the port offset.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub api_port: Option<u16>,
    /// Region in ARNs and signatures.
    #[arg(long, value_name = "REGION", default_value = crate::fleet::plan::REGION, value_parser = region)]
    pub region: String,
    /// Added to every internal port (etcd 7379, S3 7390, services 7401 and up, metrics 7501 and up; further
    /// replicas 7364 and up, 7702 and up), for several fleets on one machine.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=20_000))]
    pub port_offset: u16,
    /// Domain of the endpoints; names under localhost resolve to this machine.
    #[arg(long, value_name = "NAME", default_value = "microvms.localhost")]
    pub domain: String,
    /// Guest bundle (kernel and initramfs); default: bundle in the data directory.
    #[arg(long, value_name = "DIR", env = "TORPOR_GUEST_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Toolbox (the root file system that images are built in); default: toolbox in the data directory.
    #[arg(long, value_name = "DIR", env = "TORPOR_TOOLBOX")]
    pub toolbox: Option<PathBuf>,
    /// Largest size of each host's disk where one has to be made, in GiB.
    #[arg(long, value_name = "GIB", default_value_t = 48, value_parser = clap::value_parser!(u64).range(2..=65_536))]
    pub host_disk: u64,
    /// Setting of a service, "scheduler.key.path=value"; may be repeated.
    /// Services: scheduler, image-builder, host-agent, edge-proxy.
    #[arg(long = "set", value_name = "SERVICE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Start only these components, for tests of the supervisor.
    #[arg(long, value_delimiter = ',', hide = true)]
    pub only: Vec<String>,
    /// This process is the supervisor that `--detach` started.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// A number of members of which a majority is more than half by as little as can be.
fn etcd_members(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(members @ (1 | 3 | 5)) => Ok(members),
        _ => Err("1, 3 or 5: an even number stands no more losses than one less".to_owned()),
    }
}

/// A region, as far as ARNs and signatures care.
fn region(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 32 || !text.chars().all(allowed) {
        return Err("1 to 32 lower-case letters, digits and dashes, for example us-east-1".to_owned());
    }
    Ok(text.to_owned())
}

/// Arguments of `torpor down`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Running microVMs are put to sleep first; the next torpor up wakes them again on
their next request. Running it twice is fine.")]
pub struct Down {
    /// Also delete the data directory: images, microVMs, keys, everything.
    #[arg(long)]
    pub purge: bool,
}

/// Arguments of `torpor hosts`.
#[derive(Debug, Args)]
pub struct Hosts {
    #[command(subcommand)]
    pub command: Option<HostCommand>,
}

/// What to do with a host.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Stop new placements and move what is there to other hosts.
    #[command(after_help = "\
Examples:
  torpor hosts drain host-1                        begin, and see what is to do
  torpor hosts drain host-1 --wait                 until the host can go, at most 10m
  torpor hosts drain host-1 --wait --timeout 1h

What runs is put to sleep, and goes on elsewhere as soon as S3 has it and a host has
room; what sleeps stays asleep, and wakes elsewhere. The drain goes on when this
command is interrupted: the same command again shows how far it has come.")]
    Drain {
        /// Id of the host, or a unique prefix.
        id: String,
        /// Wait until the host can go, and show how far the drain has come.
        #[arg(long)]
        wait: bool,
        /// Longest wait.
        #[arg(long, value_name = "TIME", value_parser = crate::durations::parse, default_value = "10m", requires = "wait")]
        timeout: std::time::Duration,
    },
    /// Take placements again.
    Undrain {
        /// Id of the host, or a unique prefix.
        id: String,
    },
}
