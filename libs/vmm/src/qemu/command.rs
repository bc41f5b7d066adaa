//! QEMU's command line.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::accelerator::Platform;
use crate::engine::{MachineSpec, NetworkSpec};
use crate::error::{Error, Result};

/// Name of the console's ring towards the control socket.
pub(super) const CONSOLE: &str = "console0";
/// Size of the console's ring; QEMU wants a power of two.
pub(super) const CONSOLE_BYTES: usize = 64 << 10;
const NAME_CHARS_MAX: usize = 64;
/// Linux's limit on the name of a network device.
const TAP_CHARS_MAX: usize = 15;
const MEMORY_MIB_MIN: u32 = 64;
const VCPUS_MAX: u32 = 64;

/// What the process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Runs at once; its memory is the file.
    Boot,
    /// Waits for state; its memory is a private copy of the file.
    Restore,
}

pub(super) struct Command<'a> {
    pub(super) platform: &'a Platform,
    pub(super) spec: &'a MachineSpec,
    pub(super) memory: &'a Path,
    pub(super) mode: Mode,
    /// Listening control socket.
    pub(super) control: BorrowedFd<'a>,
    /// The disk for reading and writing, and for reading only.
    pub(super) disk: &'a [OwnedFd; 2],
}

/// Refuses what would mean something else on a command line.
pub(super) fn check(spec: &MachineSpec) -> Result<()> {
    let plain = |text: &str, max: usize| {
        (1..=max).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !text.starts_with(['-', '.'])
    };
    let network = |holds: &dyn Fn(&NetworkSpec) -> bool| spec.network.as_ref().is_none_or(holds);
    let rules = [
        (plain(&spec.name, NAME_CHARS_MAX), "the name has other characters than letters, digits, -, _ and ."),
        ((1..=VCPUS_MAX).contains(&spec.vcpu_count), "the number of virtual CPUs is out of range"),
        (spec.memory_mib >= MEMORY_MIB_MIN, "the memory is too small"),
        (network(&|n| plain(&n.tap, TAP_CHARS_MAX)), "the tap device has no valid name"),
        (
            network(&|n| n.netns.as_ref().is_none_or(|name| plain(name, 255))),
            "the network namespace has no valid name",
        ),
        (network(&|n| n.mac[0] & 1 == 0), "the hardware address is a group address"),
        (!spec.cmdline.contains('\0'), "the kernel command line holds a zero byte"),
        (
            spec.run_as.is_none_or(|(uid, gid)| uid != 0 && gid != 0),
            "the process cannot drop its privileges to root",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err(Error::Spec((*rule).into())),
        None => Ok(()),
    }
}

impl Command<'_> {
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let spec = self.spec;
        let mut line = Line::default();
        line.option("-name", &spec.name);
        line.option("-M", "microvm,memory-backend=m0,x-option-roms=off");
        line.option("-accel", if self.platform.kvm { "kvm" } else { "tcg,thread=multi" });
        line.option("-cpu", "max").option("-smp", spec.vcpu_count.to_string());
        line.option("-m", format!("{}M", spec.memory_mib));
        let share = match self.mode {
            Mode::Boot => "on",
            Mode::Restore if self.platform.read_only_base => "off,readonly=on,rom=off",
            Mode::Restore => "off",
        };
        let backend = format!("memory-backend-file,id=m0,size={}M,share={share},mem-path=", spec.memory_mib);
        line.option("-object", with_path(&backend, self.memory));
        line.option("-kernel", &spec.kernel)
            .option("-initrd", &spec.initramfs)
            .option("-append", self.cmdline());
        self.devices(&mut line);
        line.flag("-nodefaults").flag("-no-user-config").option("-display", "none");
        line.option("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_BYTES}"));
        line.option("-serial", format!("chardev:{CONSOLE}"));
        let control = self.control.as_raw_fd();
        line.option("-chardev", format!("socket,id=qmp0,fd={control},server=on,wait=off"));
        line.option("-mon", "chardev=qmp0,mode=control");
        line.option("-action", "reboot=shutdown,shutdown=pause");
        self.privileges(&mut line);
        if self.mode == Mode::Restore {
            // Device state made without a configuration section; and without -S the guest would run before it is loaded.
            line.flag("-S")
                .option("-incoming", "defer")
                .option("-global", "migration.send-configuration=off");
        }
        line.0
    }

    fn cmdline(&self) -> String {
        match self.platform.tsc_khz {
            Some(khz) => format!("{} tsc_early_khz={khz}", self.spec.cmdline),
            None => self.spec.cmdline.clone(),
        }
    }

    /// The disk is given as open files, because QEMU opens it again after it has dropped its privileges. QEMU's own locks
    /// would make the two files exclude each other; the machine's lock is on the file itself.
    fn devices(&self, line: &mut Line) {
        for file in self.disk {
            line.option("-add-fd", format!("fd={},set=1", file.as_raw_fd()));
        }
        // A full disk stops the guest, which goes on when there is room; a broken disk is an error that the guest sees. What the
        // guest frees becomes a hole.
        let errors = "werror=enospc,rerror=report,discard=unmap";
        line.option(
            "-drive",
            format!("id=d0,file=/dev/fdset/1,format=raw,if=none,file.locking=off,{errors}"),
        );
        line.option("-device", "virtio-blk-device,drive=d0");
        if let Some(network) = &self.spec.network {
            let mac = network.mac.map(|byte| format!("{byte:02x}")).join(":");
            line.option("-netdev", format!("tap,id=n0,ifname={},script=no,downscript=no", network.tap));
            line.option("-device", format!("virtio-net-device,netdev=n0,mac={mac}"));
        }
    }

    /// The filter is in force before privileges are dropped, so together with `-runas` it cannot forbid the dropping; what
    /// is left then is a process without capabilities that can gain none (no_new_privs is set at its start).
    fn privileges(&self, line: &mut Line) {
        match self.spec.run_as {
            Some((uid, gid)) => {
                line.option("-runas", format!("{uid}:{gid}"));
                line.option("-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny");
            }
            None => {
                line.option(
                    "-sandbox",
                    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                );
            }
        }
    }
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn option(&mut self, flag: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(flag.into());
        self.0.push(value.as_ref().into());
        self
    }
}

/// A comma inside an option's value is written twice.
fn with_path(prefix: &str, path: &Path) -> OsString {
    let mut bytes = prefix.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
#[path = "command/tests.rs"]
mod tests;
