//! Simulated hosts: host-agents without machines. Each registers and reports to the scheduler as a real one
//! does, with the fleet's own certificates, and answers Bake, Launch, Suspend, Resume and Terminate at once
//! from a table in memory. Nothing runs on them: they are for measuring what is in front of hosts. Tunnels
//! they leave to whoever starts them.
//!
//! Their engine is "sim", which no real host has: what they baked is placed on them only. Their room is far
//! more than any real host's, so that a bake goes to them and not to a real host beside them.

mod report;
mod service;
mod table;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use api::common::v1::Architecture;
use api::host::v1::{HostSpec, HostState, ListHostsRequest, UndrainHostRequest};
use api::hostagent::v1::host_agent_service_server::HostAgentServiceServer;
use client::Context;
use rpc::{ServerBuilder, TlsIdentity};
use settings::{EtcdSettings, TlsSettings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use report::Reporter;
use service::HostAgent;
use table::Table;

use crate::image::{self, Draft};

/// Engine of the simulated hosts' snapshots.
pub const ENGINE: &str = "sim";
pub const SLOTS: u32 = 20_000;
/// Memory one simulated host hands out, in MiB: enough for as many of the smallest.
const MEMORY_MIB: u64 = 512 * SLOTS as u64;
/// Start of every simulated host's id; the same in each run, so that a leader
/// remembers a handful of lost hosts and not more with every run.
const ID_PREFIX: &str = "loadtest-";
/// Longest time without a keepalive before a simulated host counts as gone.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// Longest wait for the scheduler to take the hosts in.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// The manifest keys of the snapshots in all hosts' caches. Shared: a host that
/// launches an image for the second time has it in its cache.
type Cache = Arc<Mutex<BTreeSet<String>>>;

/// Simulated hosts that serve until they are stopped.
pub struct Hosts {
    tables: Vec<Arc<Table>>,
    leases: Vec<records::Lease>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// What a host-agent of this fleet is given: who it is, and where the others are.
struct Wiring {
    identity: Arc<TlsIdentity>,
    records: records::Store,
}

/// Does `work` in front of simulated hosts with an image for them, and removes image and hosts then. Hosts and tunnels as
/// [`Hosts::start`] has them.
pub async fn with_image<T>(
    context: &Context,
    data_dir: &Path,
    (count, tunnels): (u16, Option<&str>),
    work: impl AsyncFnOnce(&Hosts, &Draft) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let base = image::any_base(context).await?;
    let hosts = Hosts::start(context, data_dir, count, tunnels).await?;
    let worked = match Draft::never_booted(context, &base).await {
        Ok(draft) => draft.removed_after(context, work(&hosts, &draft)).await,
        Err(error) => Err(error),
    };
    let stopped = hosts.stop().await;
    let result = worked?;
    stopped?;
    Ok(result)
}

impl Hosts {
    /// Starts `count` hosts on loopback and waits until the scheduler takes them.
    /// Tunnels to their microVMs go to `tunnels`, "address:port"; without it nobody answers there.
    pub async fn start(
        context: &Context,
        data_dir: &Path,
        count: u16,
        tunnels: Option<&str>,
    ) -> anyhow::Result<Self> {
        ensure_alone(context).await?;
        let cache = Cache::default();
        let mut hosts = Self {
            tables: Vec::new(),
            leases: Vec::new(),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        let mut started = Ok(());
        for number in 1..=count {
            started = hosts.add(context, data_dir, number, &cache, tunnels).await;
            if started.is_err() {
                break;
            }
        }
        let ready = match started {
            Ok(()) => wait_ready(context, count).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ready {
            hosts.stop().await?;
            return Err(error);
        }
        Ok(hosts)
    }

    async fn add(
        &mut self,
        context: &Context,
        data_dir: &Path,
        number: u16,
        cache: &Cache,
        tunnels: Option<&str>,
    ) -> anyhow::Result<()> {
        let wiring = Wiring::load(data_dir, number).await?;
        let server = ServerBuilder::bind("127.0.0.1:0", &wiring.identity).await?;
        let address = server.local_addr().to_string();
        let spec = spec(number, &address, tunnels.unwrap_or(&address));
        let table = Arc::new(Table::new(cache.clone()));
        let routes = Routes::new(HostAgentServiceServer::new(HostAgent::new(table.clone())));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            if let Err(error) = server.serve(routes, stop).await {
                eprintln!("a simulated host stopped serving: {error}");
            }
        });
        let lease = wiring.records.lease(LEASE_TTL).await.context("etcd")?;
        let key = format!("hosts/{}", spec.host_id);
        let record = prost::Message::encode_to_vec(&spec);
        let put = wiring.records.put_leased(&key, record, &lease).await;
        self.leases.push(lease);
        put.context("record a host in etcd")?;
        let leader = context.settled().await.context("the scheduler that leads")?.scheduler;
        let reporter = Reporter::new(&wiring.identity, &leader, spec, table.clone())?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = reporter.run() => {}
                () = stop.cancelled() => {}
            }
        });
        self.tables.push(table);
        Ok(())
    }

    /// MicroVMs launched so far.
    pub fn launched(&self) -> u64 {
        self.tables.iter().map(|table| table.launched()).sum()
    }

    /// Ends the hosts: the scheduler knows them as lost from then on.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        for lease in &self.leases {
            lease.revoke().await.context("give up a host's lease")?;
        }
        Ok(())
    }
}

