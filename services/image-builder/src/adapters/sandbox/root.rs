//! The sandbox's root file system.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::{Bind, IDS, Spec};

/// Parts of the toolbox's `/etc` that programs need.
const ETC: [&str; 10] = [
    "alternatives",
    "ca-certificates",
    "group",
    "ld.so.cache",
    "mke2fs.conf",
    "nsswitch.conf",
    "passwd",
    "protocols",
    "services",
    "ssl",
];
/// What else of the system is needed, as links or directories.
const SYSTEM: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DIRECTORIES: [&str; 11] =
    ["etc", "mnt", "opt", "proc", "sys", "dev", "run", "tmp", "var", "var/tmp", "root"];
/// The root holds little: what is large is bound into it.
const ROOT_OPTIONS: &str = "mode=755,size=256m,nr_inodes=100k";

/// Makes the root and moves this process into it; the machine's own file system
/// is out of reach afterwards. Needs a mount namespace of our own.
pub(super) fn enter(spec: &Spec) -> io::Result<()> {
    debug_assert!(spec.uid_base >= IDS);
    plain("", Path::new("/"), "", MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let root = &spec.root;
    let owner = format!("{ROOT_OPTIONS},uid={0},gid={0}", spec.uid_base);
    plain("tmpfs", root, "tmpfs", MsFlags::MS_NOSUID, Some(&owner))?;
    for directory in DIRECTORIES {
        make_directory(&root.join(directory), spec.uid_base)?;
    }
    for name in SYSTEM {
        let (source, place) = (spec.toolbox.join(name), Path::new("/").join(name));
        match fs::read_link(&source) {
            Ok(target) => symlink(target, root.join(name))?,
            Err(_) if source.is_dir() => bind(root, &Bind::read_only(source, place), spec.uid_base)?,
            Err(_) => {}
        }
    }
    bind(root, &Bind::read_only(spec.toolbox.join("usr"), "/usr"), spec.uid_base)?;
    for name in ETC {
        let (source, place) = (spec.toolbox.join("etc").join(name), Path::new("/etc").join(name));
        if source.exists() {
            bind(root, &Bind::read_only(source, place), spec.uid_base)?;
        }
    }
    symlink("/run", root.join("var/run"))?;
    for (path, (text, is_program)) in &spec.files {
        let place = root.join(path.strip_prefix("/").unwrap_or(path));
        make_directory(place.parent().unwrap_or(root), spec.uid_base)?;
        fs::write(&place, text)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(if *is_program { 0o755 } else { 0o644 }))?;
    }
    let resolvers: String = spec.resolvers.iter().map(|address| format!("nameserver {address}\n")).collect();
    fs::write(root.join("etc/resolv.conf"), resolvers)?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    for name in DEVICES {
        let device = Path::new("/dev").join(name);
        bind(root, &Bind::writable(&device, &device), spec.uid_base)?;
    }
    let locked_down = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // A full view of proc and sys is what lets the next stages mount their own.
    plain("proc", &root.join("proc"), "proc", locked_down, None)?;
    plain("sysfs", &root.join("sys"), "sysfs", locked_down | MsFlags::MS_RDONLY, None)?;
    // Steps are bounded by the build's control groups, from outside: nobody makes groups in here.
    plain("tmpfs", &root.join("sys/fs/cgroup"), "tmpfs", locked_down | MsFlags::MS_RDONLY, Some("size=4k"))?;
    for wanted in &spec.binds {
        bind(root, wanted, spec.uid_base)?;
    }
    chdir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

/// Mounts what belongs to the new pid and user namespaces.
pub(super) fn finish() -> io::Result<()> {
    let locked_down = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    plain("proc", Path::new("/proc"), "proc", locked_down, None)?;
    for directory in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(directory)?;
    }
    let terminals = "newinstance,ptmxmode=0666,mode=0620";
    plain(
        "devpts",
        Path::new("/dev/pts"),
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some(terminals),
    )?;
    plain("tmpfs", Path::new("/dev/shm"), "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=64m"))?;
    symlink("pts/ptmx", "/dev/ptmx")?;
    symlink("/proc/self/fd", "/dev/fd")?;
    for (number, name) in ["stdin", "stdout", "stderr"].into_iter().enumerate() {
        symlink(format!("/proc/self/fd/{number}"), Path::new("/dev").join(name))?;
    }
    Ok(())
}

fn bind(root: &Path, bind: &Bind, owner: u32) -> io::Result<()> {
    let place = root.join(bind.target.strip_prefix("/").unwrap_or(&bind.target));
    let source = bind.source.canonicalize()?;
    if source.is_dir() {
        make_directory(&place, owner)?;
    } else {
        if let Some(parent) = place.parent() {
            make_directory(parent, owner)?;
        }
        fs::write(&place, "")?;
    }
    let described = |error: nix::Error| {
        io::Error::other(format!("cannot make {} visible: {error}", bind.source.display()))
    };
    mount(Some(&source), &place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(described)?;
    if !bind.writable {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        mount(None::<&str>, &place, None::<&str>, flags | MsFlags::MS_NODEV, None::<&str>)
            .map_err(described)?;
    }
    Ok(())
}

fn make_directory(path: &Path, owner: u32) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut next = Some(path);
    while let Some(directory) = next.filter(|directory| !directory.exists()) {
        missing.push(directory);
        next = directory.parent();
    }
    for directory in missing.into_iter().rev() {
        fs::create_dir(directory)?;
        std::os::unix::fs::chown(directory, Some(owner), Some(owner))?;
    }
    Ok(())
}

fn plain(source: &str, target: &Path, kind: &str, flags: MsFlags, data: Option<&str>) -> io::Result<()> {
    mount(Some(source), target, Some(kind), flags, data)
        .map_err(|error| io::Error::other(format!("cannot mount {kind} on {}: {error}", target.display())))
}
