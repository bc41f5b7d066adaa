//! Making one fault after the other, and measuring how long what needed the lost part had to wait.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::image::v1::ListBaseImagesRequest;
use api::microvm::v1::TerminateMicrovmRequest;
use client::{Call, Context};
use nix::sys::signal::Signal;
use rpc::{CallBounds, Replicas, Role};
use serde::Serialize;

use super::check::Invariant;
use super::fleet::{BUILDER, EDGE, Fleet, HOST, MEMBER, Part, Process, S3, SCHEDULER};
use super::guard::{Guard, Undo, Undoing, firewall, set_wall_clock, wall_clock_ahead};
use super::load::{Load, ms};
use super::schedule::{Fault, Victim};
use super::trouble::Since;
use crate::chance::Chance;

/// How long a replica that others replace stands still: longer than any wait after which it is given up.
const STOP: Duration = Duration::from_secs(12);
/// The same for a host: its lease, the wait after it, and the wakes elsewhere.
const STOP_HOST: Duration = Duration::from_secs(35);
/// Most that the wall clock is stepped by, in seconds: less than any token lives.
const STEP_MAX_SECONDS: u64 = 120;
const SLOW: Duration = Duration::from_secs(15);
/// How S3 is slowed: it stands still for so long, then works for so long, over and over.
const SLOW_STILL: Duration = Duration::from_millis(400);
const SLOW_WORKS: Duration = Duration::from_millis(100);
const FULL: Duration = Duration::from_secs(15);
/// What a full disk has free beside the host's reserve, in bytes: guests that run may still write a little.
const FULL_FREE_BYTES: u64 = 256 << 20;
/// Longest wait for what needed the lost part.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Longest wait for every part to be well again after a fault.
const WELL_MAX: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);
/// By then the load has read what records say.
const LOOKED: Duration = Duration::from_secs(3);
/// A probing client leaves a silent replica for the next after this.
const PROBE: CallBounds = CallBounds {
    attempt: Duration::from_millis(500),
    total: Duration::from_millis(1500),
    retry: Duration::ZERO,
};
const FILL: &str = "chaos-fill";

/// One fault as it went.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Seconds since the run began.
    pub at_seconds: u64,
    pub fault: String,
    pub victim: String,
    /// What was waited for, and how long, in milliseconds; absent when it did not come in time.
    pub recovery: &'static str,
    pub recovery_ms: Option<u64>,
    /// From the fault's end until every part was well, in milliseconds; absent when one never was.
    pub well_ms: Option<u64>,
}

pub struct Storm<'a> {
    pub fleet: &'a Fleet,
    pub context: &'a Context,
    pub load: Arc<Load>,
    pub guard: Guard,
    pub began: Instant,
    /// The host that upkeep has drained and not taken back yet.
    pub drained: Mutex<Option<String>>,
}

