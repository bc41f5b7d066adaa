//! The settings files of the services, written anew by every `torpor up`: mode 0600 and owned by the user the
//! service runs as, because some hold an S3 secret. Key names are those of each service's `config.rs`; a
//! service that does not know one refuses to start and says which.

use std::net::SocketAddr;
use std::path::Path;

use rpc::Role;
use toml::{Table, Value};

use super::authority;
use super::components::ETCD_BYTES_MAX;
use super::credentials::{self, S3Credentials};
use super::files;
use super::plan::{ACCOUNT, Plan, replica, users};
use super::storage;
use crate::error::{CliError, Kind};

/// Share of the machine's memory that hosts hand out, in percent.
const MEMORY_SHARE_PERCENT: u64 = 80;
/// Life of the leader's lease where another scheduler stands by, in seconds: the least that etcd keeps to. Alone, the
/// default does: the same process leads again as soon as it is back.
const LEASE_SECONDS: i64 = 2;
/// Least memory a host hands out, in MiB.
const MEMORY_MIB_MIN: u64 = 2048;

/// Writes every file and the clients' context.
pub fn write(plan: &Plan) -> Result<(), CliError> {
    files::directory(&plan.path("config"), 0o711, None)?;
    let (services, root) = (credentials::services(plan)?, credentials::root(plan)?);
    let put = |name: &str, table: Table, owner: Option<u32>| {
        let text = toml::to_string_pretty(&table)
            .map_err(|error| CliError::failed(format!("cannot write the settings of {name}: {error}")))?;
        files::write_private(&plan.config(name), text.as_bytes(), owner)?;
        Ok::<_, CliError>(())
    };
    put("s3", s3_server(plan, &[&services, &root]), Some(users::S3))?;
    for number in 1..=plan.schedulers {
        put(&replica("scheduler", number), scheduler(plan, number), Some(users::SCHEDULER))?;
    }
    for number in 1..=plan.builders {
        put(&replica("image-builder", number), image_builder(plan, &services, number), None)?;
    }
    for number in 1..=plan.edges {
        put(&replica("edge-proxy", number), edge_proxy(plan, number), Some(users::EDGE_PROXY))?;
    }
    let left = storage::left_to_others(plan)?;
    for number in 1..=plan.hosts {
        put(&format!("host-agent-{number}"), host_agent(plan, &services, number, left)?, None)?;
    }
    let context = context(plan, &root).to_toml();
    files::write_private(&client::Context::file(&plan.data_dir), context.as_bytes(), None)?;
    Ok(())
}

fn context(plan: &Plan, root: &S3Credentials) -> client::Context {
    let (cert, key) = authority::pair(plan, "admin");
    let edges: Vec<String> = (1..=plan.edges).map(|number| plan.edge_reachable(number).to_string()).collect();
    client::Context {
        scheduler: plan.schedulers().join(","),
        image_builder: plan.image_builders().join(","),
        edge: edges.join(","),
        api: plan.api_url(),
        endpoint_domain: plan.domain.clone(),
        ca: authority::ca_file(plan),
        cert,
        key,
        s3: client::S3Access {
            endpoint: format!("http://{}", plan.s3()),
            region: plan.region.clone(),
            access_key_id: root.access_key_id.clone(),
            secret_access_key: root.secret_access_key.clone(),
        },
    }
}

