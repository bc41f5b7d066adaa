//! The hosts' data directories: on XFS with reflinks, made in a sparse file and
//! loop-mounted where the data directory is not on such a file system already.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

use super::files;
use super::plan::{Plan, users};
use super::prerequisites::find;
use crate::error::{CliError, Kind};
use crate::output;

const HOST_DISK_BYTES_MIN: u64 = 2 << 30;
/// Share of the free space that the hosts' disks may promise, in percent.
const FREE_SHARE_PERCENT: u64 = 80;
/// What hosts leave to etcd, S3 and the builder of the disk that they share with them: a part of it, in percent, within bounds.
const LEFT_TO_OTHERS_PERCENT: u64 = 5;
const LEFT_TO_OTHERS_BYTES: RangeInclusive<u64> = 2 << 30..=4 << 30;
/// File with the number of etcd's members, in the data directory.
const ETCD_MEMBERS: &str = "etcd-members";
/// How long a mount may stay busy after everything has stopped.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(10);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(100);

/// Makes every directory of the fleet, with owner and mode.
pub fn directories(plan: &Plan) -> Result<(), CliError> {
    if let Some(parent) = plan.data_dir.parent() {
        std::fs::create_dir_all(parent).map_err(|error| files::named(parent, &error))?;
    }
    // Passable but not readable: the unprivileged components reach their own part.
    files::directory(&plan.data_dir, 0o711, None)?;
    for (name, mode, owner) in [
        ("run", 0o700, None),
        ("logs", 0o700, None),
        ("bin", 0o755, None),
        ("hosts", 0o711, None),
        ("s3", 0o700, Some(users::S3)),
        ("audit", 0o700, Some(users::EDGE_PROXY)),
    ] {
        files::directory(&plan.path(name), mode, owner)?;
    }
    for number in 1..=plan.builders {
        files::directory(&plan.builder_dir(number), 0o700, None)?;
    }
    settle_etcd_members(plan)?;
    for number in 1..=plan.etcd_members {
        files::directory(&plan.etcd_dir(number), 0o700, Some(users::ETCD))?;
    }
    Ok(())
}

/// Keeps the number of etcd's members for as long as the data directory lives: a member that knows the others cannot be
/// started as if it were alone, and one that is alone knows of no others.
///
/// The number is written before the first member is started. When `torpor up` dies between the two, the next one finds the
/// number, and the members form their cluster then.
fn settle_etcd_members(plan: &Plan) -> Result<(), CliError> {
    let file = plan.path(ETCD_MEMBERS);
    let wanted = plan.etcd_members;
    let settled = match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map_err(|_| {
            CliError::failed(format!("{} does not say how many members etcd has", file.display())).next(
                format!(
                    "write that number into it: ls -d {}*/member counts them",
                    plan.etcd_dir(1).display()
                ),
            )
        })?,
        // Of a fleet from before there was a choice.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && plan.etcd_dir(1).join("member").is_dir() =>
        {
            1
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            files::write_public(&file, format!("{wanted}\n").as_bytes())?;
            wanted
        }
        Err(error) => return Err(files::named(&file, &error).into()),
    };
    if settled == wanted {
        return Ok(());
    }
    let message = format!(
        "the fleet in {} was made with --etcd-members {settled} and cannot be started with {wanted}: its records would be \
         in some of the members only",
        plan.data_dir.display()
    );
    Err(CliError::new(Kind::Conflict, message)
        .next(format!("start it with --etcd-members {settled}, or another fleet in another --data-dir")))
}

/// Copies our programs into the data directory: the unprivileged components need not be able to read wherever
/// they were built, and building anew does not change what runs.
pub fn install_programs(plan: &Plan) -> Result<(), CliError> {
    for program in super::components::programs(plan) {
        let (from, to) = (plan.binaries.join(program), plan.path("bin").join(program));
        let source = std::fs::metadata(&from).map_err(|error| files::named(&from, &error))?;
        let current = std::fs::metadata(&to).ok();
        let same = current.is_some_and(|current| {
            current.len() == source.len() && current.modified().ok() == source.modified().ok()
        });
        if same || from == to {
            continue;
        }
        // A rename, because a program that runs cannot be written.
        let temporary = to.with_extension("new");
        std::fs::copy(&from, &temporary).map_err(|error| files::named(&temporary, &error))?;
        if let Ok(modified) = source.modified() {
            File::options().write(true).open(&temporary)?.set_modified(modified)?;
        }
        std::fs::rename(&temporary, &to)?;
    }
    Ok(())
}