impl Storm<'_> {
    /// Makes a fault, waits for what it took to come back, undoes it and waits until all is well.
    pub async fn fault(&self, fault: Fault, mut chance: Chance) -> anyhow::Result<Event> {
        let part = self.victim(fault, &mut chance).await?;
        let at = self.began.elapsed();
        let hosts = match fault {
            Fault::Kill(Victim::Host) | Fault::Stop(Victim::Host) | Fault::FullDisk | Fault::Lose => {
                vec![host_id(&part.name)]
            }
            _ => Vec::new(),
        };
        // Before the fault: no request may count as a healthy host's that it hits.
        match fault.is_upkeep() {
            true => self.load.trouble.begin_upkeep(fault.to_string()),
            false => self.load.trouble.begin(fault.to_string(), &hosts),
        }
        eprintln!("{:>5} s  {fault}: {}", at.as_secs(), part.name);
        let (recovery, took) = self.make(fault, &part, &hosts, chance).await?;
        let well = self.well().await;
        self.load.trouble.end();
        Ok(Event {
            at_seconds: at.as_secs(),
            fault: fault.to_string(),
            victim: part.name,
            recovery,
            recovery_ms: took.map(ms),
            well_ms: well.map(ms),
        })
    }

    /// A fault from its beginning to its end: what was waited for, and how long.
    async fn make(
        &self,
        fault: Fault,
        part: &Part,
        hosts: &[String],
        chance: Chance,
    ) -> anyhow::Result<(&'static str, Option<Duration>)> {
        let process = || part.process.with_context(|| format!("{} does not run", part.name));
        Ok(match fault {
            Fault::Kill(victim) => {
                self.wait_for(victim, hosts);
                process()?.signal(Signal::SIGKILL);
                self.recovered(victim, part).await
            }
            Fault::Stop(victim) => {
                let lasts = Instant::now() + if victim == Victim::Host { STOP_HOST } else { STOP };
                self.wait_for(victim, hosts);
                let _stopped = self.stop(process()?)?;
                let recovered = self.recovered(victim, part).await;
                tokio::time::sleep_until(lasts.into()).await;
                recovered
            }
            Fault::Cut(victim) => {
                let lasts = Instant::now() + STOP;
                let _cut = self.cut(process()?)?;
                let recovered = self.recovered(victim, part).await;
                tokio::time::sleep_until(lasts.into()).await;
                recovered
            }
            Fault::SlowS3 => self.slow(process()?).await?,
            Fault::FullDisk => self.full_disk(part).await?,
            Fault::Lose => self.lose(part, process()?, hosts).await?,
            Fault::Clock => self.step_clock(chance).await?,
            Fault::Rotate => ("every service and member", self.done(self.rotate().await)),
            Fault::Restart(_) => ("the process, well", self.done(self.restart(part, process()?).await)),
            Fault::Upgrade => ("all hosts", self.done(self.upgrade().await)),
        })
    }

    /// Steps the machine's wall clock, for as long as a process stands still.
    async fn step_clock(&self, mut chance: Chance) -> anyhow::Result<(&'static str, Option<Duration>)> {
        let ahead = wall_clock_ahead()?;
        let (by, back) = (Duration::from_secs(chance.within(2..STEP_MAX_SECONDS)), chance.within(0..2) == 1);
        let lasts = Instant::now() + STOP;
        let _right = self.guard.undoing(Undo::Clock { ahead })?;
        set_wall_clock(if back { ahead.saturating_sub(by) } else { ahead + by })?;
        let started = Instant::now();
        let recovered = ("a launch", self.launched().await.then(|| started.elapsed()));
        tokio::time::sleep_until(lasts.into()).await;
        Ok(recovered)
    }

    /// How long upkeep took that was done.
    fn done(&self, upkeep: anyhow::Result<Duration>) -> Option<Duration> {
        let broken = || upkeep.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        self.load.checker().check(Invariant::Upkeep, upkeep.is_ok(), broken);
        upkeep.ok()
    }

    /// Takes a host from the fleet as a machine goes: its host-agent answers nobody, its engines are gone, and it does not come back
    /// for longer than it takes others to go on with what it ran.
    async fn lose(
        &self,
        part: &Part,
        process: Process,
        hosts: &[String],
    ) -> anyhow::Result<(&'static str, Option<Duration>)> {
        let lasts = Instant::now() + STOP_HOST;
        let stopped = self.stop(process)?;
        // The host-agent stands still: it cannot say that they have ended.
        self.fleet.kill_engines(&part.name)?;
        let ids = hosts.iter().flat_map(|host| self.load.checker().on_host(host)).collect();
        self.load.trouble.wait_for(ids, Since::Now);
        let recovered = self.recovered(Victim::Host, part).await;
        tokio::time::sleep_until(lasts.into()).await;
        // A machine that comes back has another host-agent than the one that it went with.
        process.signal(Signal::SIGKILL);
        drop(stopped);
        // What had no recovery point ends when that one says so, or its host is given up: until then it is the loss's doing.
        for host in hosts {
            self.until(async || self.is_ready(host).await).await;
        }
        tokio::time::sleep(LOOKED).await;
        Ok(recovered)
    }

    async fn victim(&self, fault: Fault, chance: &mut Chance) -> anyhow::Result<Part> {
        let victim = match fault {
            Fault::Kill(victim) | Fault::Stop(victim) | Fault::Cut(victim) | Fault::Restart(victim) => victim,
            Fault::SlowS3 => Victim::S3,
            Fault::FullDisk | Fault::Lose | Fault::Upgrade => Victim::Host,
            Fault::Rotate => Victim::Member,
            Fault::Clock => return Ok(Part::machine()),
        };
        let mut parts = self.fleet.parts(match victim {
            Victim::Leader | Victim::Standby => SCHEDULER,
            Victim::Edge => EDGE,
            Victim::Builder => BUILDER,
            Victim::Member => MEMBER,
            Victim::Host => HOST,
            Victim::S3 => S3,
        })?;
        if matches!(victim, Victim::Leader | Victim::Standby) {
            let leader = self.leader().await?;
            let mut addresses = self.context.scheduler.split(',');
            let place = addresses.position(|address| address == leader).context("an unknown leader")?;
            anyhow::ensure!(place < parts.len(), "the leader is no part of this fleet");
            let leader = parts.remove(place);
            if victim == Victim::Leader {
                parts = vec![leader];
            }
        }
        let part = chance.one(&parts).cloned().with_context(|| format!("no {victim}"))?;
        anyhow::ensure!(part.process.is_some(), "{} does not run", part.name);
        Ok(part)
    }

    async fn leader(&self) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            match self.context.leader().await {
                Ok(leader) => return Ok(leader),
                // An election may be under way.
                Err(_) if started.elapsed() < RECOVERY_MAX => tokio::time::sleep(PAUSE).await,
                Err(status) => return Err(status).context("no scheduler leads"),
            }
        }
    }

    fn stop(&self, process: Process) -> anyhow::Result<Undoing> {
        let undoing = self.guard.undoing(Undo::Continue(process))?;
        process.signal(Signal::SIGSTOP);
        Ok(undoing)
    }

    /// Drops what the sockets of a process send and get.
    fn cut(&self, process: Process) -> anyhow::Result<Undoing> {
        let group = process.group().filter(|group| *group != 0).context("a group of its own")?;
        let table = format!("inet torpor_chaos_{}", std::process::id());
        let undoing = self.guard.undoing(Undo::Delete(table.clone()))?;
        let chain = |hook| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; policy accept; meta skgid {group} drop; }}"
            )
        };
        firewall(&format!("table {table} {{\n{}\n{}\n}}\n", chain("output"), chain("input")))?;
        Ok(undoing)
    }

    fn wait_for(&self, victim: Victim, hosts: &[String]) {
        if victim == Victim::Host {
            let ids = hosts.iter().flat_map(|host| self.load.checker().on_host(host)).collect();
            self.load.trouble.wait_for(ids, Since::Asked);
        }
    }

    /// How long what needs the lost part has to wait.
    async fn recovered(&self, victim: Victim, part: &Part) -> (&'static str, Option<Duration>) {
        let started = Instant::now();
        match victim {
            Victim::Leader | Victim::Standby | Victim::Member => {
                ("a launch", self.launched().await.then(|| started.elapsed()))
            }
            Victim::Edge => {
                let edges = self.first_edge(&part.name);
                let reached = self.until(async || self.reach(&edges).await).await;
                ("a connection", reached.then(|| started.elapsed()))
            }
            Victim::Builder => {
                let Ok(builders) = self.context.replicas(Role::ImageBuilder) else { return ("a call", None) };
                let answered = self.until(async || ask_builder(&builders).await).await;
                ("a call", answered.then(|| started.elapsed()))
            }
            Victim::Host => {
                let all = self.until(async || self.load.trouble.waited().0 == 0).await;
                // A host on which nothing was has nobody to wait for.
                ("its microVMs", all.then(|| self.load.trouble.waited().1.unwrap_or_default()))
            }
            Victim::S3 => ("", None),
        }
    }

    /// Tries until it succeeds; false when that takes too long.
    pub(super) async fn until(&self, mut attempt: impl AsyncFnMut() -> bool) -> bool {
        let started = Instant::now();
        while !attempt().await {
            if started.elapsed() > RECOVERY_MAX {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
    }

    /// Launches one microVM, however often it has to be asked for; false when that takes too long.
    async fn launched(&self) -> bool {
        let Ok(schedulers) = self.context.replicas(Role::Scheduler) else { return false };
        // One token: an attempt whose answer is lost may have launched it.
        let client_token = uuid::Uuid::new_v4().to_string();
        self.until(async || self.launch(&schedulers, &client_token).await).await
    }

    /// Whether a launch is taken now. What was launched is ended again.
    async fn launch(&self, schedulers: &Replicas, client_token: &str) -> bool {
        let request = self.load.launch_request(client_token.to_owned());
        let Ok(answer) = request.send(schedulers, PROBE).await else { return false };
        let id = answer.microvm.unwrap_or_default().microvm_id;
        let mut checker = self.load.checker();
        checker.launched(&id);
        checker.ending(&id);
        drop(checker);
        let load = Arc::clone(&self.load);
        tokio::spawn(async move {
            let bounds = CallBounds { total: RECOVERY_MAX, attempt: RECOVERY_MAX, retry: RECOVERY_MAX };
            // What is left is ended with the run.
            let _ = TerminateMicrovmRequest { microvm_id: id }.send(&load.schedulers, bounds).await;
        });
        true
    }

    /// The edges, the lost one first.
    fn first_edge(&self, lost: &str) -> String {
        let mut edges: Vec<&str> = self.context.edge.split(',').collect();
        let number =
            lost.strip_prefix(EDGE).and_then(|rest| rest.strip_prefix('-')?.parse().ok()).unwrap_or(1_usize);
        let place = number.saturating_sub(1).min(edges.len().saturating_sub(1));
        edges.rotate_left(place);
        edges.join(",")
    }

    async fn reach(&self, edges: &str) -> bool {
        let host = format!("{}.{}", uuid::Uuid::nil(), self.context.endpoint_domain);
        let Ok(endpoints) = client::EndpointClient::new(&self.context.ca) else { return false };
        endpoints.open(edges, &host, client::HttpVersion::Http1).await.is_ok()
    }

    async fn slow(&self, process: Process) -> anyhow::Result<(&'static str, Option<Duration>)> {
        let ends = Instant::now() + SLOW;
        let slowed = self.stop(process)?;
        while Instant::now() < ends {
            tokio::time::sleep(SLOW_STILL).await;
            process.signal(Signal::SIGCONT);
            tokio::time::sleep(SLOW_WORKS).await;
            process.signal(Signal::SIGSTOP);
        }
        drop(slowed);
        Ok(("", None))
    }

    async fn full_disk(&self, part: &Part) -> anyhow::Result<(&'static str, Option<Duration>)> {
        let number = part.name.rsplit('-').next().and_then(|number| number.parse().ok());
        let disk = number.and_then(|number| self.fleet.disk(number)).context("the host's disk")?;
        let ends = Instant::now() + FULL;
        let _filled = self.fill(&disk.join(FILL))?;
        let started = Instant::now();
        let launched = self.launched().await.then(|| started.elapsed());
        tokio::time::sleep_until(ends.into()).await;
        Ok(("a launch", launched))
    }

    fn fill(&self, file: &PathBuf) -> anyhow::Result<Undoing> {
        let undoing = self.guard.undoing(Undo::Remove(file.clone()))?;
        let directory = file.parent().context("a file in a directory")?;
        let stats = nix::sys::statvfs::statvfs(directory)?;
        let free = stats.blocks_available().saturating_mul(stats.fragment_size());
        let bytes = i64::try_from(free.saturating_sub(FULL_FREE_BYTES))?;
        let file = std::fs::File::create(file)?;
        if bytes > 0 {
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes)
                .context("fill the disk")?;
        }
        Ok(undoing)
    }

    /// Waits until the supervisor finds every part well.
    pub(super) async fn well(&self) -> Option<Duration> {
        let started = Instant::now();
        loop {
            match self.fleet.sick() {
                Ok(sick) if sick.is_empty() => return Some(started.elapsed()),
                _ if started.elapsed() > WELL_MAX => return None,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

async fn ask_builder(builders: &Replicas) -> bool {
    let request = ListBaseImagesRequest { page_size: 1, ..ListBaseImagesRequest::default() };
    request.send(builders, PROBE).await.is_ok()
}

/// The host that a host-agent of `torpor up` is.
pub(super) fn host_id(component: &str) -> String {
    component.replacen(HOST, "host", 1)
}
