//! Processes that outlive their handles, and handles that outlive nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmm::{Engine, Error, ExitReason, NetworkSpec, ProcessHandle, Status};

use super::{MEMORY_MIB, ensure_follows};
use crate::guest;
use crate::world::{World, last_turn, wait_past};

const DEADLINE: Duration = Duration::from_secs(60);
/// Without a tick of CPU time for so long, a process stands still: a running guest takes one every few turns.
const STILL: Duration = Duration::from_millis(500);

async fn poll(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        ensure!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn stat_field(process: &ProcessHandle, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').nth(field - 3)?.to_owned())
}

fn is_gone(process: &ProcessHandle) -> bool {
    stat_field(process, 22) != Some(process.start_time.to_string())
}

pub async fn a_dropped_machine_is_adopted(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let spec = world.spec("alpha")?;
    let machine = world.launch(&spec, &base).await?;
    let process = machine.process();
    wait_past(&*machine, base.turn + 3).await?;
    drop(machine);

    let wrong = ProcessHandle { start_time: process.start_time + 1, ..process };
    ensure!(world.engine.adopt(&spec, &wrong).await?.is_none());
    let machine = world.engine.adopt(&spec, &process).await?.context("not adopted")?;
    ensure!(machine.process() == process && machine.status().await? == Status::Running);
    wait_past(&*machine, base.turn + 6).await?;
    machine.pause().await?;
    drop(machine);
    let machine = world.engine.adopt(&spec, &process).await?.context("not adopted while paused")?;
    ensure!(machine.status().await? == Status::Paused);

    // An adopted machine can do everything a new one can.
    let (state, memory) = (world.path("state"), world.path("difference"));
    machine.save_difference(&state, &memory).await?;
    machine.resume().await?;
    let turn = last_turn(&machine.console().await?);
    wait_past(&*machine, turn + 2).await?;
    machine.stop().await?;
    poll("the adopted process is still there", || is_gone(&process)).await?;
    ensure!(world.engine.adopt(&spec, &process).await?.is_none());
    let woken = world.restore(&spec, &base, Some((&state, &memory))).await?.machine;
    woken.resume().await?;
    wait_past(&*woken, base.turn + 8).await?;
    woken.stop().await?;
    Ok(())
}

pub async fn the_end_of_a_guest_nobody_watched_is_known(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    for word in ["poweroff", "reboot", "panic"] {
        let spec = world.spec(word)?;
        let machine = world.restore(&spec, &base, None).await?.machine;
        let process = machine.process();
        machine.resume().await?;
        drop(machine);
        let mut last = (String::new(), Instant::now());
        poll("the guest does not end", || {
            let ticks = stat_field(&process, 14).unwrap_or_default();
            if ticks != last.0 {
                last = (ticks, Instant::now());
            }
            last.1.elapsed() > STILL
        })
        .await?;
        let machine = world.engine.adopt(&spec, &process).await?.context("it did not wait to be asked")?;
        match (word, machine.exited().await) {
            ("poweroff", ExitReason::GuestShutdown) | ("reboot", ExitReason::GuestReset) => {}
            ("panic", ExitReason::GuestPanic(line)) if line.contains("sysrq") => {}
            (_, other) => anyhow::bail!("{word}: {other:?}"),
        }
        poll("the process is still there", || is_gone(&process)).await?;
    }
    Ok(())
}

pub async fn a_prepared_process_loads_later(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let mut spec = world.spec("nobody")?;
    let prepared = world.engine.prepare(&spec, &base.memory).await?;
    let process = prepared.process();
    world.note(process);
    ensure!(prepared.is_alive());

    // Only now is it known whose it will be: another name for disk and run directory, another content.
    let (disk, run_dir) = (world.path("late.disk"), world.path("late.run"));
    fs::rename(&spec.disk, &disk)?;
    fs::rename(&spec.run_dir, &run_dir)?;
    (spec.disk, spec.run_dir) = (disk, run_dir);
    guest::order(&spec.disk, "alpha")?;
    let restored = prepared.load(&base.device_state, None).await?;
    let phases: Vec<_> = restored.phases.iter().map(|phase| phase.name).collect();
    ensure!(phases == ["state"], "{phases:?}");
    let machine = restored.machine;
    ensure!(machine.process() == process);
    machine.resume().await?;
    let console = wait_past(&*machine, base.turn + 2).await?;
    ensure_follows(base.turn, &console)?;
    ensure!(console.contains(" word alpha"), "the disk is not the one of the load: {console}");
    drop(machine);
    let machine = world.engine.adopt(&spec, &process).await?.context("not adopted where it was moved to")?;
    wait_past(&*machine, base.turn + 4).await?;

    // Its suspend, and a wake in another process made ahead, whose disk is filled with the first one's.
    machine.pause().await?;
    let turn = last_turn(&machine.console().await?);
    let (state, memory) = (world.path("state"), world.path("difference"));
    machine.save_difference(&state, &memory).await?;
    machine.stop().await?;
    let second = world.spec("nobody")?;
    let prepared = world.engine.prepare(&second, &base.memory).await?;
    world.note(prepared.process());
    guest::order(&second.disk, "beta")?;
    let woken = prepared.load(&state, Some(&memory)).await?.machine;
    woken.resume().await?;
    let console = wait_past(&*woken, turn + 2).await?;
    ensure_follows(turn, &console)?;
    ensure!(console.contains(" word beta") && !console.contains("nobody"), "{console}");
    Ok(woken.stop().await?)
}

pub async fn an_unused_prepared_process_goes(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let spec = world.spec("alpha")?;
    let stopped = world.engine.prepare(&spec, &base.memory).await?;
    let process = stopped.process();
    world.note(process);
    stopped.stop().await?;
    ensure!(is_gone(&process), "it is still there after stop");

    let dropped = world.engine.prepare(&spec, &base.memory).await?;
    let process = dropped.process();
    world.note(process);
    drop(dropped);
    poll("a dropped process is still there", || is_gone(&process)).await?;

    // What kills it from outside is noticed.
    let killed = world.engine.prepare(&world.spec("alpha")?, &base.memory).await?;
    world.note(killed.process());
    Command::new("kill").args(["-9", &killed.process().pid.to_string()]).status()?;
    poll("its end goes unnoticed", || !killed.is_alive()).await
}

pub async fn a_machine_lives_in_its_network_namespace(engine: Arc<dyn Engine>) -> Result<()> {
    let netns = Netns::add(&format!("vmm-test-{}", std::process::id()))?;
    netns.run(&["tuntap", "add", "dev", "tap0", "mode", "tap"])?;
    netns.run(&["link", "set", "tap0", "up"])?;
    let mut world = World::new(engine, MEMORY_MIB)?;
    world.network = Some(NetworkSpec {
        netns: Some(netns.0.clone()),
        tap: "tap0".into(),
        mac: [6, 0, 0xa9, 0xfe, 0x64, 2],
    });
    let base = world.bake().await?;
    let machine = world.launch(&world.spec("alpha")?, &base).await?;
    let process = format!("/proc/{}", machine.process().pid);
    let inside = fs::metadata(format!("{process}/ns/net"))?.ino();
    ensure!(inside == fs::metadata(format!("/run/netns/{}", netns.0))?.ino(), "another namespace");
    ensure!(netns.run(&["link", "show", "tap0"])?.contains("LOWER_UP"), "nobody holds the tap");

    // And without privileges.
    let status = fs::read_to_string(format!("{process}/status"))?;
    for expected in [
        "Uid:\t65534\t65534",
        "Gid:\t65534\t65534",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        ensure!(status.contains(expected), "{expected} is missing in:\n{status}");
    }
    wait_past(&*machine, base.turn + 2).await?;
    machine.stop().await?;
    Ok(())
}

/// A network namespace; removed when dropped.
struct Netns(String);

impl Netns {
    fn add(name: &str) -> Result<Self> {
        let added = Command::new("ip").args(["netns", "add", name]).status()?;
        ensure!(added.success(), "ip netns add {name}");
        Ok(Self(name.to_owned()))
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("ip").args(["-n", &self.0]).args(arguments).output()?;
        ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub async fn an_abandoned_start_leaves_no_process(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let spec = world.spec("alpha")?;
    let marker = world.path("").display().to_string();
    for wait_ms in [0, 1, 3, 6, 12, 20, 25, 30] {
        // An abandoned start may still be on its way out; then the disk is not free yet.
        let deadline = Instant::now() + DEADLINE;
        loop {
            let start = world.restore(&spec, &base, None);
            match tokio::time::timeout(Duration::from_millis(wait_ms), start).await {
                Ok(Ok(restored)) => restored.machine.stop().await?,
                Ok(Err(Error::DiskInUse { .. })) if Instant::now() < deadline => continue,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {}
            }
            break;
        }
    }
    let deadline = Instant::now() + DEADLINE;
    let machine = loop {
        match world.launch(&spec, &base).await {
            Ok(machine) => break machine,
            Err(error)
                if matches!(error.downcast_ref(), Some(Error::DiskInUse { .. }))
                    && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    };
    machine.stop().await?;
    poll("an abandoned process is still there", || !runs_with(&marker)).await
}

fn runs_with(argument: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(argument))
}
