//! What one `torpor up` runs: paths, ports, users. Pure; nothing is touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::cli::fleet::Up;
use crate::error::CliError;

/// Region of the fleet's ARNs and signatures unless told otherwise: AWS's clients know its form.
pub const REGION: &str = "us-east-1";
/// Port of the endpoints of a fleet without a port offset, where it is free: the one that clients of HTTPS assume.
const EDGE_PORT: u16 = 443;
/// Port of the endpoints where that is taken. A port offset is added to it.
const EDGE_PORT_ELSE: u16 = 8443;
/// Ports below this are for processes with a right of their own.
const LOW_PORTS_END: u16 = 1024;
/// Port of the AWS-compatible API of a fleet without a port offset.
const API_PORT: u16 = 8444;
pub const ACCOUNT: &str = "000000000000";
pub const SERVICES: [&str; 4] = ["scheduler", "image-builder", "host-agent", "edge-proxy"];

/// Numeric users of the components that need no rights. Nobody logs in as them, so they need no names.
pub mod users {
    pub const ETCD: u32 = 61_001;
    pub const S3: u32 = 61_002;
    pub const SCHEDULER: u32 = 61_003;
    pub const EDGE_PROXY: u32 = 61_004;
    /// The engines of host N run as this plus N.
    pub const ENGINE: u32 = 61_010;

    /// The group of replica `number` of what runs as `user`: each has one of its own, by which a firewall can tell its
    /// packets from those of the others.
    pub fn group(user: u32, number: u16) -> u32 {
        if number == 1 { user } else { user + 100 * u32::from(number) }
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub data_dir: PathBuf,
    pub hosts: u16,
    pub schedulers: u16,
    pub edges: u16,
    pub builders: u16,
    pub etcd_members: u16,
    /// The loopback addresses of this machine.
    pub loopback: Vec<IpAddr>,
    /// Where the endpoints are served; empty means on loopback.
    pub edge_addresses: Vec<IpAddr>,
    pub edge_port: u16,
    /// The port of the endpoints where `edge_port` is taken; absent when `edge_port` was asked for.
    pub edge_port_else: Option<u16>,
    pub api_port: u16,
    pub region: String,
    pub port_offset: u16,
    pub domain: String,
    pub bundle: PathBuf,
    pub toolbox: PathBuf,
    pub binaries: PathBuf,
    pub host_disk_bytes: u64,
    /// Settings of services: (service, "key=value").
    pub settings: Vec<(String, String)>,
    /// Only these components; empty means all.
    pub only: Vec<String>,
}

/// The directory that was given, or the one of this name in the data directory.
fn given(directory: Option<&Path>, data_dir: &Path, name: &str) -> std::io::Result<PathBuf> {
    directory.map_or_else(|| Ok(data_dir.join(name)), std::path::absolute)
}

impl Plan {
    pub fn new(data_dir: &Path, arguments: &Up) -> Result<Self, CliError> {
        let settings = arguments.settings.iter().map(|text| setting(text)).collect::<Result<_, _>>()?;
        let binaries = std::env::current_exe()?
            .parent()
            .map(Path::to_owned)
            .ok_or_else(|| CliError::failed("the torpor binary has no directory"))?;
        let offset = arguments.port_offset;
        let (edge_port, edge_port_else) = match arguments.edge_port {
            Some(port) => (port, None),
            None if offset == 0 => (EDGE_PORT, Some(EDGE_PORT_ELSE)),
            None => (EDGE_PORT_ELSE + offset, None),
        };
        Ok(Self {
            data_dir: data_dir.to_owned(),
            hosts: arguments.hosts,
            schedulers: arguments.schedulers,
            edges: arguments.edges,
            builders: arguments.builders,
            etcd_members: arguments.etcd_members,
            loopback: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            edge_addresses: arguments.edge_address.clone(),
            edge_port,
            edge_port_else,
            api_port: arguments.api_port.unwrap_or(API_PORT + offset),
            region: arguments.region.clone(),
            port_offset: offset,
            domain: arguments.domain.clone(),
            bundle: given(arguments.bundle.as_deref(), data_dir, "bundle")?,
            toolbox: given(arguments.toolbox.as_deref(), data_dir, "toolbox")?,
            binaries,
            host_disk_bytes: arguments.host_disk << 30,
            settings,
            only: arguments.only.clone(),
        })
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.data_dir.join(relative)
    }

