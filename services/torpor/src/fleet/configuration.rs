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
use super::plan::{ACCOUNT, Plan, users};
use super::storage;
use crate::error::{CliError, Kind};

/// Share of the machine's memory that hosts hand out, in percent.
const MEMORY_SHARE_PERCENT: u64 = 80;
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
    put("scheduler", scheduler(plan), Some(users::SCHEDULER))?;
    put("image-builder", image_builder(plan, &services), None)?;
    put("edge-proxy", edge_proxy(plan), Some(users::EDGE_PROXY))?;
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
    client::Context {
        scheduler: plan.scheduler().to_string(),
        image_builder: plan.image_builder().to_string(),
        edge: plan.edge_reachable().to_string(),
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

/// URLs of etcd's members.
pub fn etcd_endpoints(plan: &Plan) -> Vec<String> {
    vec![format!("https://{}", plan.etcd())]
}

/// The settings of a service with the certificate of a name: those that each has, and its own.
fn service(plan: &Plan, certificate: &str, metrics_port: u16, own: Table) -> Table {
    let etcd = table! {
        "endpoints" = etcd_endpoints(plan),
        "root" = credentials::ETCD_ROOT,
        "tls" = tls(plan, certificate),
    };
    let mut all = table! {
        "region" = plan.region.as_str(),
        "tls" = tls(plan, certificate),
        "etcd" = etcd,
        "telemetry" = table! { "metrics_address" = plan.internal(metrics_port).to_string() },
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

fn scheduler(plan: &Plan) -> Table {
    let own = table! {
        "listen" = plan.scheduler().to_string(),
        "account" = ACCOUNT,
        "endpoint_domain" = plan.domain.as_str(),
        "endpoint_port" = i64::from(plan.edge_port),
        "etcd_bytes_max" = i64::try_from(ETCD_BYTES_MAX).unwrap_or(i64::MAX),
    };
    service(plan, Role::Scheduler.name(), 7501, own)
}

fn image_builder(plan: &Plan, keys: &S3Credentials) -> Table {
    let own = table! {
        "listen" = plan.image_builder().to_string(),
        "data_dir" = text(&plan.path("builder")),
        "artifact_bucket" = client::ARTIFACT_BUCKET,
        "account" = ACCOUNT,
        "schedulers" = vec![plan.scheduler().to_string()],
        "s3" = s3(plan, keys),
    };
    service(plan, Role::ImageBuilder.name(), 7502, own)
}

fn edge_proxy(plan: &Plan) -> Table {
    let (cert, key) = authority::pair(plan, authority::ENDPOINTS);
    let (api_cert, api_key) = authority::pair(plan, authority::API);
    let aws = table! {
        "listen" = addresses(&plan.api()),
        "cert" = text(&api_cert),
        "key" = text(&api_key),
        "audit_file" = text(&plan.audit()),
        "unauthenticated_audit_file" = text(&plan.unauthenticated_audit()),
        "arm_64_is_own" = true,
    };
    let own = table! {
        "listen" = addresses(&plan.edge()),
        "domain" = plan.domain.as_str(),
        "account" = ACCOUNT,
        "schedulers" = vec![plan.scheduler().to_string()],
        "image_builders" = vec![plan.image_builder().to_string()],
        "aws" = aws,
        "endpoint_cert" = text(&cert),
        "endpoint_key" = text(&key),
    };
    service(plan, Role::EdgeProxy.name(), 7503, own)
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
    let id = Plan::host_id(number);
    let own = table! {
        "host_id" = id.as_str(),
        "listen" = plan.host_grpc(number).to_string(),
        "tunnel_listen" = plan.host_tunnel(number).to_string(),
        "data_dir" = text(&plan.host_dir(number)),
        "schedulers" = vec![plan.scheduler().to_string()],
        "guest_bundle" = text(&plan.bundle),
        "memory_capacity_mib" = memory_capacity_mib(plan.hosts)?,
        "disk" = disk,
        "slots" = slots,
        "engine" = table! { "run_as" = table! { "uid" = engine_user, "gid" = engine_user } },
        "s3" = s3(plan, keys),
    };
    Ok(service(plan, &authority::of_host(&id), 7510 + number, own))
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
        let edge = edge_proxy(&plan);
        let tables = [
            scheduler(&plan),
            image_builder(&plan, &key),
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
}
