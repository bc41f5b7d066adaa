//! One microVM driven by hand: enough of QEMU for this test, and its guards.
//! (Services use the library `vmm`; this test stays below it.)
#![allow(unsafe_code)] // reads the time-stamp counter

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guest_link::RelayAnswer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::network::Network;

/// Longest wait for the engine or a booting guest.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How the base memory file is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The bake: the file is the memory.
    Shared,
    /// A clone: changes stay in the process.
    Private,
}

/// Files that all machines of a test use.
pub struct Fixture {
    directory: tempfile::TempDir,
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

impl Fixture {
    /// Makes the bundle (kept between runs) and a root disk around busybox.
    pub fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let bundle = match std::env::var_os("TORPOR_TEST_BUNDLE") {
            Some(bundle) => PathBuf::from(bundle),
            None => {
                let bundle = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-bundle");
                run(Command::new(root.join("deploy/guest-bundle")).arg(&bundle))?;
                bundle
            }
        };
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(bundle.join("manifest.json")).context("read the manifest")?)?;
        let text = |key: &str| manifest[key].as_str().map(str::to_owned).context("manifest");
        let directory = tempfile::Builder::new().prefix("torpor-guest-").tempdir()?;
        make_root_disk(&root.join("libs/guest-link/tests/qemu/root"), directory.path())?;
        Ok(Self {
            kernel: bundle.join(text("kernel")?),
            initramfs: bundle.join(text("initramfs")?),
            cmdline: format!("{} tsc_early_khz={}", text("cmdline")?, time_stamp_khz()),
            directory,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The rate of the time-stamp counter, which a software CPU passes on to its guest. The
/// kernel's own calibration against an emulated timer fails on a busy machine, and then it hangs.
fn time_stamp_khz() -> u64 {
    // SAFETY: reads a counter.
    let (started, first) = (Instant::now(), unsafe { std::arch::x86_64::_rdtsc() });
    std::thread::sleep(Duration::from_millis(50));
    // SAFETY: reads a counter.
    let (last, elapsed) = (unsafe { std::arch::x86_64::_rdtsc() }, started.elapsed());
    u64::try_from(u128::from(last - first) * 1_000_000 / elapsed.as_nanos()).unwrap()
}

/// An ext4 disk with busybox and the files under `overlay`.
fn make_root_disk(overlay: &Path, directory: &Path) -> Result<()> {
    let tree = directory.join("tree");
    fs::create_dir_all(tree.join("bin"))?;
    run(Command::new("cp").arg("-r").arg(format!("{}/.", overlay.display())).arg(&tree))?;
    fs::copy("/bin/busybox", tree.join("bin/busybox")).context("busybox-static")?;
    for name in [
        "sh", "cat", "httpd", "id", "grep", "hostname", "date", "kill", "sleep", "nc", "yes", "head", "mount",
    ] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name))?;
    }
    run(Command::new("chmod").arg("-R").arg("a+rX").arg(&tree))?;
    let disk = directory.join("disk");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"])
        .arg(&tree)
        .arg(&disk)
        .arg("32M"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A QEMU process, ended when dropped.
struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A microVM and its network. Fields are dropped in order: the process ends first.
pub struct Machine {
    process: Engine,
    control: UnixStream,
    /// Where the guest is reached.
    pub network: Network,
    memory: PathBuf,
    state: PathBuf,
    console: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("TORPOR_TEST_CONSOLE").is_some() {
            println!("console:\n{}", fs::read_to_string(&self.console).unwrap_or_default());
        }
    }
}

fn connect_control(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match UnixStream::connect(socket) {
            Ok(control) => {
                control.set_read_timeout(Some(TIMEOUT))?;
                return Ok(control);
            }
            Err(error) if Instant::now() > deadline => return Err(error).context("QEMU never came up"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

impl Machine {
    /// Boots the bundle with the fixture's disk.
    pub fn boot(fixture: &Fixture, name: &str, memory: Memory) -> Result<Self> {
        Self::start(fixture, name, memory, &[])
    }

    /// Restores a clone of the snapshot and lets it run.
    pub fn restore(fixture: &Fixture, name: &str) -> Result<Self> {
        let disk = fixture.file(&format!("disk-{name}"));
        fs::copy(fixture.file("disk"), disk)?;
        let arguments = ["-S", "-incoming", "defer", "-global", "migration.send-configuration=off"];
        let mut machine = Self::start(fixture, name, Memory::Private, &arguments)?;
        let uri = format!("exec:cat {}", machine.state.display());
        machine.command("migrate-incoming", &serde_json::json!({ "uri": uri }))?;
        let deadline = Instant::now() + TIMEOUT;
        while machine.command("query-migrate", &serde_json::json!({}))?["status"] != "completed" {
            ensure!(Instant::now() < deadline, "the state was never loaded");
            std::thread::sleep(Duration::from_millis(2));
        }
        machine.command("cont", &serde_json::json!({}))?;
        Ok(machine)
    }

    fn start(fixture: &Fixture, name: &str, memory: Memory, more: &[&str]) -> Result<Self> {
        let network = Network::new(&format!("torpor-guest-{}-{name}", std::process::id()))?;
        let (base, state) = (fixture.file("memory"), fixture.file("state"));
        let disk = match memory {
            Memory::Shared => fixture.file("disk"),
            Memory::Private => fixture.file(&format!("disk-{name}")),
        };
        let (socket, console) =
            (fixture.file(&format!("{name}.qmp")), fixture.file(&format!("{name}.console")));
        let share = if memory == Memory::Shared { "on" } else { "off" };
        let process = Command::new("ip")
            .args(["netns", "exec", &network.name, "qemu-system-x86_64"])
            .args(["-M", "microvm,memory-backend=m0,x-option-roms=off", "-accel", "tcg,thread=multi"])
            .args(["-cpu", "max", "-smp", "1", "-m", "256M", "-object"])
            .arg(format!("memory-backend-file,id=m0,size=256M,share={share},mem-path={}", base.display()))
            .arg("-kernel")
            .arg(&fixture.kernel)
            .arg("-initrd")
            .arg(&fixture.initramfs)
            .args(["-append", &fixture.cmdline])
            .arg("-drive")
            .arg(format!("id=d0,file={},format=raw,if=none", disk.display()))
            .args(["-device", "virtio-blk-device,drive=d0"])
            .args(["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"])
            .args(["-device", "virtio-net-device,netdev=n0,mac=06:00:a9:fe:64:02"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial"])
            .arg(format!("file:{}", console.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start QEMU")?;
        // From here on the guard ends the process.
        let process = Engine(process);
        let control = connect_control(&socket)?;
        let mut machine = Self { process, control, network, memory: base, state, console };
        machine.read_answer()?;
        machine.command("qmp_capabilities", &serde_json::json!({}))?;
        Ok(machine)
    }

    /// Pauses the machine and writes its device state; the memory file is the memory.
    pub fn snapshot(mut self) -> Result<()> {
        self.command("stop", &serde_json::json!({}))?;
        let filename = self.state.display().to_string();
        self.command("xen-save-devices-state", &serde_json::json!({ "filename": filename }))?;
        ensure!(fs::metadata(&self.memory)?.len() == 256 << 20);
        Ok(())
    }

    fn command(&mut self, name: &str, arguments: &serde_json::Value) -> Result<serde_json::Value> {
        let command = serde_json::json!({ "execute": name, "arguments": arguments });
        writeln!(self.control, "{command}")?;
        loop {
            let answer = self.read_answer()?;
            if let Some(error) = answer.get("error") {
                bail!("{name}: {error}");
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    fn read_answer(&mut self) -> Result<serde_json::Value> {
        // One byte at a time: a buffered reader would swallow the next answer.
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.control.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(serde_json::from_slice(&line)?)
    }

    /// CPU time the engine has used; unlike a clock, other work on the host does not change it.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.0.id()))? {
            // "<ns running> <ns waiting> <slices>"
            let times = fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += times.split(' ').next().context("schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// A connection to a port of the guest.
    pub async fn connect(&self, port: u16) -> Result<tokio::net::TcpStream> {
        let stream = self.network.connect(port, TIMEOUT)?;
        stream.set_nonblocking(true)?;
        Ok(tokio::net::TcpStream::from_std(stream)?)
    }

    /// A connection as soon as the guest takes one.
    pub async fn connect_when_up(&self, port: u16) -> Result<tokio::net::TcpStream> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.network.connect(port, Duration::from_millis(200)) {
                Ok(stream) => {
                    stream.set_nonblocking(true)?;
                    return Ok(tokio::net::TcpStream::from_std(stream)?);
                }
                Err(error) if Instant::now() > deadline => {
                    let console = fs::File::open(&self.console).map(BufReader::new)?;
                    let console: Vec<_> = console.lines().map_while(Result::ok).collect();
                    return Err(error.context(console.join("\n")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// A connection to a port of guest loopback, and the relay's word on it.
    pub async fn relayed(&self, port: u16) -> Result<(Option<RelayAnswer>, tokio::net::TcpStream)> {
        let mut stream = self.connect(1025).await?;
        stream.write_all(&port.to_be_bytes()).await?;
        let answer = tokio::time::timeout(TIMEOUT, stream.read_u8()).await??;
        Ok((RelayAnswer::from_byte(answer), stream))
    }
}