/// Mounts (and on the first time makes) the data directory of every host.
pub fn mount_hosts(plan: &Plan) -> Result<(), CliError> {
    for number in 1..=plan.hosts {
        let (directory, image) = (plan.host_dir(number), image(plan, number));
        files::directory(&directory, 0o711, None)?;
        if mounts_below(&directory)?.contains(&directory) {
            continue;
        }
        if !image.is_file() {
            if has_reflinks(&plan.path("hosts")) {
                continue;
            }
            make_image(plan, &image)?;
        }
        let program = find("mount").unwrap_or_else(|| "/bin/mount".into());
        let arguments = ["-t", "xfs", "-o", "loop,nodev,nosuid,noatime"];
        run(Command::new(program).args(arguments).arg(&image).arg(&directory)).map_err(|failure| {
            failure.next("does this kernel have XFS? it is needed unless the data directory is on a reflink file system")
        })?;
    }
    Ok(())
}

fn image(plan: &Plan, number: u16) -> PathBuf {
    plan.path(&format!("hosts/h{number}.xfs"))
}

/// True when the kernel can share blocks between two files of a directory.
fn has_reflinks(directory: &Path) -> bool {
    let try_it = || -> std::io::Result<()> {
        let source = tempfile::tempfile_in(directory)?;
        source.write_all_at(&[1; 4096], 0)?;
        let target = tempfile::tempfile_in(directory)?;
        rustix::fs::ioctl_ficlone(&target, &source)?;
        Ok(())
    };
    try_it().is_ok()
}

/// Bytes of the data directory's disk that hosts leave to the rest of the fleet.
pub fn left_to_others(plan: &Plan) -> Result<u64, CliError> {
    let stats = rustix::fs::statvfs(&plan.data_dir).map_err(std::io::Error::from)?;
    Ok(part_for_others(stats.f_blocks * stats.f_frsize))
}

fn part_for_others(disk: u64) -> u64 {
    (disk / 100 * LEFT_TO_OTHERS_PERCENT).clamp(*LEFT_TO_OTHERS_BYTES.start(), *LEFT_TO_OTHERS_BYTES.end())
}

/// What a new host's disk may have of `free` bytes, when so many hosts have none yet and those that have may still take
/// `promised` bytes.
fn share(free: u64, left: u64, promised: u64, hosts: u64) -> u64 {
    free.saturating_sub(left).saturating_sub(promised) / 100 * FREE_SHARE_PERCENT / hosts.max(1)
}

/// Bytes that the hosts' files may still take, and how many hosts have none.
fn promised(plan: &Plan) -> (u64, u64) {
    let files = (1..=plan.hosts).map(|number| std::fs::metadata(image(plan, number)));
    files.fold((0, 0), |(bytes, without), file| match file {
        Ok(file) => (bytes + file.len().saturating_sub(file.blocks() * 512), without),
        Err(_) => (bytes, without + 1),
    })
}

/// A sentence when the hosts' disks, made when there was more room, may take more than is left.
pub fn over_promised(plan: &Plan) -> Result<Option<String>, CliError> {
    let (free, left, (promised, _)) = (free(plan)?, left_to_others(plan)?, promised(plan));
    Ok((promised > free.saturating_sub(left)).then(|| {
        format!(
            "the hosts' disks are {} larger than what {} has free beside the {} for etcd and S3; hosts take nothing new \
             before that is reached",
            output::bytes(promised - free.saturating_sub(left)),
            plan.data_dir.display(),
            output::bytes(left)
        )
    }))
}

fn free(plan: &Plan) -> Result<u64, CliError> {
    let stats = rustix::fs::statvfs(&plan.data_dir).map_err(std::io::Error::from)?;
    Ok(stats.f_bavail * stats.f_frsize)
}