macro_rules! table {
    ($($key:literal = $value:expr),* $(,)?) => {
        Table::from_iter([$(($key.to_owned(), Value::from($value))),*])
    };
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn addresses(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn tls(plan: &Plan, name: &str) -> Table {
    let (cert, key) = authority::pair(plan, name);
    table! { "ca" = text(&authority::ca_file(plan)), "cert" = text(&cert), "key" = text(&key) }
}

/// The settings of replica `number` of a service: those that each has, and its own.
fn service(plan: &Plan, role: Role, number: u16, own: Table) -> Table {
    let certificate = match role {
        Role::HostAgent => authority::of_host(&Plan::host_id(number)),
        _ => role.name().to_owned(),
    };
    let etcd = table! {
        "endpoints" = plan.etcd_urls(number),
        "root" = credentials::ETCD_ROOT,
        "tls" = tls(plan, &certificate),
    };
    let mut all = table! {
        "region" = plan.region.as_str(),
        "tls" = tls(plan, &certificate),
        "etcd" = etcd,
        "telemetry" = table! { "metrics_address" = plan.metrics(role, number).to_string() },
    };
    all.extend(own);
    all
}

fn s3(plan: &Plan, keys: &S3Credentials) -> Table {
    table! {
        "endpoint" = format!("http://{}", plan.s3()),
        "region" = plan.region.as_str(),
        "access_key_id" = keys.access_key_id.as_str(),
        "secret_access_key" = keys.secret_access_key.as_str(),
        "path_style" = true,
    }
}

fn s3_server(plan: &Plan, keys: &[&S3Credentials]) -> Table {
    let pair = |key: &&S3Credentials| {
        table! {
            "access_key_id" = key.access_key_id.as_str(),
            "secret_access_key" = key.secret_access_key.as_str(),
        }
    };
    table! {
        "listen" = plan.s3().to_string(),
        "root" = text(&plan.path("s3")),
        "keys" = keys.iter().map(pair).collect::<Vec<_>>(),
        "buckets" = vec![client::ARTIFACT_BUCKET, "torpor-snapshots", "torpor-logs"],
    }
}

fn scheduler(plan: &Plan, number: u16) -> Table {
    let mut own = table! {
        "listen" = plan.scheduler(number).to_string(),
        "account" = ACCOUNT,
        "endpoint_domain" = plan.domain.as_str(),
        "endpoint_port" = i64::from(plan.edge_port),
        "etcd_bytes_max" = i64::try_from(ETCD_BYTES_MAX).unwrap_or(i64::MAX),
    };
    if plan.schedulers > 1 {
        own.insert("lease_seconds".to_owned(), Value::from(LEASE_SECONDS));
    }
    service(plan, Role::Scheduler, number, own)
}

fn image_builder(plan: &Plan, keys: &S3Credentials, number: u16) -> Table {
    let own = table! {
        "listen" = plan.image_builder(number).to_string(),
        "data_dir" = text(&plan.builder_dir(number)),
        "artifact_bucket" = client::ARTIFACT_BUCKET,
        "account" = ACCOUNT,
        "schedulers" = plan.schedulers(),
        "build" = table! { "toolbox" = text(&plan.toolbox) },
        "s3" = s3(plan, keys),
    };
    service(plan, Role::ImageBuilder, number, own)
}

fn edge_proxy(plan: &Plan, number: u16) -> Table {
    let (cert, key) = authority::pair(plan, authority::ENDPOINTS);
    let (api_cert, api_key) = authority::pair(plan, authority::API);
    let aws = table! {
        "listen" = addresses(&plan.api(number)),
        "cert" = text(&api_cert),
        "key" = text(&api_key),
        "audit_file" = text(&plan.audit(number)),
        "unauthenticated_audit_file" = text(&plan.unauthenticated_audit(number)),
        "arm_64_is_own" = true,
    };
    let own = table! {
        "listen" = addresses(&plan.edge(number)),
        "domain" = plan.domain.as_str(),
        "account" = ACCOUNT,
        "schedulers" = plan.schedulers(),
        "image_builders" = plan.image_builders(),
        "aws" = aws,
        "endpoint_cert" = text(&cert),
        "endpoint_key" = text(&key),
    };
    service(plan, Role::EdgeProxy, number, own)
}

/// `left` bytes of the disk are not for hosts.
fn host_agent(plan: &Plan, keys: &S3Credentials, number: u16, left: u64) -> Result<Table, CliError> {
    let slots = table! {
        "prefix" = plan.slot_prefix(number),
        "outer_subnet" = plan.slot_subnet(number),
    };
    let disk = table! {
        "shared_by" = i64::from(plan.hosts),
        "left_to_others_bytes" = i64::try_from(left).unwrap_or(i64::MAX),
    };
    let engine_user = i64::from(users::ENGINE + u32::from(number));
    let own = table! {
        "host_id" = Plan::host_id(number),
        "listen" = plan.host_grpc(number).to_string(),
        "tunnel_listen" = plan.host_tunnel(number).to_string(),
        "data_dir" = text(&plan.host_dir(number)),
        "schedulers" = plan.schedulers(),
        "guest_bundle" = text(&plan.bundle),
        "memory_capacity_mib" = memory_capacity_mib(plan.hosts)?,
        "disk" = disk,
        "slots" = slots,
        "engine" = table! { "run_as" = table! { "uid" = engine_user, "gid" = engine_user } },
        "s3" = s3(plan, keys),
    };
    Ok(service(plan, Role::HostAgent, number, own))
}

/// Memory each host hands out, in MiB.
fn memory_capacity_mib(hosts: u16) -> Result<i64, CliError> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| CliError::new(Kind::Failed, "/proc/meminfo does not say how much memory there is"))?;
    let share = total_kib / 1024 * MEMORY_SHARE_PERCENT / 100 / u64::from(hosts.max(1));
    i64::try_from(share.max(MEMORY_MIB_MIN)).map_err(|_| CliError::failed("this machine has too much memory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::plan::tests::plan;

    #[test]
    fn hosts_share_the_memory() {
        let (one, two) = (memory_capacity_mib(1).unwrap(), memory_capacity_mib(2).unwrap());
        assert!(one >= two && two >= 2048, "{one} {two}");
    }

    #[test]
    fn one_region_and_account_for_all_and_the_edge_knows_its_neighbours() {
        let plan = plan(&["--region", "eu-west-1", "--port-offset", "100"]);
        let key = S3Credentials { access_key_id: "id".to_owned(), secret_access_key: "secret".to_owned() };
        let edge = edge_proxy(&plan, 1);
        let tables = [
            scheduler(&plan, 1),
            image_builder(&plan, &key, 1),
            host_agent(&plan, &key, 1, 0).unwrap(),
            edge.clone(),
        ];
        for table in &tables {
            assert_eq!(table["region"].as_str(), Some("eu-west-1"), "{table}");
            let account = table.get("account").and_then(Value::as_str);
            assert!(account.is_none_or(|account| account == ACCOUNT), "{table}");
        }
        assert_eq!(context(&plan, &key).s3.region, "eu-west-1");
        assert_eq!(edge["image_builders"][0].as_str(), Some("127.0.0.1:7502"));
        assert_eq!(edge["aws"]["listen"][0].as_str(), Some("127.0.0.1:8544"));
        assert_eq!(edge["listen"][1].as_str(), Some("[::1]:8543"));
        assert_eq!(context(&plan, &key).api, "https://localhost:8544");
    }

    #[test]
    fn every_replica_is_known_to_those_that_call_it() {
        let plan = plan(&["--schedulers", "2", "--edges", "2", "--builders", "2", "--etcd-members", "3"]);
        let key = S3Credentials { access_key_id: "id".to_owned(), secret_access_key: "secret".to_owned() };
        let all = |table: &Table, name: &str| table[name].as_array().expect(name).len();
        let (edge, builder) = (edge_proxy(&plan, 2), image_builder(&plan, &key, 2));
        let host = host_agent(&plan, &key, 1, 0).unwrap();
        assert_eq!((all(&edge, "schedulers"), all(&edge, "image_builders")), (2, 2));
        assert_eq!((all(&builder, "schedulers"), all(&host, "schedulers")), (2, 2));
        assert_eq!(edge["etcd"]["endpoints"].as_array().map(Vec::len), Some(3));
        assert_ne!(builder["data_dir"], image_builder(&plan, &key, 1)["data_dir"]);
        assert_ne!(edge["aws"]["audit_file"], edge_proxy(&plan, 1)["aws"]["audit_file"]);
        let context = context(&plan, &key);
        assert_eq!(context.scheduler, "127.0.0.1:7401,127.0.0.1:7702");
        assert_eq!(context.edge.split(',').count(), 2);
    }
}
