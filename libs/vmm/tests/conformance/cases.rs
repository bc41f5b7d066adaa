//! The cases.

mod failures;
mod processes;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use vmm::{Engine, ExitReason, Status};

pub use failures::*;
pub use processes::*;

use crate::guest;
use crate::world::{World, last_turn, line, turns, wait_for, wait_past};

/// Enough for the guest; most cases do not depend on it.
const MEMORY_MIB: u32 = 256;
const PAGE_BYTES: u64 = 4096;
/// Size of the blob in guest memory.
const BLOB_BYTES: u64 = 1 << 20;

pub async fn a_cold_boot_says_hello(engine: Arc<dyn Engine>) -> Result<()> {
    let world = World::new(engine, MEMORY_MIB)?;
    let description = world.engine.describe();
    ensure!(!description.name.is_empty() && !description.platform_fingerprint.is_empty());
    let spec = world.spec("hello")?;
    let memory = world.path("memory");
    let machine = world.boot(&spec, &memory).await?;
    ensure!(machine.status().await? == Status::Running);
    wait_for(&*machine, |text| text.contains("ready") && text.contains("turn 1 word hello")).await?;
    let usage = machine.usage()?;
    ensure!(usage.cpu_seconds > 0.0 && usage.anonymous_bytes > 0, "{usage:?}");
    ensure!(memory.metadata()?.len() == u64::from(MEMORY_MIB) << 20);

    machine.stop().await?;
    machine.stop().await?;
    ensure!(machine.exited().await == ExitReason::Killed(9));
    ensure!(machine.status().await? == Status::Ended);
    ensure!(machine.console().await?.contains("turn 1 word hello"), "the console is gone with the process");
    let again = world.engine.boot(&world.spec("hello")?, &memory).await;
    ensure!(again.is_err(), "a memory file was overwritten");
    Ok(())
}

pub async fn clones_of_one_base_share_nothing(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let before = digest(&base.memory)?;
    let (first, second) = (world.spec("alpha")?, world.spec("beta")?);
    let (first, second) = tokio::try_join!(world.launch(&first, &base), world.launch(&second, &base))?;
    for (machine, own, other) in [(&first, "alpha", "beta"), (&second, "beta", "alpha")] {
        let console = wait_past(&**machine, base.turn + 20).await?;
        ensure!(console.contains(&format!(" word {own}")) && !console.contains(other), "{console}");
        ensure_follows(base.turn, &console)?;
    }
    // What both did is not in the base: one more clone starts where the first two did.
    let third = world.launch(&world.spec("gamma")?, &base).await?;
    ensure_follows(base.turn, &wait_past(&*third, base.turn + 2).await?)?;
    for machine in [&first, &second, &third] {
        machine.stop().await?;
    }
    ensure!(digest(&base.memory)? == before, "the base has changed");
    Ok(())
}

pub async fn a_wake_goes_on_where_the_suspend_stopped(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let spec = world.spec("alpha")?;
    let (state, memory) = (world.path("state"), world.path("difference"));
    let mut machine = world.launch(&spec, &base).await?;
    let mut turn = base.turn;
    let mut sizes = Vec::new();
    for round in 0..3 {
        wait_past(&*machine, turn + 10).await?;
        // A save that is not used: the machine goes on in place.
        machine.pause().await?;
        turn = last_turn(&machine.console().await?);
        machine.save_difference(&state, &memory).await?;
        machine.resume().await?;
        wait_past(&*machine, turn + 2).await?;
        machine.pause().await?;
        machine.pause().await?;
        ensure!(machine.status().await? == Status::Paused);
        turn = last_turn(&machine.console().await?);
        let stats = machine.save_difference(&state, &memory).await?;
        ensure!(stats.bytes == memory.metadata()?.len() && stats.pages > 0, "{stats:?}");
        sizes.push(stats.bytes);
        machine.stop().await?;

        guest::order(&spec.disk, if round == 2 { "write" } else { "alpha" })?;
        let restored = world.restore(&spec, &base, Some((&state, &memory))).await?;
        let phases: Vec<_> = restored.phases.iter().map(|phase| phase.name).collect();
        ensure!(phases == ["process", "difference", "state"], "{phases:?}");
        machine = restored.machine;
        ensure!(machine.status().await? == Status::Paused);
        ensure!(machine.console().await?.is_empty(), "the guest ran before it was told to");
        machine.resume().await?;
        ensure_follows(turn, &wait_past(&*machine, turn + 2).await?)?;
    }
    // Each difference is against the base: they do not pile up.
    ensure!(sizes[2] < sizes[0] * 2, "{sizes:?}");
    wait_for(&*machine, |text| text.contains("wrote")).await?;
    ensure!(guest::written(&spec.disk)? == "written");
    machine.stop().await?;
    Ok(())
}

pub async fn a_page_that_became_zero_stays_zero(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let original = world.launch(&world.spec("sum")?, &base).await?;
    let original_sum = line(&*original, "blob ").await?;
    original.stop().await?;

    let spec = world.spec("blank")?;
    let (state, memory) = (world.path("state"), world.path("difference"));
    let machine = world.launch(&spec, &base).await?;
    wait_for(&*machine, |text| text.contains("blanked")).await?;
    machine.pause().await?;
    let stats = machine.save_difference(&state, &memory).await?;
    machine.stop().await?;
    ensure!(stats.zero_pages >= BLOB_BYTES / PAGE_BYTES, "{stats:?}");
    ensure!(stats.bytes < (stats.pages - stats.zero_pages + 64) * PAGE_BYTES, "zeros take room: {stats:?}");

    guest::order(&spec.disk, "sum")?;
    let woken = world.restore(&spec, &base, Some((&state, &memory))).await?.machine;
    woken.resume().await?;
    let sum = line(&*woken, "blob ").await?;
    woken.stop().await?;
    // MD5 of 1 MiB of zeros.
    ensure!(
        sum.starts_with("b6d81b360a5672d80c27430f39153e2c") && sum != original_sum,
        "{sum}, before {original_sum}"
    );
    Ok(())
}

pub async fn the_difference_does_not_grow_with_the_memory(engine: Arc<dyn Engine>) -> Result<()> {
    let mut pages = Vec::new();
    for memory_mib in [512, 2048] {
        let world = World::new(engine.clone(), memory_mib)?;
        let base = world.bake().await?;
        let machine = world.launch(&world.spec("alpha")?, &base).await?;
        wait_past(&*machine, base.turn + 10).await?;
        machine.pause().await?;
        let stats = machine.save_difference(&world.path("state"), &world.path("difference")).await?;
        machine.stop().await?;
        ensure!(stats.bytes < 16 << 20, "{memory_mib} MiB: {stats:?}");
        pages.push(stats.pages);
    }
    ensure!(pages[1] < pages[0] * 3 / 2 + 256, "{pages:?}");
    Ok(())
}

/// A machine that went on from `turn`: the first whole line is the next turn, or the one after if the guest stood in the
/// middle of a line.
fn ensure_follows(turn: u64, console: &str) -> Result<()> {
    let seen = turns(console);
    let first = seen.first().copied().unwrap_or(0);
    ensure!((turn + 1..=turn + 2).contains(&first), "after turn {turn} came {first}");
    ensure!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "turns are missing: {seen:?}");
    Ok(())
}

fn digest(path: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize())
}