fn make_image(plan: &Plan, image: &Path) -> Result<(), CliError> {
    let (free, left, (promised, hosts)) = (free(plan)?, left_to_others(plan)?, promised(plan));
    let size = plan.host_disk_bytes.min(share(free, left, promised, hosts));
    if size < HOST_DISK_BYTES_MIN {
        return Err(CliError::new(
            Kind::Failed,
            format!(
                "{} has only {} free, of which {} are left to etcd and S3 and {} belong to other hosts",
                plan.data_dir.display(),
                output::bytes(free),
                output::bytes(left),
                output::bytes(promised)
            ),
        )
        .next(format!("free space; each host needs at least {}", output::bytes(HOST_DISK_BYTES_MIN))));
    }
    let temporary = image.with_extension("new");
    File::create(&temporary)
        .and_then(|file| file.set_len(size))
        .map_err(|error| files::named(&temporary, &error))?;
    let program = find("mkfs.xfs").unwrap_or_else(|| "/sbin/mkfs.xfs".into());
    run(Command::new(program).args(["-q", "-f", "-K", "-m", "reflink=1"]).arg(&temporary))?;
    // Dying before this leaves a file that the next start makes anew.
    std::fs::rename(&temporary, image)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<(), CliError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|error| CliError::failed(format!("cannot run {program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(CliError::failed(format!("{program} failed: {said}")))
}

/// Takes every mount below the data directory away, deepest first; its loop
/// devices go with them. Returns what could not be unmounted, a sentence each.
pub fn unmount_all(data_dir: &Path) -> Vec<String> {
    let started = Instant::now();
    loop {
        let mounts = match mounts_below(data_dir) {
            Ok(mounts) => mounts,
            Err(failure) => return vec![failure.message],
        };
        let mut stuck = Vec::new();
        for mount in mounts.iter().rev() {
            if let Err(error) = umount2(mount, MntFlags::UMOUNT_NOFOLLOW) {
                stuck.push(format!("cannot unmount {}: {error}", mount.display()));
            }
        }
        if stuck.is_empty() || started.elapsed() > UNMOUNT_TIMEOUT {
            return stuck;
        }
        std::thread::sleep(UNMOUNT_PAUSE);
    }
}

/// Mount points at or below a directory, in the order they were mounted.
pub fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, CliError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&table).filter(|point| point.starts_with(directory)).collect())
}

fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    // Field 5; spaces and the like are written in octal.
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| {
        let mut text = Vec::with_capacity(field.len());
        let mut rest = field.as_bytes();
        while let [first, tail @ ..] = rest {
            let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
            match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                Some(code) if *first == b'\\' => {
                    text.push(code);
                    rest = &tail[3..];
                }
                _ => {
                    text.push(*first);
                    rest = tail;
                }
            }
        }
        PathBuf::from(std::ffi::OsString::from(String::from_utf8_lossy(&text).into_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_etcds_members_is_settled_by_the_first_start() {
        let directory = tempfile::tempdir().unwrap();
        let plan = |members: &str| Plan {
            data_dir: directory.path().to_owned(),
            ..crate::fleet::plan::tests::plan(&["--etcd-members", members])
        };
        settle_etcd_members(&plan("3")).unwrap();
        settle_etcd_members(&plan("3")).unwrap();
        let refused = settle_etcd_members(&plan("1")).expect_err("another number");
        assert!(refused.message.contains("--etcd-members 3") && refused.kind == Kind::Conflict, "{refused}");
        // A fleet from before there was a choice.
        std::fs::remove_file(directory.path().join(ETCD_MEMBERS)).unwrap();
        std::fs::create_dir_all(directory.path().join("etcd/member")).unwrap();
        let refused = settle_etcd_members(&plan("3")).expect_err("it has one");
        assert!(refused.message.contains("--etcd-members 1"), "{refused}");
        settle_etcd_members(&plan("1")).unwrap();
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table = "22 1 0:20 / /data/hosts/h1 rw - xfs /dev/loop0 rw\n23 1 0:21 / /data/a\\040b rw - tmpfs tmpfs rw";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/data/hosts/h1"), Path::new("/data/a b")]);
    }

    #[test]
    fn hosts_leave_room_for_etcd_and_s3_and_promise_nothing_twice() {
        const GIB: u64 = 1 << 30;
        assert_eq!(part_for_others(20 * GIB), 2 * GIB);
        assert_eq!(part_for_others(60 * GIB) / GIB, 2);
        assert_eq!(part_for_others(1000 * GIB), 4 * GIB);
        assert_eq!(share(104 * GIB, 4 * GIB, 0, 2) / GIB, 40);
        // The first of two has been made, and has written nothing yet.
        assert_eq!(share(104 * GIB, 4 * GIB, 40 * GIB, 1) / GIB, 47);
        assert_eq!(share(104 * GIB, 4 * GIB, 200 * GIB, 1), 0);
        assert_eq!(share(3 * GIB, 4 * GIB, 0, 1), 0);
    }

    #[test]
    fn the_root_is_mounted_and_nothing_below_a_fresh_directory() {
        assert!(mounts_below(Path::new("/")).unwrap().contains(&PathBuf::from("/")));
        let directory = tempfile::tempdir().unwrap();
        assert!(mounts_below(directory.path()).unwrap().is_empty());
    }
}
