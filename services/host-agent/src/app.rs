//! The composition root: binds sockets, puts what an earlier agent left into a true state, starts everything,
//! and on SIGTERM stops without touching a microVM, so that the next agent finds them as they are.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::common::v1::Architecture;
use api::host::v1::HostSpec;
use api::hostagent::v1::host_agent_service_server::HostAgentServiceServer;
use clock::{Clock, Steady};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::adapters::clock_mark;
use crate::adapters::files::DataDirectory;
use crate::adapters::image_snapshots::ImageSnapshots;
use crate::adapters::lease::{self, Standing};
use crate::adapters::leftovers;
use crate::bake::{self, Bakes};
use crate::config::Config;
use crate::disk::{self, Disk};
use crate::domain::capacity::Capacity;
use crate::engines_ahead::{self, EnginesAhead};
use crate::host::{Bundle, Host, Template};
use crate::metrics::Metrics;
use crate::microvm::{self, First, Found, Recovered};
use crate::microvms::Microvms;
use crate::reporter::{INTERVAL_DEFAULT, Reporter, Signals};
use crate::server::host_agent::HostAgent;
use crate::server::tunnel::Tunnels;
use crate::vouches::{LeaseSeat, Vouches};
use crate::wakes::Wakes;

/// How long transitions under way may take to settle after SIGTERM. What has
/// not settled by then is settled by the next start.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const SETTLE_POLL: Duration = Duration::from_millis(20);
/// How long answers that apps owe may take after SIGTERM. Edges hold what comes meanwhile.
const TUNNELS_TIMEOUT: Duration = tunnel::ANSWER_WAIT.saturating_add(Duration::from_secs(1));

/// A host-agent with its sockets bound.
pub struct App {
    host: Arc<Host>,
    microvms: Arc<Microvms>,
    bakes: Arc<Bakes>,
    records: records::Store,
    identity: Arc<rpc::TlsIdentity>,
    grpc: rpc::BoundServer,
    tunnels: tunnel::Server,
}

impl App {
    /// Binds, opens, loads the journals and recovers; serves nothing yet.
    pub async fn build(config: Config, telemetry: &telemetry::Guard) -> anyhow::Result<Self> {
        rpc::install_crypto_provider();
        let identity = rpc::TlsIdentity::load(&config.tls.ca, &config.tls.cert, &config.tls.key)?;
        identity.register(&telemetry.registry());
        let grpc = rpc::ServerBuilder::bind(&config.listen.to_string(), &identity).await?;
        let tunnels = tunnel::Server::bind(config.tunnel_listen, &identity, tunnel::Limits::default())
            .await
            .with_context(|| format!("tunnel_listen {}", config.tunnel_listen))?;
        let records = records::Store::connect(&config.etcd).await?;
        let store = object_store(&config)?;
        let data = DataDirectory::open(&config.data_dir)?;
        let template = Template {
            bundle: read_bundle(&config.guest_bundle)?,
            run_as: config.engine.run_as.map(|ids| (ids.uid, ids.gid)),
        };
        let settings =
            vmm::qemu::QemuSettings { binary: (&config.engine.binary).into(), ..Default::default() };
        let engine: Arc<dyn vmm::Engine> = Arc::new(vmm::qemu::Qemu::new(settings).await?);
        let found = load_journals(&config, &data, engine.as_ref(), &template).await?;
        let in_use: Vec<String> = found.iter().filter_map(|found| found.slot(&config.slots)).collect();
        let pool = slot::Pool::start(config.slots.clone(), &in_use).await.context("slots")?;
        let clock = Clock::system();
        let image_snapshots = ImageSnapshots::open(
            &data,
            store.clone(),
            &config.snapshot_bucket,
            config.limits.image_cache_bytes,
            clock.clone(),
        )?;
        let capacity = Capacity::new(config.memory_capacity_mib);
        let host = Arc::new(Host {
            disk: Disk::open(&data, config.disk, capacity.clone()),
            capacity,
            ahead: EnginesAhead::new(clock.clone()),
            wakes: Wakes::new(config.limits.wakes_at_once, config.limits.wakes_waiting),
            engine_description: engine.describe(),
            metrics: Metrics::register(&telemetry.registry()),
            changes: watch::Sender::new(0),
            standing: watch::Sender::new(Standing::default()),
            started: clock.instant(),
            steady: Steady::new(clock.clone(), clock_mark::read(&data).as_ref()),
            clock,
            config,
            data,
            engine,
            template,
            pool,
            store,
            image_snapshots,
        });
        let microvms = Microvms::open(Arc::clone(&host));
        recover(&host, &microvms, found).await?;
        let bakes = Bakes::new(Arc::clone(&host));
        Ok(Self { host, microvms, bakes, records, identity, grpc, tunnels })
    }

