//! The settings files of the services, written anew by every `torpor up`: mode
//! 0600 and owned by the user the service runs as, because they hold the S3
//! secret. Key names are those of each service's `config.rs`; a service that
//! does not know one refuses to start and says which.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::authority;
use super::files;
use super::plan::{ACCOUNT, Plan, REGION, users};
use crate::failure::{Failure, Kind};

/// Share of the machine's memory that hosts hand out, in percent.
const MEMORY_SHARE_PERCENT: u64 = 80;
/// Least memory a host hands out, in MiB.
const MEMORY_MIB_MIN: u64 = 2048;

/// Access keys of the embedded S3, made once per fleet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Keys {
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
}

/// Writes every file and the clients' context.
pub fn write(plan: &Plan) -> Result<(), Failure> {
    files::directory(&plan.path("config"), 0o711, None)?;
    let keys = s3_keys(plan)?;
    let put = |name: &str, table: Table, owner: Option<u32>| {
        let text = toml::to_string_pretty(&table)
            .map_err(|error| Failure::failed(format!("cannot write the settings of {name}: {error}")))?;
        files::write_private(&plan.config(name), text.as_bytes(), owner)?;
        Ok::<_, Failure>(())
    };
    put("s3", s3_server(plan, &keys), Some(users::S3))?;
    put("scheduler", scheduler(plan), Some(users::SCHEDULER))?;
    put("image-builder", image_builder(plan, &keys), None)?;
    put("edge-proxy", edge_proxy(plan), Some(users::EDGE_PROXY))?;
    for number in 1..=plan.hosts {
        put(
            &format!("host-agent-{number}"),
            host_agent(plan, &keys, number)?,
            None,
        )?;
    }
    let context = context(plan, &keys).to_toml();
    files::write_private(&client::Context::file(&plan.data_dir), context.as_bytes(), None)?;
    Ok(())
}

/// The access keys, made when there are none.
fn s3_keys(plan: &Plan) -> Result<S3Keys, Failure> {
    let path = plan.path("config/s3-keys.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|error| {
            Failure::failed(format!("{} is damaged: {error}", path.display()))
                .next("delete it while the fleet is down; torpor up makes new keys")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret: [u8; 24] = rand::random();
            let id: [u8; 8] = rand::random();
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let keys = S3Keys {
                access_key_id: format!("TORPOR{}", hex(&id).to_uppercase()),
                secret_access_key: hex(&secret),
            };
            let text = toml::to_string(&keys).map_err(|error| Failure::failed(error.to_string()))?;
            files::write_private(&path, text.as_bytes(), None)?;
            Ok(keys)
        }
        Err(error) => Err(files::named(&path, &error).into()),
    }
}

