//! The guest of the suite: Debian's kernel and a shell loop that counts in memory and takes orders from its disk.
//!
//! Every turn it reads the first sector of its disk, says `turn N word WORD` on the console and does what the word says:
//!
//! | word       | order                                                                        |
//! | ---------- | ---------------------------------------------------------------------------- |
//! | `poweroff` | power off                                                                    |
//! | `reboot`   | reboot                                                                       |
//! | `panic`    | make the kernel panic                                                        |
//! | `fill`     | put 24 MiB of noise into memory, once, then say `filled`                     |
//! | `blank`    | overwrite the blob, which was there before the bake, with zeros, then say so |
//! | `sum`      | say `blob` and its checksum                                                  |
//! | `grow`     | write 4 MiB to the disk, from its second MiB on, then say `grown`              |
//! | `give`     | give those back, then say `given`                                            |
//! | `write`    | write `written` to the disk's second sector, then say `wrote`                |

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net; do
    insmod "/modules/$module.ko"
done
yes "this is the blob" | head -c 1048576 >/blob
echo ready
turn=0
last=
while true; do
    turn=$((turn + 1))
    word=$(dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\0')
    echo "turn $turn word $word"
    if [ "$word" != "$last" ]; then
        case $word in
            poweroff) poweroff -f ;;
            reboot) reboot -f ;;
            panic) echo c >/proc/sysrq-trigger ;;
            fill) head -c 25165824 /dev/urandom >/noise; echo filled ;;
            blank) head -c 1048576 /dev/zero | dd of=/blob conv=notrunc bs=65536 2>/dev/null; echo blanked ;;
            sum) echo "blob $(md5sum </blob)" ;;
            grow) dd if=/dev/zero bs=65536 count=64 2>/dev/null | tr '\0' x | dd of=/dev/vda bs=65536 seek=16 oflag=direct iflag=fullblock conv=notrunc 2>/dev/null && echo grown ;;
            give) blkdiscard -o 1048576 -l 4194304 /dev/vda && echo given ;;
            write) echo written | dd of=/dev/vda bs=512 seek=1 count=1 conv=notrunc,sync oflag=direct 2>/dev/null; echo wrote ;;
        esac
        last=$word
    fi
    usleep 20000
done
"#;

/// Size of the guest's disk in bytes, most of it a hole.
const DISK_BYTES: u64 = 8 << 20;
const SECTOR_BYTES: u64 = 512;
const MODULES: [&str; 7] =
    ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net"];

/// Kernel and initramfs in a directory of this test.
pub struct Guest {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

impl Guest {
    pub fn build(directory: &Path) -> Result<Self> {
        let kernel_directory = kernel_directory()?;
        let release = fs::read_to_string(kernel_directory.join("release"))?;
        let root = directory.join("initramfs");
        for name in ["bin", "dev", "proc", "sys", "modules"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("the package busybox-static is needed")?;
        let tree = kernel_directory.join("modules").join(release.trim());
        for module in MODULES {
            let found =
                find(&tree, &format!("{module}.ko"))?.with_context(|| format!("no module {module}"))?;
            fs::copy(found, root.join(format!("modules/{module}.ko")))?;
        }
        fs::write(root.join("init"), INIT)?;
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
        let initramfs = directory.join("initramfs.cpio");
        let packed = Command::new("sh")
            .args(["-c", "find . | cpio --quiet -o -H newc >../initramfs.cpio"])
            .current_dir(&root)
            .status()?;
        ensure!(packed.success(), "cpio failed");
        Ok(Self { kernel: kernel_directory.join("vmlinux"), initramfs })
    }
}

/// `TORPOR_GUEST_KERNEL`, or what `deploy/guest-kernel` makes under the target directory, once for all test processes.
fn kernel_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("TORPOR_GUEST_KERNEL") {
        return Ok(directory.into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = fs::File::create(target.join("guest-kernel.lock"))?;
    lock.lock()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/guest-kernel");
    let directory = target.join("guest-kernel");
    let made =
        Command::new(&script).arg(&directory).status().with_context(|| script.display().to_string())?;
    ensure!(made.success(), "deploy/guest-kernel failed");
    Ok(directory)
}

fn find(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A fresh disk whose first sector holds `word`.
pub fn make_disk(path: &Path, word: &str) -> Result<()> {
    fs::File::create(path)?.set_len(DISK_BYTES)?;
    order(path, word)
}

/// Changes the word on a guest's disk, also under a running guest.
pub fn order(disk: &Path, word: &str) -> Result<()> {
    let mut sector = [0; SECTOR_BYTES as usize];
    sector[..word.len()].copy_from_slice(word.as_bytes());
    fs::File::options().write(true).open(disk)?.write_all_at(&sector, 0)?;
    Ok(())
}

/// What the guest wrote to the second sector.
pub fn written(disk: &Path) -> Result<String> {
    let mut sector = [0; SECTOR_BYTES as usize];
    fs::File::open(disk)?.read_exact_at(&mut sector, SECTOR_BYTES)?;
    Ok(String::from_utf8_lossy(&sector).trim_end_matches('\0').trim().to_owned())
}