    /// Serves until SIGTERM or SIGINT.
    pub async fn run(self) -> anyhow::Result<()> {
        let spec = host_spec(&self.host, self.grpc.local_addr(), self.tunnels.local_address()?);
        tracing::info!(
            host = spec.host_id,
            grpc = spec.grpc_address,
            tunnel = spec.tunnel_address,
            engine = self.host.engine_description.name,
            version = self.host.engine_description.version,
            "host-agent up"
        );
        let ttl = Duration::from_millis(self.host.config.timeouts.lease_ttl_ms);
        let standing = self.host.standing.clone();
        let seat = LeaseSeat::default();
        let vouches = Vouches::new(
            (&spec.host_id, &self.host.clock),
            (&standing, &seat, ttl),
            (&self.identity, &self.host.config.schedulers),
        );
        let vouches = vouches.map_err(|status| anyhow::anyhow!("schedulers: {}", status.message()))?;
        let vouches = tokio::spawn(vouches.keep());
        let lease = tokio::spawn(lease::keep(self.records, spec.clone(), ttl, (standing, seat)));
        let schedulers =
            rpc::Replicas::new(&self.identity, &self.host.config.schedulers, rpc::Role::Scheduler)
                .map_err(|status| anyhow::anyhow!("schedulers: {}", status.message()))?;
        let signals = Signals {
            clock: self.host.clock.clone(),
            changes: self.host.changes.clone(),
            standing: self.host.standing.clone(),
            pauses: self.host.retry_pauses(INTERVAL_DEFAULT),
            vouchers: self.host.config.schedulers.clone(),
        };
        let reporter = Reporter::new(signals, Arc::clone(&self.microvms), spec, schedulers);
        let reporter = tokio::spawn(reporter.run());
        let janitor = tokio::spawn(Arc::clone(&self.microvms).keep_tidy());
        let marks = tokio::spawn(clock_mark::keep(Arc::clone(&self.host)));
        let filler = tokio::spawn(engines_ahead::keep_filled(Arc::clone(&self.host)));
        let room = tokio::spawn(disk::keep_room(Arc::clone(&self.host)));
        let shutdown = CancellationToken::new();
        let tunnels = Tunnels::new(Arc::clone(&self.host), Arc::clone(&self.microvms), shutdown.clone());
        let mut tunnels = tokio::spawn(
            self.tunnels
                .serve(move |request, responder| tunnels.clone().serve(request, responder), shutdown.clone()),
        );
        let service = HostAgent::new(Arc::clone(&self.host), Arc::clone(&self.microvms), self.bakes);
        let routes = Routes::new(HostAgentServiceServer::new(service));
        let grpc = self.grpc.serve(routes, shutdown.clone());
        let stopping = async {
            wait_for_signal().await?;
            tracing::info!("stopping; microVMs stay as they are");
            shutdown.cancel();
            anyhow::Ok(())
        };
        let (served, stopped) = tokio::join!(grpc, stopping);
        // Requests under way have their answers; then edges open other tunnels, to the next agent.
        let (_, ()) =
            tokio::join!(tokio::time::timeout(TUNNELS_TIMEOUT, &mut tunnels), settle(&self.microvms));
        tunnels.abort();
        self.microvms.save_meters().await;
        for task in [vouches, lease, reporter, janitor, marks, filler, room] {
            task.abort();
        }
        self.host.ahead.close().await;
        self.host.pool.shutdown(true).await.context("slots")?;
        stopped?;
        Ok(served?)
    }
}

