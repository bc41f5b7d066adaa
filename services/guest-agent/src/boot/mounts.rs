//! Mounts: what the kernel offers, the root disk, and what a container expects
//! to find. The app's own view is made later, between fork and exec (`app::init`).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout};

use super::{Error, Settings, Step as _};

/// Where the root disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/root-disk";

/// How long the root disk's device may take to appear.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// The agent's directory in the guest, in memory.
pub const RUN_DIRECTORY: &str = "/run/torpor";

pub const APP_CGROUP: &str = "/sys/fs/cgroup/app";

/// Guest memory kept from the app, so that the kernel kills in the app and the agent
/// can still answer, in bytes.
const MEMORY_RESERVE_BYTES: u64 = 24 * 1024 * 1024;

/// Processes kept from the app, so that the agent can still start a thread.
const PROCESS_RESERVE: u64 = 64;

/// One mount: source, target, type, flags, data.
pub fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<(), Error> {
    make_directory(target)?;
    mount(Some(source), target, Some(kind), flags, Some(data)).step(format!("mount {target}"))
}

fn make_directory(path: &str) -> Result<(), Error> {
    fs::create_dir_all(path).step(format!("make {path}"))
}

/// /proc, /sys and /dev in the initramfs; they move to the root disk with it.
pub fn kernel_file_systems() -> Result<(), Error> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("proc", "/proc", "proc", plain, "")?;
    mount_at("sysfs", "/sys", "sysfs", plain, "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")
}

/// Makes the serial console the agent's standard streams.
pub fn adopt_console() -> Result<(), Error> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console").step("open /dev/console")?;
    for done in [dup2_stdin(&console), dup2_stdout(&console), dup2_stderr(&console)] {
        done.step("adopt the console")?;
    }
    if console.as_raw_fd() <= 2 {
        // It took a free place among them itself and must stay open.
        std::mem::forget(console);
    }
    Ok(())
}

/// Mounts the root disk and makes it the root of everything that follows.
pub fn switch_root(settings: &Settings) -> Result<(), Error> {
    wait_for_disk(&settings.root)?;
    // noatime and noinit_itable: a clone's disk should differ by what its app
    // writes, not by what it reads or by background formatting. discard: what the app
    // deletes is free on the host too.
    mount_at(&settings.root, NEW_ROOT, "ext4", MsFlags::MS_NOATIME, "noinit_itable,discard")?;
    for inner in ["/proc", "/sys", "/dev"] {
        let target = format!("{NEW_ROOT}{inner}");
        make_directory(&target)?;
        mount(Some(inner), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .step(format!("move {inner}"))?;
    }
    // The kernel read this file to start us; its pages stay as long as we run.
    let _ = fs::remove_file("/init");
    chdir(NEW_ROOT).step("enter the root disk")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).step("move the root disk")?;
    chroot(".").step("change root")?;
    chdir("/").step("enter the root")
}

fn wait_for_disk(device: &str) -> Result<(), Error> {
    let deadline = Instant::now() + DISK_TIMEOUT;
    loop {
        match fs::metadata(device) {
            Ok(metadata) if metadata.file_type().is_block_device() => return Ok(()),
            _ if Instant::now() > deadline => {
                return Err(io::Error::from(io::ErrorKind::TimedOut)).step(format!("wait for {device}"));
            }
            // The driver announces no event we could wait for this early.
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What a container expects beyond its image: ptys, shared memory, cgroup v2, and the
/// agent's own directory. /run and /tmp stay as the image has them.
pub fn guest_file_systems() -> Result<(), Error> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let data = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    mount_at("shm", "/dev/shm", "tmpfs", data, "mode=1777")?;
    mount_at("mqueue", "/dev/mqueue", "mqueue", plain, "")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", plain, "")?;
    mount_at("torpor", RUN_DIRECTORY, "tmpfs", plain, "mode=0755,size=4m")?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let link = Path::new("/dev").join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).step(format!("link {}", link.display()))?;
    }
    if fs::symlink_metadata("/tmp").is_err() {
        make_directory("/tmp")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        fs::set_permissions("/tmp", mode).step("open /tmp to all")?;
    }
    // As container runtimes do; an image may bring its own.
    let _ = std::os::unix::fs::symlink("/proc/mounts", "/etc/mtab");
    app_cgroup()
}

fn app_cgroup() -> Result<(), Error> {
    for controller in ["+cpu", "+memory", "+pids", "+io"] {
        // Each alone, so that a kernel without one keeps the others.
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", controller);
    }
    make_directory(APP_CGROUP)?;
    for (file, value) in [
        ("memory.max", memory_total().map(|total| total.saturating_sub(MEMORY_RESERVE_BYTES))),
        ("pids.max", threads_max().map(|most| most.saturating_sub(PROCESS_RESERVE))),
    ] {
        if let Some(value) = value {
            let _ = fs::write(format!("{APP_CGROUP}/{file}"), value.to_string());
        }
    }
    Ok(())
}

fn memory_total() -> Option<u64> {
    crate::stats::meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

fn threads_max() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Some(read("/proc/sys/kernel/threads-max")?.min(read("/proc/sys/kernel/pid_max")?))
}
