//! One seed: a world is made, lives, is hurt, heals, and is looked at.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::common::v1::Resources;
use api::image::v1::{
    Image, ImageConfiguration, ImageState, ImageVersion, SnapshotRef, VersionState, VersionStatus,
};
use prost::Message as _;
use records::Store;
use rpc::Role;
use scheduler::adapters::agents::Agents;
use scheduler::app::Replica;
use scheduler::config::{Config, Timeouts};
use scheduler::metrics::Metrics;
use scheduler::term::Context;
use scheduler::vouches::Vouches;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agent::Agent;
use super::checker::Broken;
use super::clients::Client;
use super::etcd::{Connection, expire_leases};
use super::net::dialer;
use super::plan::{Due, FAULTS, Fault, Plan};
use super::world::{Node, Process, Shared, World, lock};
use super::{BASELINE_MIB, ENGINE, ROOT};
use crate::chance::{next_id, seed_ids};

/// Time in which a healed world comes to rest.
const QUIET: Duration = Duration::from_secs(120);
/// How long a world is watched after it has healed, at the least: until nothing is under way any more that was lost before.
const UNDER_WAY: Duration = Duration::from_secs(25);
/// How often it is looked whether a healed world is at rest.
const REST_LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether anything must be started again, or is broken.
const LOOK: Duration = Duration::from_millis(250);

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Told {
    pub digest: u64,
    pub broken: Option<Broken>,
    pub lines: Vec<String>,
    pub calls: u64,
    pub served: u64,
    pub suspends: u64,
    pub launches: u64,
}

/// Lets a world live by its plan.
pub fn run(plan: &Plan, readable: bool) -> anyhow::Result<Told> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let told = runtime.block_on(async {
        seed_ids(plan.seed);
        let world = World::new(plan.clone(), readable);
        live(&world).await?;
        let told = {
            let (digest, lines) = world.trace();
            let checker = lock(&world.checker);
            Told {
                digest,
                broken: checker.broken.clone(),
                lines,
                calls: checker.calls,
                served: checker.served,
                suspends: checker.suspends,
                launches: checker.launches,
            }
        };
        world.end();
        anyhow::Ok(told)
    });
    drop(runtime);
    told
}

async fn live(world: &Shared) -> anyhow::Result<()> {
    set_image(world);
    tokio::spawn(expire_leases(Arc::clone(world)));
    for index in 0..world.plan.schedulers {
        start(world, Node::Scheduler(index));
    }
    for index in 0..world.plan.hosts {
        start(world, Node::Host(index));
    }
    tokio::spawn(supervise(Arc::clone(world)));
    for index in 0..world.plan.clients {
        tokio::spawn(Client::new(world, u64::try_from(index)?)?.run());
    }
    for due in world.plan.faults.clone() {
        until(world, due.at).await;
        if is_broken(world) {
            return Ok(());
        }
        inject(world, due)?;
    }
    until(world, FAULTS).await;
    heal(world);
    come_to_rest(world).await;
    if !is_broken(world) {
        Client::new(world, 99)?.probe().await;
    }
    Ok(())
}

/// Watches a healed world until it is at rest; some worlds for longer, because what is at rest must stay so.
async fn come_to_rest(world: &Shared) {
    let end = FAULTS + QUIET;
    let mut next = if world.plan.lingers { end } else { FAULTS + UNDER_WAY };
    loop {
        until(world, next).await;
        if is_broken(world) {
            return;
        }
        match world.unrest() {
            None => return,
            Some(Broken { invariant, story }) if next >= end => world.broken(invariant, story),
            Some(_) => next = (next + REST_LOOK).min(end),
        }
    }
}

fn is_broken(world: &Shared) -> bool {
    lock(&world.checker).broken.is_some()
}

/// Waits until a time of the world, or until something is broken.
async fn until(world: &Shared, time: Duration) {
    while world.began.elapsed() < time && !is_broken(world) {
        tokio::time::sleep_until((Instant::now() + LOOK).min(world.began + time)).await;
    }
}

fn start(world: &Shared, node: Node) {
    match node {
        Node::Scheduler(_) => start_scheduler(world, node),
        Node::Host(index) if !world.machines[index].is_gone() => Agent::start(world, index),
        Node::Host(_) | Node::Etcd | Node::S3 | Node::Clients => {}
    }
}

fn start_scheduler(world: &Shared, node: Node) {
    let process = Process::new(node);
    world.tell(node, "starts");
    let config = Config {
        listen: node.address(),
        lease_seconds: 3,
        heartbeat_interval_ms: 2_000,
        host_lost_grace_seconds: 10,
        fence_grace_seconds: 4,
        retention_seconds: 45,
        orphan_sweep_seconds: 15,
        orphan_age_seconds: 30,
        timeouts: Timeouts {
            launch_seconds: 20,
            suspend_seconds: 15,
            resume_seconds: 20,
            terminate_seconds: 10,
        },
        ..Config::default()
    };
    let context = Context {
        config: Arc::new(config),
        clock: world.clock(node),
        vouches: Arc::new(Vouches::new(world.clock(node), node.address())),
        store: Store::over(Arc::new(Connection::new(world, &process)), ROOT),
        agents: Arc::new(Agents::new(dialer(world, &process, Role::Scheduler))),
        metrics: Metrics::register(&Mutex::default()),
        new_id: next_id,
    };
    let replica = Replica::new(context, node.address());
    world.serve(&process, replica.routes());
    let killed = process.killed.clone();
    let (leading, shared) = (replica.clone(), Arc::clone(world));
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = killed.cancelled() => {}
            led = leading.lead(CancellationToken::new()) => {
                let why = led.err().map(|error| format!("{error:#}")).unwrap_or_default();
                let story = format!("{node} does not: {why}");
                shared.broken("a scheduler campaigns as long as it lives", story);
            }
        }
        // Nothing that it does from here on reaches anybody; its tasks only have to go.
        if let Some(term) = replica.leader().term() {
            term.stop().await;
        }
    });
}