async fn load_journals(
    config: &Config,
    data: &DataDirectory,
    engine: &dyn vmm::Engine,
    template: &Template,
) -> anyhow::Result<Vec<Found>> {
    let found = microvm::load_journals(data, engine, template, &config.slots).await?;
    let keep: Vec<u32> = found.iter().filter_map(Found::pid).collect();
    let reaped = leftovers::reap(data.root(), &engine.describe().name, &keep).await;
    tracing::info!(microvms = found.len(), kept = keep.len(), reaped, "journals loaded");
    Ok(found)
}

async fn recover(host: &Arc<Host>, microvms: &Arc<Microvms>, found: Vec<Found>) -> anyhow::Result<()> {
    let remover = Arc::clone(host);
    tokio::spawn(async move { bake::remove_leftovers(&remover).await });
    for one in found {
        match microvm::recover(host, one).await {
            Ok(Recovered::Driver(driver, handle)) => microvms.adopt(*driver, handle, First::Settled),
            Ok(Recovered::WentBack(driver, handle)) => microvms.adopt(*driver, handle, First::WentBack),
            Ok(Recovered::Ended(id, tombstone)) => microvms.remember_end(id.to_string(), tombstone),
            Ok(Recovered::Nothing) => {}
            Err(error) => tracing::error!(%error, "a microVM could not be recovered"),
        }
    }
    Ok(())
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn settle(microvms: &Arc<Microvms>) {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    while !microvms.is_settled() && Instant::now() < deadline {
        tokio::time::sleep(SETTLE_POLL).await;
    }
}

fn object_store(config: &Config) -> anyhow::Result<object_store::Store> {
    let s3 = &config.s3;
    Ok(object_store::Store::connect(&object_store::Config {
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        access_key_id: s3.access_key_id.clone(),
        secret_access_key: s3.secret_access_key.as_ref().map(|secret| secret.expose().to_owned()),
        path_style: s3.path_style,
        ..Default::default()
    })?)
}

fn host_spec(host: &Host, grpc: std::net::SocketAddr, tunnel: std::net::SocketAddr) -> HostSpec {
    let config = &host.config;
    let or = |configured: &str, bound: std::net::SocketAddr| {
        if configured.is_empty() { bound.to_string() } else { configured.to_owned() }
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => Architecture::X8664,
        "aarch64" => Architecture::Arm64,
        _ => Architecture::Unspecified,
    };
    HostSpec {
        host_id: config.host_id.clone(),
        grpc_address: or(&config.advertise, grpc),
        tunnel_address: or(&config.advertise_tunnel, tunnel),
        architecture: architecture.into(),
        chipset: chipset(),
        engines: vec![host.engine_description.name.clone()],
        platform_fingerprint: host.engine_description.platform_fingerprint.clone(),
        memory_capacity_mib: config.memory_capacity_mib,
        slot_capacity: config.slots.total,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        lease: 0,
    }
}

/// The vendor where the CPU itself runs guests, else "EMULATED".
fn chipset() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| {
        cpuinfo.lines().any(|line| line.starts_with("flags") && line.split_whitespace().any(|f| f == flag))
    };
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    match (kvm && has("vmx"), kvm && has("svm")) {
        (true, _) => "INTEL".to_owned(),
        (_, true) => "AMD".to_owned(),
        _ => "EMULATED".to_owned(),
    }
}

#[derive(serde::Deserialize)]
struct BundleManifest {
    version: String,
    kernel: String,
    initramfs: String,
    cmdline: String,
}

fn read_bundle(directory: &Path) -> anyhow::Result<Bundle> {
    let path = directory.join("manifest.json");
    let text = std::fs::read(&path).with_context(|| {
        format!("guest_bundle: cannot read {}; make one with deploy/guest-bundle", path.display())
    })?;
    let manifest: BundleManifest =
        serde_json::from_slice(&text).with_context(|| format!("guest_bundle: {}", path.display()))?;
    let bundle = Bundle {
        version: manifest.version,
        kernel: directory.join(manifest.kernel),
        initramfs: directory.join(manifest.initramfs),
        cmdline: manifest.cmdline,
    };
    for file in [&bundle.kernel, &bundle.initramfs] {
        anyhow::ensure!(file.is_file(), "guest_bundle: {} is missing", file.display());
    }
    Ok(bundle)
}