impl Wiring {
    async fn load(data_dir: &Path, number: u16) -> anyhow::Result<Self> {
        let tls = certificate(data_dir, number).await?;
        let identity =
            TlsIdentity::load(&tls.ca, &tls.cert, &tls.key).context("a simulated host's identity")?;
        let etcd = EtcdSettings { tls: Some(tls), ..etcd(data_dir)? };
        Ok(Self { identity, records: records::Store::connect(&etcd).await.context("etcd")? })
    }
}

/// The files of a simulated host's own certificate. The fleet makes it, as for any host that is not one of its own.
pub async fn certificate(data_dir: &Path, number: u16) -> anyhow::Result<TlsSettings> {
    let torpor = data_dir.join("bin/torpor");
    let host = format!("{ID_PREFIX}{number}");
    let issued = tokio::process::Command::new(&torpor)
        .args(["certs", "issue", &host, "-o", "json", "--data-dir"])
        .arg(data_dir)
        .output()
        .await
        .with_context(|| torpor.display().to_string())?;
    let said = String::from_utf8_lossy(&issued.stderr);
    ensure!(issued.status.success(), "no certificate for {host}; run beside the fleet, as root: {said}");
    serde_json::from_slice(&issued.stdout).context("torpor certs issue")
}

/// Where the fleet's etcd is: clients are not told, its scheduler is.
pub fn etcd(data_dir: &Path) -> anyhow::Result<EtcdSettings> {
    #[derive(serde::Deserialize)]
    struct Scheduler {
        etcd: EtcdSettings,
    }
    let path = data_dir.join("config/scheduler.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let settings: Scheduler = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(settings.etcd)
}

fn spec(number: u16, address: &str, tunnel_address: &str) -> HostSpec {
    let architecture = match cfg!(target_arch = "aarch64") {
        true => Architecture::Arm64,
        false => Architecture::X8664,
    };
    HostSpec {
        host_id: format!("{ID_PREFIX}{number}"),
        grpc_address: address.to_owned(),
        tunnel_address: tunnel_address.to_owned(),
        architecture: architecture.into(),
        chipset: "EMULATED".to_owned(),
        engines: vec![ENGINE.to_owned()],
        platform_fingerprint: "simulated".to_owned(),
        memory_capacity_mib: MEMORY_MIB,
        slot_capacity: SLOTS,
        agent_version: format!("loadtest {}", env!("CARGO_PKG_VERSION")),
        lease: 0,
    }
}

/// Id and state of the simulated hosts that the scheduler knows.
async fn known(context: &Context) -> anyhow::Result<Vec<(String, HostState)>> {
    let listed = context.call(ListHostsRequest::default()).await.context("list the hosts")?;
    let hosts = listed.hosts.into_iter().filter_map(|host| {
        let id = host.spec.as_ref()?.host_id.clone();
        id.starts_with(ID_PREFIX).then(|| (id, host.state()))
    });
    Ok(hosts.collect())
}

async fn ensure_alone(context: &Context) -> anyhow::Result<()> {
    for (id, state) in known(context).await? {
        ensure!(
            state == HostState::Lost,
            "host {id} is there: another load test runs, or one was killed less than {LEASE_TTL:?} ago"
        );
    }
    Ok(())
}

async fn wait_ready(context: &Context, count: u16) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let mut ready = 0;
        for (id, state) in known(context).await? {
            match state {
                HostState::Ready => ready += 1,
                // A fleet that was stopped during an earlier run drained them.
                HostState::Draining | HostState::Drained => {
                    context.call(UndrainHostRequest { host_id: id }).await.context("undrain a host")?;
                }
                HostState::Refused | HostState::Lost | HostState::Unspecified => {}
            }
        }
        if ready >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{ready} of {count} simulated hosts are ready after {READY_TIMEOUT:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
