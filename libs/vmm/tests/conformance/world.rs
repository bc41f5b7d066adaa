//! What one test works with: an engine, a guest, a directory, and the certainty that nothing is left behind.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use vmm::{Engine, Machine, MachineSpec, NetworkSpec, ProcessHandle, RestoreSpec, Restored};

use crate::guest::{self, Guest};

/// A guest in a software CPU on a busy machine is slow; one that says nothing for so long is stuck.
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// `nobody`: the engine process keeps no rights.
const RUN_AS: (u32, u32) = (65534, 65534);

pub struct World {
    pub engine: Arc<dyn Engine>,
    pub memory_mib: u32,
    pub network: Option<NetworkSpec>,
    guest: Guest,
    undertaker: std::sync::Mutex<Undertaker>,
    directory: TempDir,
    count: AtomicU32,
}

/// A base that machines are restored from.
pub struct Base {
    pub memory: PathBuf,
    pub device_state: PathBuf,
    /// The guest's last turn before the bake.
    pub turn: u64,
}

impl World {
    pub fn new(engine: Arc<dyn Engine>, memory_mib: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let guest = Guest::build(directory.path())?;
        let (undertaker, count) = (Undertaker::new()?.into(), AtomicU32::new(0));
        Ok(Self { engine, memory_mib, network: None, guest, directory, undertaker, count })
    }

    /// With a base.
    pub async fn baked(engine: Arc<dyn Engine>, memory_mib: u32) -> Result<(Self, Base)> {
        let world = Self::new(engine, memory_mib)?;
        let base = world.bake().await?;
        Ok((world, base))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A machine with a disk of its own that holds `word`.
    pub fn spec(&self, word: &str) -> Result<MachineSpec> {
        let name = format!("machine-{}", self.count.fetch_add(1, Ordering::Relaxed));
        let disk = self.path(&format!("{name}.disk"));
        guest::make_disk(&disk, word)?;
        Ok(MachineSpec {
            vcpu_count: 1,
            memory_mib: self.memory_mib,
            kernel: self.guest.kernel.clone(),
            initramfs: self.guest.initramfs.clone(),
            cmdline: "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable".into(),
            disk,
            network: self.network.clone(),
            run_dir: self.path(&format!("{name}.run")),
            run_as: Some(RUN_AS),
            name,
        })
    }

    /// Remembers a process, to be killed at the end whatever happens.
    pub fn note(&self, process: ProcessHandle) {
        let mut undertaker = self.undertaker.lock().expect("nobody panics while holding it");
        let input = undertaker.0.stdin.as_mut().expect("it is piped");
        writeln!(input, "{}", process.pid).expect("it reads until we end");
    }

    pub async fn boot(&self, spec: &MachineSpec, memory: &Path) -> Result<Arc<dyn Machine>> {
        let machine = self.engine.boot(spec, memory).await?;
        self.note(machine.process());
        Ok(machine)
    }

    /// Boots, waits for the guest's third turn, and keeps the base.
    pub async fn bake(&self) -> Result<Base> {
        let base = Base { memory: self.path("base.memory"), device_state: self.path("base.state"), turn: 0 };
        let machine = self.boot(&self.spec("bake")?, &base.memory).await?;
        wait_past(&*machine, 2).await?;
        machine.pause().await?;
        let turn = last_turn(&machine.console().await?);
        machine.save_device_state(&base.device_state).await?;
        machine.stop().await?;
        Ok(Base { turn, ..base })
    }

    pub async fn restore(
        &self,
        spec: &MachineSpec,
        base: &Base,
        difference: Option<(&Path, &Path)>,
    ) -> Result<Restored, vmm::Error> {
        let from = RestoreSpec {
            base_memory: base.memory.clone(),
            device_state: difference.map_or(&*base.device_state, |(state, _)| state).to_owned(),
            memory_difference: difference.map(|(_, memory)| memory.to_owned()),
        };
        let restored = self.engine.restore(spec, &from).await?;
        self.note(restored.machine.process());
        Ok(restored)
    }

    /// Restores and lets it run.
    pub async fn launch(&self, spec: &MachineSpec, base: &Base) -> Result<Arc<dyn Machine>> {
        let machine = self.restore(spec, base, None).await?.machine;
        machine.resume().await?;
        Ok(machine)
    }
}

/// A process of its own that kills the engines of a test when the test is over, also when the test was killed itself:
/// engine processes outlive their starter by design.
struct Undertaker(Child);

impl Undertaker {
    fn new() -> Result<Self> {
        let script =
            "while read -r pid; do pids=\"$pids $pid\"; done; [ -z \"$pids\" ] || kill -9 $pids 2>/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.process_group(0).spawn()?))
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Reads the console until it satisfies `done`.
pub async fn wait_for(machine: &dyn Machine, done: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + GUEST_TIMEOUT;
    loop {
        let console = machine.console().await.context("read the console")?;
        if done(&console) {
            return Ok(console);
        }
        if Instant::now() > deadline {
            bail!("the guest does not get on; its console:\n{console}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits for a whole line that begins with `start` and returns its rest.
pub async fn line(machine: &dyn Machine, start: &str) -> Result<String> {
    let find = |text: &str| {
        let lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
        lines.filter_map(|line| line.strip_prefix(start)).next_back().map(|rest| rest.trim().to_owned())
    };
    let console = wait_for(machine, |text| find(text).is_some()).await?;
    Ok(find(&console).expect("just seen"))
}

/// All turns on a console, in order.
pub fn turns(console: &str) -> Vec<u64> {
    let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter_map(|line| line.strip_prefix("turn "));
    lines.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect()
}

pub fn last_turn(console: &str) -> u64 {
    turns(console).last().copied().unwrap_or(0)
}

/// Waits until the guest has counted past `turn`.
pub async fn wait_past(machine: &dyn Machine, turn: u64) -> Result<String> {
    wait_for(machine, |text| last_turn(text) > turn).await
}
