//! What makes a clone a microVM of its own: the kernel's random numbers, the wall
//! clock, host name, machine id, its id and its credentials.
//!
//! [`Identity::repair`] is on every launch's and wake's path, on a CPU that is
//! cold. So what has not changed is not written, and files are written without system
//! calls (see [`files`]): a wake is one clock call and two ioctls.
//!
//! Clocks other than the wall clock cannot be moved from inside a guest; they stand
//! still while the microVM sleeps.
#![allow(unsafe_code)] // the random device is spoken to with ioctls

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use api::guest::v1::RepairIdentityRequest;
use guest_link::{ENTROPY_BYTES_MAX, ENTROPY_BYTES_MIN};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::boot::mounts::RUN_DIRECTORY;
use crate::boot::{self, Step as _};

mod files;

pub use files::ResolverFile;
use files::{MappedFile, write_credentials};

/// The host name until the first repair.
const FIRST_HOST_NAME: &str = "localhost";

/// Longest host name, in bytes (the kernel's limit is 64).
const HOST_NAME_BYTES_MAX: usize = 63;

/// Size of /etc/hostname, in bytes.
const HOST_NAME_FILE_BYTES: usize = HOST_NAME_BYTES_MAX + 1;

/// Size of /etc/hosts, in bytes.
const HOSTS_FILE_BYTES: usize = 256;

/// Size of the file with the microVM's id, in bytes.
const MICROVM_ID_FILE_BYTES: usize = 128;

/// Hex digits of a machine id.
const MACHINE_ID_DIGITS: usize = 32;

