//! What happens when it does not go well.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use vmm::{Engine, Error, ExitReason, MachineSpec, Status};

use super::{MEMORY_MIB, ensure_follows};
use crate::guest;
use crate::world::{GUEST_TIMEOUT, World, last_turn, wait_for, wait_past};

/// A file system that is full after one MiB; unmounted when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&path).status()?;
        ensure!(mounted.success(), "mount");
        Ok(Self(path))
    }

    /// Makes it larger.
    fn grow(&self) -> Result<()> {
        let grown = Command::new("mount").args(["-o", "remount,size=16m"]).arg(&self.0).status()?;
        ensure!(grown.success(), "mount");
        Ok(())
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub async fn a_full_disk_leaves_the_machine_whole(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let tiny = Tiny::mount(world.path("tiny"))?;
    let spec = world.spec("fill")?;
    let machine = world.launch(&spec, &base).await?;
    wait_for(&*machine, |text| text.contains("filled")).await?;
    machine.pause().await?;
    let turn = last_turn(&machine.console().await?);

    let (state, memory) = (tiny.0.join("state"), tiny.0.join("difference"));
    match machine.save_difference(&state, &memory).await {
        Err(Error::DiskFull { path }) => ensure!(path == memory),
        other => anyhow::bail!("{other:?}"),
    }
    ensure!(!state.exists() && !memory.exists(), "half a snapshot was left behind");
    fs::write(tiny.0.join("rest"), vec![1; 2 << 20]).expect_err("larger than the file system");
    let refused = machine.save_device_state(&state).await;
    ensure!(matches!(&refused, Err(Error::DiskFull { path }) if *path == state), "{refused:?}");

    ensure!(machine.status().await? == Status::Paused);
    machine.resume().await?;
    wait_past(&*machine, turn + 3).await?;
    machine.pause().await?;
    let turn = last_turn(&machine.console().await?);
    let (state, memory) = (world.path("state"), world.path("difference"));
    let stats = machine.save_difference(&state, &memory).await?;
    ensure!(stats.bytes > 24 << 20, "{stats:?}");
    machine.stop().await?;
    let woken = world.restore(&spec, &base, Some((&state, &memory))).await?.machine;
    woken.resume().await?;
    ensure_follows(turn, &wait_past(&*woken, turn + 2).await?)?;
    woken.stop().await?;
    Ok(())
}

pub async fn a_guest_out_of_space_goes_on_when_there_is_some(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let tiny = Tiny::mount(world.path("tiny"))?;
    let disk = tiny.0.join("disk");
    guest::make_disk(&disk, "grow")?;
    let spec = MachineSpec { disk: disk.clone(), ..world.spec("unused")? };
    let machine = world.launch(&spec, &base).await?;
    tokio::time::timeout(GUEST_TIMEOUT, machine.out_of_space()).await?;
    ensure!(machine.status().await? == Status::OutOfSpace);
    let paused = machine.pause().await;
    ensure!(matches!(paused, Err(Error::OutOfSpace)), "{paused:?}");
    // Nothing has changed: it stands again.
    machine.resume().await?;
    tokio::time::timeout(GUEST_TIMEOUT, machine.out_of_space()).await?;
    ensure!(!machine.console().await?.contains("grown"), "the guest was told that its write succeeded");
    // Whoever adopts it was not there when it stopped.
    let process = machine.process();
    drop(machine);
    let machine = world.engine.adopt(&spec, &process).await?.expect("it lives");
    tokio::time::timeout(GUEST_TIMEOUT, machine.out_of_space()).await?;

    tiny.grow()?;
    machine.resume().await?;
    wait_for(&*machine, |text| text.contains("grown")).await?;
    ensure!(machine.status().await? == Status::Running);
    let occupied = || fs::metadata(&disk).map(|data| data.blocks() * 512);
    ensure!(occupied()? >= 4 << 20, "{}", occupied()?);
    guest::order(&disk, "give")?;
    wait_for(&*machine, |text| text.contains("given")).await?;
    ensure!(occupied()? < 1 << 20, "{} bytes are still held", occupied()?);
    machine.stop().await?;
    Ok(())
}

pub async fn only_a_paused_machine_is_saved(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let machine = world.launch(&world.spec("alpha")?, &base).await?;
    let (state, memory) = (world.path("state"), world.path("difference"));
    let saved = machine.save_difference(&state, &memory).await;
    ensure!(matches!(saved, Err(Error::NotPaused { .. })), "{saved:?}");
    let saved = machine.save_device_state(&state).await;
    ensure!(matches!(saved, Err(Error::NotPaused { .. })), "{saved:?}");
    ensure!(!state.exists() && !memory.exists());
    machine.stop().await?;
    let saved = machine.save_difference(&state, &memory).await;
    ensure!(matches!(saved, Err(Error::Gone)), "{saved:?}");
    ensure!(matches!(machine.resume().await, Err(Error::Gone)));
    ensure!(matches!(machine.usage(), Err(Error::Gone)));

    // A cold-booted machine has no base to differ from.
    let booted = world.boot(&world.spec("alpha")?, &world.path("memory")).await?;
    wait_past(&*booted, 1).await?;
    booted.pause().await?;
    ensure!(booted.save_difference(&state, &memory).await.is_err());
    booted.stop().await?;
    Ok(())
}

pub async fn a_corrupt_snapshot_is_refused(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let spec = world.spec("alpha")?;
    let machine = world.launch(&spec, &base).await?;
    wait_past(&*machine, base.turn + 3).await?;
    machine.pause().await?;
    let (state, memory) = (world.path("state"), world.path("difference"));
    machine.save_difference(&state, &memory).await?;
    machine.stop().await?;

    let (bad_state, bad_memory) = (world.path("bad.state"), world.path("bad.difference"));
    let flip = |path: &PathBuf, at: u64| -> Result<()> {
        let file = fs::File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x40], at)?;
        Ok(())
    };
    for at in [0, 17, 24, 33, 130] {
        fs::copy(&memory, &bad_memory)?;
        flip(&bad_memory, at)?;
        let refused = world.restore(&spec, &base, Some((&state, &bad_memory))).await.err();
        ensure!(
            matches!(&refused, Some(Error::Corrupt { path, .. }) if *path == bad_memory),
            "{at}: {refused:?}"
        );
    }
    fs::write(&bad_state, b"this is no device state")?;
    let refused = world.restore(&spec, &base, Some((&bad_state, &memory))).await.err();
    ensure!(matches!(&refused, Some(Error::Corrupt { path, .. }) if *path == bad_state), "{refused:?}");
    let cut = world.path("cut.memory");
    fs::File::create(&cut)?.set_len(4096)?;
    let refused = world.engine.prepare(&spec, &cut).await.err();
    ensure!(matches!(&refused, Some(Error::Corrupt { path, .. }) if *path == cut), "{refused:?}");

    // Nothing of all this holds the disk or the rest: the good files still wake.
    let woken = world.restore(&spec, &base, Some((&state, &memory))).await?.machine;
    woken.resume().await?;
    wait_past(&*woken, base.turn + 5).await?;
    woken.stop().await?;
    Ok(())
}

