//! What every microVM of this host shares: the engine, the slots, the stores,
//! the budget. Holds no microVM itself (`microvms` does).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backoff::Backoff;
use clock::{Clock, Steady};
use tokio::sync::watch;

use crate::adapters::files::DataDirectory;
use crate::adapters::image_snapshots::ImageSnapshots;
use crate::adapters::lease::Standing;
use crate::config::Config;
use crate::disk::Disk;
use crate::domain::HostError;
use crate::domain::capacity::{Capacity, Reservation};
use crate::engines_ahead::EnginesAhead;
use crate::metrics::Metrics;
use crate::wakes::Wakes;

/// How often a start that waits for a slot asks waiting engines for theirs.
const ROOM_POLL: Duration = Duration::from_millis(50);

/// The guest bundle this host boots with.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its version, recorded in every snapshot.
    pub version: String,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub cmdline: String,
}

/// What every machine of this host is started with.
#[derive(Debug, Clone)]
pub struct Template {
    pub bundle: Bundle,
    /// User and group of engine processes.
    pub run_as: Option<(u32, u32)>,
}

impl Template {
    /// What the engine is told about one machine of `(virtual CPUs, memory in MiB)`.
    pub fn machine(
        &self,
        name: &str,
        size: (u32, u32),
        netns: &str,
        disk: PathBuf,
        run_dir: PathBuf,
    ) -> vmm::MachineSpec {
        vmm::MachineSpec {
            name: name.to_owned(),
            vcpu_count: size.0.max(1),
            memory_mib: size.1,
            kernel: self.bundle.kernel.clone(),
            initramfs: self.bundle.initramfs.clone(),
            cmdline: self.bundle.cmdline.clone(),
            disk,
            network: Some(vmm::NetworkSpec {
                netns: Some(netns.to_owned()),
                tap: slot::TAP.to_owned(),
                mac: slot::GUEST_MAC,
            }),
            run_dir,
            run_as: self.run_as,
        }
    }
}

/// Shared by every task of the agent.
pub struct Host {
    pub config: Config,
    pub data: DataDirectory,
    pub engine: Arc<dyn vmm::Engine>,
    pub engine_description: vmm::EngineDescription,
    pub template: Template,
    pub pool: slot::Pool,
    pub store: object_store::Store,
    pub image_snapshots: ImageSnapshots,
    pub capacity: Capacity,
    pub disk: Arc<Disk>,
    /// Engines that wait for a microVM.
    pub ahead: EnginesAhead,
    /// Whose turn it is to be woken.
    pub wakes: Arc<Wakes>,
    pub metrics: Metrics,
    pub clock: Clock,
    /// What lives and leases go by.
    pub steady: Steady,
    /// Rises with every change of any microVM.
    pub changes: watch::Sender<u64>,
    /// Whether it has its lease, and may serve.
    pub standing: watch::Sender<Standing>,
    /// Zero of [`Host::monotonic_ms`].
    pub started: Instant,
}

impl Host {
    /// Tells everyone who watches that a microVM has changed.
    pub fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    /// True while others may run what is held here.
    pub fn is_fenced(&self) -> bool {
        self.standing.borrow().is_fenced()
    }

    /// Returns when nobody else can have been given what is held here.
    pub async fn open(&self) {
        // Fails when the host is gone, and whoever waits with it.
        let _ = self.standing.subscribe().wait_for(|standing| !standing.is_fenced()).await;
    }

    /// Refuses a launch or wake that may be older than the lease that the host has now; 0 names none.
    pub fn check_lease(&self, sent_under: i64) -> Result<(), HostError> {
        let counts = sent_under == 0 || self.standing.borrow().counts(sent_under);
        counts.then_some(()).ok_or(HostError::LeaseChanged)
    }

    /// Milliseconds since the agent started, on a clock that only rises.
    pub fn monotonic_ms(&self) -> u64 {
        let since = self.clock.instant().duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since 1970, on a clock that passes as time does when somebody sets the wall clock.
    pub fn now_ms(&self) -> u64 {
        unix_ms(self.steady.now())
    }

    /// Milliseconds that the machine has been up: the same for every agent of a boot.
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.clock.uptime().as_millis()).unwrap_or(u64::MAX)
    }

    /// Baseline memory accounted for a guest of `memory_mib`, in MiB.
    pub fn baseline_mib(&self, memory_mib: u32) -> u32 {
        (memory_mib / self.config.memory_peak_factor).max(1)
    }

    /// Hands out the baseline of a guest of `memory_mib`; engines that only wait make room for it. One that is just being
    /// made cannot yet: it goes with the next sweep.
    pub async fn reserve_memory(&self, memory_mib: u32) -> Result<Reservation, HostError> {
        let reserved = self.capacity.reserve(u64::from(self.baseline_mib(memory_mib)));
        let reserved = reserved
            .map_err(|free| HostError::Capacity(format!("the host has {free} MiB of guest memory left")))?;
        self.ahead.make_room(&self.capacity).await;
        Ok(reserved)
    }

    /// Takes a slot; engines that only wait make room for it, also one that is just being made.
    pub async fn take_slot(&self, egress: slot::Egress) -> Result<slot::Slot, HostError> {
        let take = self.pool.take(egress);
        tokio::pin!(take);
        loop {
            if self.pool.is_exhausted() {
                self.ahead.give_one_back().await;
            }
            tokio::select! {
                biased;
                taken = &mut take => {
                    return taken.map_err(|error| HostError::Capacity(HostError::chain(&error).0));
                }
                () = tokio::time::sleep(ROOM_POLL) => {}
            }
        }
    }

    pub fn bucket(&self) -> &str {
        &self.config.snapshot_bucket
    }

    /// Pauses between attempts as the settings have them, none longer than `longest`.
    pub fn retry_pauses(&self, longest: Duration) -> Backoff {
        let timeouts = &self.config.timeouts;
        Backoff::new(
            Duration::from_millis(timeouts.retry_min_ms),
            Duration::from_millis(timeouts.retry_max_ms).min(longest),
        )
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 as the wire has them.
pub fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    }
}