/// Starts again what is not there and may be.
async fn supervise(world: Shared) {
    loop {
        tokio::time::sleep(LOOK).await;
        let schedulers = (0..world.plan.schedulers).map(Node::Scheduler);
        for node in schedulers.chain((0..world.plan.hosts).map(Node::Host)) {
            if !world.is_up(node) && world.may_start(node) {
                start(&world, node);
            }
        }
    }
}

fn set_image(world: &Shared) {
    let image = Image { name: "app".into(), state: ImageState::Created.into(), ..Default::default() };
    let version = ImageVersion {
        image_name: "app".into(),
        image_version: "1.0".into(),
        state: VersionState::Successful.into(),
        status: VersionStatus::Active.into(),
        configuration: Some(ImageConfiguration {
            resources: Some(Resources { minimum_memory_mib: BASELINE_MIB }),
            ..Default::default()
        }),
        snapshot: Some(SnapshotRef {
            manifest_key: "images/app/1.0/manifest.json".into(),
            manifest_digest: "0a".repeat(32),
            engine: ENGINE.into(),
            memory_mib: BASELINE_MIB * 4,
            vcpu_count: 1,
            ..Default::default()
        }),
        ..Default::default()
    };
    world.keys.set(&format!("{ROOT}images/app"), image.encode_to_vec());
    world.keys.set(&format!("{ROOT}versions/app/1.0"), version.encode_to_vec());
}

/// Undoes a fault after its time.
fn later(world: &Shared, time: Duration, undo: impl FnOnce(&Shared) + Send + 'static) {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        undo(&world);
    });
}

fn inject(world: &Shared, Due { fault, .. }: Due) -> anyhow::Result<()> {
    world.tell("FAULT", format_args!("{fault:?}"));
    match fault {
        Fault::Kill(node, time) => {
            world.stay_down(node, time);
            world.kill(node, "a fault");
        }
        Fault::Fuse(node, steps, time) => world.light_fuse(node, steps, time),
        Fault::PowerCut(host, time) => {
            world.stay_down(Node::Host(host), time);
            world.kill(Node::Host(host), "the power is cut");
            world.note_hurt(host);
            world.machines[host].cut_power(|| world.draw(|chance| chance.per_mille(500)));
        }
        Fault::Gone(host) => {
            world.kill(Node::Host(host), "its machine is gone");
            *lock(&world.machines[host].gone) = true;
            world.note_hurt(host);
            world.machines[host].cut_power(|| false);
        }
        Fault::Cut(a, b, time) => {
            lock(&world.net).cut(a, b, true);
            later(world, time, move |world| lock(&world.net).cut(a, b, false));
        }
        Fault::Alone(host, time) => {
            cut_off(world, host, true);
            later(world, time, move |world| cut_off(world, host, false));
        }
        Fault::Down(node, time) => {
            lock(&world.net).set_down(node, true);
            later(world, time, move |world| lock(&world.net).set_down(node, false));
        }
        Fault::Deaf(node, time) => {
            lock(&world.net).set_deaf(node, true);
            later(world, time, move |world| lock(&world.net).set_deaf(node, false));
        }
        Fault::Lossy(lossy, jitter, time) => {
            set_lossy(world, lossy, jitter);
            later(world, time, |world| set_lossy(world, 0, Duration::ZERO));
        }
        Fault::ClockStep(node, by_ms) => {
            let clock = world.clock(node);
            let by = Duration::from_millis(by_ms.unsigned_abs());
            clock.set_wall(if by_ms > 0 { clock.now() + by } else { clock.now() - by });
        }
        Fault::SlowDisk(host, times, time) => {
            lock(&world.machines[host].disk).slow = times;
            later(world, time, move |world| lock(&world.machines[host].disk).slow = 1);
        }
        Fault::FailingDisk(host, failing, time) => {
            lock(&world.machines[host].disk).failing = failing;
            later(world, time, move |world| lock(&world.machines[host].disk).failing = 0);
        }
        Fault::Drain(host, time) => {
            tokio::spawn(Client::new(world, 50 + u64::try_from(host)?)?.drain(host, time));
        }
        Fault::Compact => world.keys.compact_now(),
    }
    Ok(())
}

/// Cuts a host off from all that it gets orders from.
fn cut_off(world: &Shared, host: usize, cut: bool) {
    let mut net = lock(&world.net);
    net.cut(Node::Host(host), Node::Etcd, cut);
    for index in 0..world.plan.schedulers {
        net.cut(Node::Host(host), Node::Scheduler(index), cut);
    }
}

fn set_lossy(world: &Shared, lossy: u64, jitter: Duration) {
    let mut net = lock(&world.net);
    net.lossy = lossy;
    net.jitter_ms = u64::try_from(jitter.as_millis()).unwrap_or(0);
}

/// No fault is left.
fn heal(world: &Shared) {
    world.tell("HEALED", "nothing fails from here on");
    lock(&world.net).heal();
    world.let_all_start();
    for machine in &world.machines {
        let mut disk = lock(&machine.disk);
        (disk.slow, disk.failing) = (1, 0);
    }
    world.set_clocks_right();
}
