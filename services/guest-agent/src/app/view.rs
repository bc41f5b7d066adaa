//! The app's view of the guest: its own mount and cgroup namespaces, a /proc with only
//! its own processes, and for apps without every capability Docker's /dev, read-only
//! /sys and hidden corners of /proc. The agent stays out of sight.

use std::fs;
use std::os::unix::fs::symlink;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Device nodes of Docker's /dev: name, major, minor.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Paths that an app without every capability sees read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files that it sees empty.
const HIDDEN: [&str; 4] = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats"];

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Makes the view for this process and its children.
pub fn make(all_capabilities: bool) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .map_err(|error| format!("make namespaces: {error}"))?;
    // Nothing the app mounts reaches the agent, and nothing of the agent's the app.
    put(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    put(Some("proc"), "/proc", Some("proc"), PLAIN, None)?;
    umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).map_err(|error| format!("hide cgroups: {error}"))?;
    if all_capabilities {
        return put(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), PLAIN, None);
    }
    put(None, "/sys", None, PLAIN | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None)?;
    put(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), PLAIN | MsFlags::MS_RDONLY, None)?;
    make_devices()?;
    for path in READ_ONLY.iter().filter(|path| fs::symlink_metadata(path).is_ok()) {
        put(Some(path), path, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
        put(None, path, None, PLAIN | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None)?;
    }
    for path in HIDDEN.iter().filter(|path| fs::symlink_metadata(path).is_ok()) {
        put(Some("/dev/null"), path, None, MsFlags::MS_BIND, None)?;
    }
    Ok(())
}

/// A /dev with what containers have and without the disk.
fn make_devices() -> Result<(), String> {
    // The parts already mounted on /dev move into the new one; the staging place is
    // a directory of the agent's own tmpfs.
    let stage = "/run/torpor/dev";
    fs::create_dir_all(stage).map_err(|error| format!("make {stage}: {error}"))?;
    put(
        Some("tmpfs"),
        stage,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME,
        Some("mode=755,size=65536k"),
    )?;
    for (name, major, minor) in DEVICES {
        let path = format!("{stage}/{name}");
        let old = umask_off();
        let made =
            mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor));
        nix::sys::stat::umask(old);
        made.map_err(|error| format!("make {path}: {error}"))?;
    }
    for (name, target) in LINKS {
        symlink(target, format!("{stage}/{name}")).map_err(|error| format!("link {name}: {error}"))?;
    }
    for inner in ["pts", "shm", "mqueue"] {
        let target = format!("{stage}/{inner}");
        fs::create_dir(&target).map_err(|error| format!("make {target}: {error}"))?;
        put(Some(&format!("/dev/{inner}")), &target, None, MsFlags::MS_MOVE, None)?;
    }
    put(Some(stage), "/dev", None, MsFlags::MS_MOVE, None)?;
    let _ = fs::remove_dir(stage);
    Ok(())
}

fn umask_off() -> Mode {
    nix::sys::stat::umask(Mode::empty())
}

fn put(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), String> {
    mount(source, target, kind, flags, data).map_err(|error| format!("mount {target}: {error}"))
}