/// What clients of the fleet read.
fn context(plan: &Plan, keys: &S3Keys) -> client::Context {
    let (cert, key) = authority::pair(plan, "admin");
    client::Context {
        scheduler: plan.scheduler().to_string(),
        image_builder: plan.image_builder().to_string(),
        edge: plan.edge_reachable().to_string(),
        endpoint_domain: plan.domain.clone(),
        ca: authority::ca_file(plan),
        cert,
        key,
        s3: client::S3Access {
            endpoint: format!("http://{}", plan.s3()),
            region: REGION.to_owned(),
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: keys.secret_access_key.clone(),
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

fn tls(plan: &Plan, name: &str) -> Table {
    let (cert, key) = authority::pair(plan, name);
    table! { "ca" = text(&authority::ca_file(plan)), "cert" = text(&cert), "key" = text(&key) }
}

fn etcd(plan: &Plan, role: &str) -> Table {
    table! {
        "endpoints" = vec![format!("https://{}", plan.etcd())],
        "root" = "/torpor/",
        "tls" = tls(plan, role),
    }
}

fn s3(plan: &Plan, keys: &S3Keys) -> Table {
    table! {
        "endpoint" = format!("http://{}", plan.s3()),
        "region" = REGION,
        "access_key_id" = keys.access_key_id.as_str(),
        "secret_access_key" = keys.secret_access_key.as_str(),
        "path_style" = true,
    }
}

fn telemetry(plan: &Plan, metrics_port: u16) -> Table {
    table! { "metrics_address" = plan.internal(metrics_port).to_string() }
}

fn s3_server(plan: &Plan, keys: &S3Keys) -> Table {
    table! {
        "listen" = plan.s3().to_string(),
        "root" = text(&plan.path("s3")),
        "access_key_id" = keys.access_key_id.as_str(),
        "secret_access_key" = keys.secret_access_key.as_str(),
        "buckets" = vec![client::ARTIFACT_BUCKET, "torpor-snapshots", "torpor-logs"],
    }
}

fn scheduler(plan: &Plan) -> Table {
    table! {
        "listen" = plan.scheduler().to_string(),
        "region" = REGION,
        "account" = ACCOUNT,
        "endpoint_domain" = plan.domain.as_str(),
        "endpoint_port" = i64::from(plan.edge.port()),
        "tls" = tls(plan, "scheduler"),
        "etcd" = etcd(plan, "scheduler"),
        "telemetry" = telemetry(plan, 7501),
    }
}

fn image_builder(plan: &Plan, keys: &S3Keys) -> Table {
    table! {
        "listen" = plan.image_builder().to_string(),
        "data_dir" = text(&plan.path("builder")),
        "region" = REGION,
        "account" = ACCOUNT,
        "schedulers" = vec![plan.scheduler().to_string()],
        "tls" = tls(plan, "image-builder"),
        "etcd" = etcd(plan, "image-builder"),
        "s3" = s3(plan, keys),
        "telemetry" = telemetry(plan, 7502),
    }
}

fn edge_proxy(plan: &Plan) -> Table {
    let (cert, key) = authority::pair(plan, authority::ENDPOINTS);
    table! {
        "listen" = plan.edge.to_string(),
        "domain" = plan.domain.as_str(),
        "schedulers" = vec![plan.scheduler().to_string()],
        "endpoint_cert" = text(&cert),
        "endpoint_key" = text(&key),
        "tls" = tls(plan, "edge-proxy"),
        "etcd" = etcd(plan, "edge-proxy"),
        "telemetry" = telemetry(plan, 7503),
    }
}

fn host_agent(plan: &Plan, keys: &S3Keys, number: u16) -> Result<Table, Failure> {
    let slots = table! {
        "prefix" = plan.slot_prefix(number),
        "outer_subnet" = plan.slot_subnet(number),
    };
    let engine_user = i64::from(users::ENGINE + u32::from(number));
    Ok(table! {
        "host_id" = format!("host-{number}"),
        "listen" = plan.host_grpc(number).to_string(),
        "tunnel_listen" = plan.host_tunnel(number).to_string(),
        "data_dir" = text(&plan.host_dir(number)),
        "scheduler_addresses" = vec![plan.scheduler().to_string()],
        "guest_bundle" = text(&plan.bundle),
        "region" = REGION,
        "memory_capacity_mib" = memory_capacity_mib(plan.hosts)?,
        "slots" = slots,
        "engine" = table! { "run_as" = table! { "uid" = engine_user, "gid" = engine_user } },
        "tls" = tls(plan, "host-agent"),
        "etcd" = etcd(plan, "host-agent"),
        "s3" = s3(plan, keys),
        "telemetry" = telemetry(plan, 7510 + number),
    })
}

/// Memory each host hands out, in MiB.
fn memory_capacity_mib(hosts: u16) -> Result<i64, Failure> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| {
            Failure::new(
                Kind::Failed,
                "/proc/meminfo does not say how much memory there is",
            )
        })?;
    let share = total_kib / 1024 * MEMORY_SHARE_PERCENT / 100 / u64::from(hosts.max(1));
    i64::try_from(share.max(MEMORY_MIB_MIN)).map_err(|_| Failure::failed("this machine has too much memory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::plan::tests::plan;

    #[test]
    fn keys_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config")).unwrap();
        let plan = Plan {
            data_dir: directory.path().to_owned(),
            ..plan(&[])
        };
        let (first, second) = (s3_keys(&plan).unwrap(), s3_keys(&plan).unwrap());
        assert_eq!(first.secret_access_key, second.secret_access_key);
        assert_eq!(first.secret_access_key.len(), 48);
    }

    #[test]
    fn hosts_share_the_memory() {
        let (one, two) = (memory_capacity_mib(1).unwrap(), memory_capacity_mib(2).unwrap());
        assert!(one >= two && two >= 2048, "{one} {two}");
    }
}