/// Why a repair failed. The host stops the microVM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request breaks a rule; nothing was changed.
    #[error("{0}")]
    Invalid(&'static str),
    /// A step failed; the clone may be half repaired and must not be used.
    #[error("{step}: {source}")]
    Step { step: &'static str, source: io::Error },
}

/// Handles to everything a repair changes, and what it last wrote.
#[derive(Debug)]
pub struct Identity {
    random: File,
    host_name_file: MappedFile,
    hosts_file: MappedFile,
    machine_id_file: MappedFile,
    microvm_id_file: MappedFile,
    host_name: String,
    microvm_id: String,
    /// Number of the last repair that succeeded.
    restore_count: u64,
}

impl Identity {
    /// Puts the identity files in memory and binds them over the image's.
    pub fn prepare() -> Result<Self, boot::Error> {
        let machine_id = match fs::read_to_string("/etc/machine-id") {
            Ok(id) if valid_machine_id(id.trim_end()) => id.trim_end().to_owned(),
            _ => random_machine_id()?,
        };
        let credentials = Path::new(RUN_DIRECTORY).join("credentials");
        fs::DirBuilder::new().mode(0o700).create(&credentials).step("make the credentials directory")?;
        nix::unistd::sethostname(FIRST_HOST_NAME).step("set the host name")?;
        Ok(Self {
            random: File::open("/dev/urandom").step("open /dev/urandom")?,
            host_name_file: MappedFile::create_bound("hostname", HOST_NAME_FILE_BYTES, FIRST_HOST_NAME)?,
            hosts_file: MappedFile::create_bound("hosts", HOSTS_FILE_BYTES, &hosts(FIRST_HOST_NAME))?,
            machine_id_file: MappedFile::create_bound("machine-id", MACHINE_ID_DIGITS + 1, &machine_id)?,
            microvm_id_file: MappedFile::create("microvm-id", MICROVM_ID_FILE_BYTES, "")?,
            host_name: FIRST_HOST_NAME.to_owned(),
            microvm_id: String::new(),
            restore_count: 0,
        })
    }

    /// Gives the clone its identity; false when this restore was repaired already.
    ///
    /// `owner` is the app's user and group id: who may read the credentials.
    pub fn repair(&mut self, request: &RepairIdentityRequest, owner: (u32, u32)) -> Result<bool, Error> {
        check(request)?;
        if request.restore_count == self.restore_count {
            return Ok(false);
        }
        if request.restore_count < self.restore_count {
            return Err(Error::Invalid("restore_count is lower than that of an earlier repair"));
        }
        self.reseed(&request.entropy)?;
        set_clock(request.wall_clock.as_ref())?;
        if self.host_name != request.host_name {
            nix::unistd::sethostname(&request.host_name).map_err(failed("set the host name"))?;
            self.host_name_file.replace(&request.host_name).map_err(failed("write the host name"))?;
            self.hosts_file.replace(&hosts(&request.host_name)).map_err(failed("write the hosts file"))?;
            self.host_name.clone_from(&request.host_name);
        }
        if !request.machine_id.is_empty() {
            self.machine_id_file.replace(&request.machine_id).map_err(failed("write the machine id"))?;
        }
        if self.microvm_id != request.microvm_id {
            self.microvm_id_file.replace(&request.microvm_id).map_err(failed("write the microVM id"))?;
            self.microvm_id.clone_from(&request.microvm_id);
        }
        if !request.credentials.is_empty() {
            write_credentials(&request.credentials, owner).map_err(failed("write the credentials"))?;
        }
        // Last: a repair that failed half way is done again in full.
        self.restore_count = request.restore_count;
        Ok(true)
    }

    /// Mixes the host's bytes into the kernel's generator and has it draw a new key at
    /// once; every later random number in the guest depends on them.
    fn reseed(&self, entropy: &[u8]) -> Result<(), Error> {
        const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
        const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
        /// `struct rand_pool_info` with room for the most bytes a repair takes.
        #[repr(C)]
        struct PoolInfo {
            entropy_bits: libc::c_int,
            length_bytes: libc::c_int,
            bytes: [u8; ENTROPY_BYTES_MAX],
        }
        let length = libc::c_int::try_from(entropy.len()).expect("checked to be at most ENTROPY_BYTES_MAX");
        let mut pool =
            PoolInfo { entropy_bits: length * 8, length_bytes: length, bytes: [0; ENTROPY_BYTES_MAX] };
        pool.bytes[..entropy.len()].copy_from_slice(entropy);
        let device = self.random.as_raw_fd();
        // SAFETY: the kernel reads the two counts and `length_bytes` bytes after them.
        let added = unsafe { libc::ioctl(device, RNDADDENTROPY, std::ptr::from_ref(&pool)) };
        nix::errno::Errno::result(added).map_err(failed("add entropy"))?;
        // SAFETY: takes no argument.
        let reseeded = unsafe { libc::ioctl(device, RNDRESEEDCRNG) };
        nix::errno::Errno::result(reseeded).map_err(failed("reseed the generator")).map(drop)
    }
}

fn check(request: &RepairIdentityRequest) -> Result<(), Error> {
    let name = &request.host_name;
    let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let checks = [
        (
            (ENTROPY_BYTES_MIN..=ENTROPY_BYTES_MAX).contains(&request.entropy.len()),
            "entropy must be 64 to 512 bytes",
        ),
        (request.restore_count > 0, "restore_count starts at 1"),
        (
            !name.is_empty() && name.len() <= HOST_NAME_BYTES_MAX && name.bytes().all(label),
            "host_name must be 1 to 63 letters, digits, '-' or '.'",
        ),
        (
            request.machine_id.is_empty() || valid_machine_id(&request.machine_id),
            "machine_id must be 32 lower-case hex digits",
        ),
        (request.microvm_id.bytes().all(|byte| byte.is_ascii_graphic()), "microvm_id must be printable"),
    ];
    match checks.into_iter().find(|(holds, _)| !holds) {
        Some((_, message)) => Err(Error::Invalid(message)),
        None => Ok(()),
    }
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step { step, source: source.into() }
}

/// Sets the wall clock.
pub fn set_clock(time: Option<&prost_types::Timestamp>) -> Result<(), Error> {
    let time = time.ok_or(Error::Invalid("wall_clock is missing"))?;
    let valid = time.seconds > 0 && (0..1_000_000_000).contains(&time.nanos);
    if !valid {
        return Err(Error::Invalid("wall_clock is out of range"));
    }
    let time = TimeSpec::new(time.seconds, i64::from(time.nanos));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(failed("set the clock"))
}

fn valid_machine_id(id: &str) -> bool {
    id.len() == MACHINE_ID_DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_machine_id() -> Result<String, boot::Error> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").step("read a random uuid")?;
    Ok(uuid.chars().filter(char::is_ascii_hexdigit).collect())
}

fn hosts(name: &str) -> String {
    let own = if name == FIRST_HOST_NAME { String::new() } else { format!("169.254.100.2\t{name}\n") };
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_before_anything_changes() {
        let good = RepairIdentityRequest {
            entropy: vec![7; 64],
            host_name: "microvm-1".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            restore_count: 1,
            ..RepairIdentityRequest::default()
        };
        assert!(check(&good).is_ok());
        let mut cases = vec![];
        for change in [
            (|request| request.entropy = vec![7; 63]) as fn(&mut RepairIdentityRequest),
            |request| request.entropy = vec![7; 513],
            |request| request.restore_count = 0,
            |request| request.host_name.clear(),
            |request| request.host_name = "a".repeat(64),
            |request| request.host_name = "a b".to_owned(),
            |request| request.host_name = "a\nb".to_owned(),
            |request| request.machine_id = "0123".to_owned(),
            |request| request.machine_id.make_ascii_uppercase(),
            |request| request.microvm_id = "a\nb".to_owned(),
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            cases.push(check(&bad).unwrap_err().to_string());
        }
        assert_eq!(cases.len(), 10);
    }

    #[test]
    fn hosts_name_the_guest() {
        assert!(hosts("box").ends_with("169.254.100.2\tbox\n"));
        assert!(!hosts("localhost").contains("169.254"));
    }
}