    /// Directory of pid files, the lock and the record.
    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub fn log(&self, component: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{component}.log"))
    }

    pub fn config(&self, component: &str) -> PathBuf {
        self.data_dir.join("config").join(format!("{component}.toml"))
    }

    /// Audit records of edge `number`.
    pub fn audit(&self, number: u16) -> PathBuf {
        self.path("audit").join(format!("{}.jsonl", replica("aws-api", number)))
    }

    /// The same of requests without a known signer.
    pub fn unauthenticated_audit(&self, number: u16) -> PathBuf {
        self.path("audit").join(format!("{}.jsonl", replica("aws-api-unauthenticated", number)))
    }

    pub fn builder_dir(&self, number: u16) -> PathBuf {
        self.data_dir.join(replica("builder", number))
    }

    pub fn etcd_dir(&self, number: u16) -> PathBuf {
        self.data_dir.join(replica("etcd", number))
    }

    pub fn host_dir(&self, number: u16) -> PathBuf {
        self.data_dir.join("hosts").join(format!("h{number}"))
    }

    pub fn host_id(number: u16) -> String {
        format!("host-{number}")
    }

    pub fn wants(&self, component: &str) -> bool {
        if component == "host-agent-1" && self.hosts == 0 {
            return false;
        }
        self.only.is_empty() || self.only.iter().any(|name| name == component || name == first_of(component))
    }

    /// URLs of the endpoints, for people.
    pub fn endpoints(&self) -> String {
        let port = if self.edge_port == EDGE_PORT { String::new() } else { format!(":{}", self.edge_port) };
        format!("https://<name>.{}{port}/", self.domain)
    }

    /// Whether the edge needs the right to listen on ports that are not for everybody.
    pub fn edge_binds_low_ports(&self) -> bool {
        self.edge_port.min(self.api_port) < LOW_PORTS_END
    }

    /// URL of the AWS-compatible API. By name, because that is what its certificate
    /// and a person's configuration are about.
    pub fn api_url(&self) -> String {
        format!("https://localhost:{}", self.api_port)
    }

    /// Prefix of the network names of host `number`, at most 8 characters and
    /// different for every fleet (by its port offset) and host of this machine.
    pub fn slot_prefix(&self, number: u16) -> String {
        match self.port_offset {
            0 => format!("tp-h{number}"),
            offset => format!("t{}-h{number}", base36(offset)),
        }
    }

