//! The components of a fleet, in the order they start: how each is run, how
//! one sees that it works, how long it may take to stop.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rpc::Role;

use super::authority;
use super::plan::{Plan, replica, users};

#[derive(Debug, Clone)]
pub enum Probe {
    /// `GET /health` over TLS with the admin certificate; etcd answers `{"health":"true"}`.
    Etcd(SocketAddr),
    Http(SocketAddr),
    Grpc(SocketAddr, Role),
    /// A TLS handshake for the endpoints' domain.
    Tls(SocketAddr, String),
}

#[derive(Debug, Clone)]
pub struct Component {
    /// Name in tables, log and pid files.
    pub name: String,
    pub program: PathBuf,
    /// Its arguments. Never secrets: everybody can read them.
    pub arguments: Vec<OsString>,
    /// True for programs that must not see ours.
    pub clean_environment: bool,
    /// Numeric user; absent means root.
    pub user: Option<u32>,
    /// Which replica it is, for the group of one that is not root.
    pub number: u16,
    /// Whether it may listen on ports that are not for everybody, without being root.
    pub binds_low_ports: bool,
    /// Files of audit records that it opens anew when they are moved, and how many
    /// older ones the supervisor keeps of each.
    pub audit: Vec<(PathBuf, u8)>,
    pub probe: Probe,
    /// Components of a stage start together, after all of the stage before.
    pub stage: u8,
    pub stop_timeout: Duration,
}

impl Component {
    /// A component of the first stage, run as root.
    fn new(name: &str, program: PathBuf, arguments: Vec<OsString>, probe: Probe) -> Self {
        Self {
            name: name.to_owned(),
            program,
            arguments,
            clean_environment: false,
            user: None,
            number: 1,
            binds_low_ports: false,
            audit: Vec::new(),
            probe,
            stage: 0,
            stop_timeout: STOP_TIMEOUT,
        }
    }
}

const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a host-agent, which removes its slots.
const HOST_STOP_TIMEOUT: Duration = Duration::from_secs(45);

/// Older audit files that are kept: a gigabyte of records of known keys, and little
/// of what anybody can write.
const AUDIT_FILES: u8 = 16;
const UNAUTHENTICATED_AUDIT_FILES: u8 = 1;

/// Most bytes etcd keeps; beyond it the fleet's records cannot change.
pub const ETCD_BYTES_MAX: u64 = 4 << 30;

/// Every wanted component, in starting order.
pub fn all(plan: &Plan) -> Vec<Component> {
    let mut components: Vec<Component> = (1..=plan.etcd_members).map(|number| etcd(plan, number)).collect();
    components.push(s3(plan));
    for number in 1..=plan.schedulers {
        let probe = Probe::Grpc(plan.scheduler(number), Role::Scheduler);
        let name = replica("scheduler", number);
        let scheduler = service(plan, "scheduler", &name, probe, Some(users::SCHEDULER), 1);
        components.push(Component { number, ..scheduler });
    }
    for number in 1..=plan.hosts {
        let probe = Probe::Grpc(plan.host_grpc(number), Role::HostAgent);
        let mut host = service(plan, "host-agent", &format!("host-agent-{number}"), probe, None, 2);
        host.stop_timeout = HOST_STOP_TIMEOUT;
        components.push(host);
    }
    for number in 1..=plan.builders {
        let probe = Probe::Grpc(plan.image_builder(number), Role::ImageBuilder);
        components.push(service(plan, "image-builder", &replica("image-builder", number), probe, None, 2));
    }
    for number in 1..=plan.edges {
        let probe = Probe::Tls(plan.edge_reachable(number), plan.domain.clone());
        let name = replica("edge-proxy", number);
        let mut edge = service(plan, "edge-proxy", &name, probe, Some(users::EDGE_PROXY), 3);
        edge.number = number;
        edge.binds_low_ports = number == 1 && plan.edge_binds_low_ports();
        edge.audit = vec![
            (plan.audit(number), AUDIT_FILES),
            (plan.unauthenticated_audit(number), UNAUTHENTICATED_AUDIT_FILES),
        ];
        components.push(edge);
    }
    components.retain(|component| plan.wants(&component.name));
    components
}

/// Names of our programs, as they are beside the `torpor` binary.
pub fn programs(plan: &Plan) -> Vec<&'static str> {
    let all = [
        ("s3", "torpor"),
        ("scheduler", "torpor-scheduler"),
        ("host-agent-1", "torpor-host-agent"),
        ("image-builder", "torpor-image-builder"),
        ("edge-proxy", "torpor-edge-proxy"),
    ];
    all.into_iter().filter(|(component, _)| plan.wants(component)).map(|(_, program)| program).collect()
}