pub async fn exit_reasons(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    for (word, expected) in [("poweroff", ExitReason::GuestShutdown), ("reboot", ExitReason::GuestReset)] {
        let machine = world.launch(&world.spec(word)?, &base).await?;
        ensure!(machine.exited().await == expected, "{word}: {:?}", machine.exited().await);
        ensure!(machine.console().await?.contains(" word "), "{word}: the console is gone");
        machine.stop().await?;
    }
    let machine = world.launch(&world.spec("panic")?, &base).await?;
    match machine.exited().await {
        ExitReason::GuestPanic(line) => ensure!(line.contains("sysrq triggered crash"), "{line}"),
        other => anyhow::bail!("{other:?}"),
    }
    let machine = world.launch(&world.spec("alpha")?, &base).await?;
    let killed = Command::new("kill").args(["-9", &machine.process().pid.to_string()]).status()?;
    ensure!(killed.success() && machine.exited().await == ExitReason::Killed(9));
    Ok(())
}

pub async fn one_disk_belongs_to_one_machine(engine: Arc<dyn Engine>) -> Result<()> {
    let (world, base) = World::baked(engine, MEMORY_MIB).await?;
    let spec = world.spec("alpha")?;
    let machine = world.launch(&spec, &base).await?;
    let second = world.restore(&spec, &base, None).await.err();
    ensure!(matches!(second, Some(Error::DiskInUse { .. })), "{second:?}");
    let process = machine.process();
    drop(machine);
    let machine = world.engine.adopt(&spec, &process).await?.expect("the first one is still there");
    guest::order(&spec.disk, "write")?;
    wait_for(&*machine, |text| text.contains("wrote")).await?;
    machine.stop().await?;
    // Free again at once.
    world.launch(&spec, &base).await?.stop().await?;
    Ok(())
}