    /// Network of the slots of host `number`: a /20 for 1024 slots.
    pub fn slot_subnet(&self, number: u16) -> String {
        // 10.201 to 10.254, one per fleet; sixteen hosts share its /16.
        let fleet = self.port_offset % 54;
        format!("10.{}.{}.0/20", 201 + fleet, 16 * (number - 1))
    }
}

/// The name of replica `number` of something; the first has the plain name.
pub fn replica(name: &str, number: u16) -> String {
    if number == 1 { name.to_owned() } else { format!("{name}-{number}") }
}

/// The name of the first replica: what is asked for by it is asked for all.
fn first_of(component: &str) -> &str {
    match component.rsplit_once('-') {
        Some((name, number)) if number.parse::<u16>().is_ok_and(|number| number > 1) => match name {
            "host-agent" => component,
            _ => name,
        },
        _ => component,
    }
}

fn base36(mut value: u16) -> String {
    let mut digits = Vec::new();
    while value > 0 {
        digits.push(std::char::from_digit(u32::from(value % 36), 36).expect("a remainder below 36"));
        value /= 36;
    }
    digits.iter().rev().collect()
}

fn setting(text: &str) -> Result<(String, String), CliError> {
    let usage = |message: String| {
        CliError::usage(format!("--set {text}: {message}"))
            .next(format!("services are {}", SERVICES.join(", ")))
    };
    let (service, rest) =
        text.split_once('.').ok_or_else(|| usage("must have the form SERVICE.KEY=VALUE".to_owned()))?;
    if !SERVICES.contains(&service) {
        return Err(usage(format!("there is no service '{service}'")));
    }
    if !rest.contains('=') {
        return Err(usage("must have the form SERVICE.KEY=VALUE".to_owned()));
    }
    Ok((service.to_owned(), rest.to_owned()))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::error::Kind;
    use clap::Parser as _;

    /// A plan as the command line gives it.
    pub fn plan(line: &[&str]) -> Plan {
        let line = ["torpor", "up"].iter().chain(line);
        match crate::cli::Cli::parse_from(line).command {
            crate::cli::Command::Up(arguments) => Plan::new(Path::new("/data"), &arguments).unwrap(),
            other => panic!("parsed {other:?}"),
        }
    }

    #[test]
    fn replicas_are_wanted_with_the_first_of_them() {
        let plan = plan(&["--only", "scheduler,host-agent-2", "--hosts", "3"]);
        for (component, wanted) in [
            ("scheduler", true),
            ("scheduler-2", true),
            ("etcd-2", false),
            ("host-agent-2", true),
            ("host-agent-3", false),
        ] {
            assert_eq!(plan.wants(component), wanted, "{component}");
        }
    }

    #[test]
    fn a_fleet_without_hosts_wants_no_host_agent() {
        let without = plan(&["--hosts", "0"]);
        assert!(!without.wants("host-agent-1") && without.wants("scheduler"));
        assert!(plan(&[]).wants("host-agent-1"));
        let names: Vec<String> = without.listeners().into_iter().map(|(name, _)| name).collect();
        assert!(!names.iter().any(|name| name.starts_with("host-agent")), "{names:?}");
    }

    #[test]
    fn two_fleets_on_one_machine_share_no_names() {
        let (first, second) = (plan(&["--hosts", "16"]), plan(&["--hosts", "16", "--port-offset", "20000"]));
        assert_eq!(first.slot_prefix(1), "tp-h1");
        assert_eq!(second.slot_prefix(16), "tffk-h16");
        assert_ne!(first.slot_subnet(1), second.slot_subnet(1));
        assert_eq!(first.slot_subnet(16), "10.201.240.0/20");
        assert_ne!(first.scheduler(1), second.scheduler(1));
        assert_ne!(first.api_port, second.api_port);
        assert_ne!(first.edge_port, second.edge_port);
    }

    #[test]
    fn the_api_has_a_port_of_its_own() {
        for (line, url) in [
            (&[][..], "https://localhost:8444"),
            (&["--port-offset", "3000"], "https://localhost:11444"),
            (&["--port-offset", "3000", "--api-port", "9444"], "https://localhost:9444"),
            (&["--edge-address", "0.0.0.0"], "https://localhost:8444"),
        ] {
            let plan = plan(line);
            assert_eq!(plan.api_url(), url);
            assert!(plan.api(1).iter().all(|address| address.ip().is_loopback()), "{line:?}");
        }
    }

    #[test]
    fn settings_name_a_service() {
        assert_eq!(
            setting("host-agent.limits.bakes=2").unwrap(),
            ("host-agent".to_owned(), "limits.bakes=2".to_owned())
        );
        for wrong in ["bakes=2", "builder.x=1", "scheduler.x", ""] {
            assert_eq!(setting(wrong).expect_err("wrong").kind, Kind::Usage, "{wrong}");
        }
    }

    #[test]
    fn endpoints_are_on_the_port_of_https_unless_told_otherwise() {
        for (line, addresses, reachable, endpoints) in [
            (&[][..], "127.0.0.1:443 [::1]:443", "127.0.0.1:443", "https://<name>.microvms.localhost/"),
            (
                &["--edge-port", "9443"],
                "127.0.0.1:9443 [::1]:9443",
                "127.0.0.1:9443",
                "https://<name>.microvms.localhost:9443/",
            ),
            (
                &["--port-offset", "100", "--domain", "vms.test"],
                "127.0.0.1:8543 [::1]:8543",
                "127.0.0.1:8543",
                "https://<name>.vms.test:8543/",
            ),
            (
                &["--edge-address", "0.0.0.0"],
                "0.0.0.0:443",
                "127.0.0.1:443",
                "https://<name>.microvms.localhost/",
            ),
            (
                &["--edge-address", "192.0.2.1", "--edge-address", "2001:db8::1"],
                "192.0.2.1:443 [2001:db8::1]:443",
                "192.0.2.1:443",
                "https://<name>.microvms.localhost/",
            ),
        ] {
            let plan = plan(line);
            let listening: Vec<String> = plan.edge(1).iter().map(ToString::to_string).collect();
            assert_eq!(listening.join(" "), addresses);
            assert_eq!(plan.edge_reachable(1).to_string(), reachable);
            assert_eq!(plan.endpoints(), endpoints);
            assert_eq!(plan.edge_port_else.is_some(), plan.edge_port == 443, "{line:?}");
        }
    }
}