fn service(plan: &Plan, service: &str, name: &str, probe: Probe, user: Option<u32>, stage: u8) -> Component {
    let mut arguments: Vec<OsString> = vec!["--config".into(), plan.config(name).into()];
    for (_, setting) in plan.settings.iter().filter(|(target, _)| target == service) {
        arguments.push("--set".into());
        arguments.push(setting.into());
    }
    let program = plan.path("bin").join(format!("torpor-{service}"));
    Component { user, stage, ..Component::new(name, program, arguments, probe) }
}

fn s3(plan: &Plan) -> Component {
    let arguments = vec!["s3".into(), "--config".into(), plan.config("s3").into()];
    Component {
        clean_environment: true,
        user: Some(users::S3),
        ..Component::new("s3", plan.path("bin/torpor"), arguments, Probe::Http(plan.s3()))
    }
}

/// Member `number` of the cluster, which all members form together on their first start.
fn etcd(plan: &Plan, number: u16) -> Component {
    let ca = authority::ca_file(plan);
    let (certificate, key) = authority::pair(plan, "etcd");
    let client = format!("https://{}", plan.etcd(number));
    let peer = |number| format!("https://{}", plan.etcd_peer(number));
    let member = |number| format!("{}={}", replica("fleet", number), peer(number));
    let cluster: Vec<String> = (1..=plan.etcd_members).map(member).collect();
    let peer = peer(number);
    let mut arguments: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        arguments.push(argument);
    };
    flag("name", replica("fleet", number).into());
    flag("data-dir", plan.etcd_dir(number).into());
    flag("listen-client-urls", client.clone().into());
    flag("advertise-client-urls", client.into());
    flag("listen-peer-urls", peer.clone().into());
    flag("initial-advertise-peer-urls", peer.into());
    flag("initial-cluster", cluster.join(",").into());
    for prefix in ["", "peer-"] {
        flag(&format!("{prefix}cert-file"), certificate.clone().into());
        flag(&format!("{prefix}key-file"), key.clone().into());
        flag(&format!("{prefix}trusted-ca-file"), ca.clone().into());
        flag(&format!("{prefix}client-cert-auth"), "true".into());
    }
    // Any other certificate of the CA is a client's, and rights are given by its name.
    flag("peer-cert-allowed-cn", Role::Etcd.dns_name().into());
    // The members share a machine: half of the usual times, so that a member that leads the others is missed for half as long.
    flag("heartbeat-interval", "50".into());
    flag("election-timeout", "500".into());
    flag("auto-compaction-mode", "periodic".into());
    // Long enough for a watcher to come back to; what was overwritten takes room until then.
    flag("auto-compaction-retention", "2m".into());
    flag("quota-backend-bytes", ETCD_BYTES_MAX.to_string().into());
    flag("logger", "zap".into());
    flag("log-level", "warn".into());
    let program = super::prerequisites::find("etcd").unwrap_or_else(|| "/usr/bin/etcd".into());
    Component {
        clean_environment: true,
        user: Some(users::ETCD),
        number,
        ..Component::new(&replica("etcd", number), program, arguments, Probe::Etcd(plan.etcd(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::plan::tests::plan;

    #[test]
    fn stages_rise_and_settings_reach_their_service_only() {
        let plan = plan(&["--hosts", "2", "--set", "host-agent.limits.bakes=2"]);
        let components = all(&plan);
        let names: Vec<&str> = components.iter().map(|component| component.name.as_str()).collect();
        let expected =
            ["etcd", "s3", "scheduler", "host-agent-1", "host-agent-2", "image-builder", "edge-proxy"];
        assert_eq!(names, expected);
        assert!(components.is_sorted_by_key(|component| component.stage));
        for component in components {
            let told = component.arguments.iter().any(|argument| argument == "limits.bakes=2");
            assert_eq!(told, component.name.starts_with("host-agent"), "{}", component.name);
        }
    }

    #[test]
    fn replicas_have_names_ports_and_members_of_their_own() {
        let plan = plan(&["--schedulers", "2", "--edges", "2", "--builders", "2", "--etcd-members", "3"]);
        let components = all(&plan);
        let names: Vec<&str> = components.iter().map(|component| component.name.as_str()).collect();
        let expected = "etcd etcd-2 etcd-3 s3 scheduler scheduler-2 host-agent-1 image-builder image-builder-2 \
                        edge-proxy edge-proxy-2";
        assert_eq!(names.join(" "), expected);
        let cluster = "--initial-cluster=fleet=https://127.0.0.1:7380,fleet-2=https://127.0.0.1:7365,\
                       fleet-3=https://127.0.0.1:7367";
        for (member, name) in components.iter().zip(["fleet", "fleet-2", "fleet-3"]) {
            assert!(member.arguments.contains(&cluster.into()), "{:?}", member.arguments);
            assert!(member.arguments.contains(&format!("--name={name}").into()), "{:?}", member.arguments);
        }
    }

    #[test]
    fn only_what_needs_root_has_it() {
        for component in all(&plan(&[])) {
            let root = ["host-agent-1", "image-builder"].contains(&component.name.as_str());
            assert_eq!(component.user.is_none(), root, "{}", component.name);
        }
    }
}
