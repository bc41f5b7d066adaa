//! Capabilities of the app: Docker's default set, or all.
#![allow(unsafe_code)] // capabilities are set with prctl and capset

use std::io;

use nix::errno::Errno;

/// Docker's default set, by kernel number.
const DEFAULT: [(u32, &str); 14] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (10, "CAP_NET_BIND_SERVICE"),
    (13, "CAP_NET_RAW"),
    (18, "CAP_SYS_CHROOT"),
    (27, "CAP_MKNOD"),
    (29, "CAP_AUDIT_WRITE"),
    (31, "CAP_SETFCAP"),
];

/// Capability numbers that any kernel may know.
const NUMBERS_MAX: u32 = 64;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The default set as a bit mask.
pub fn default_mask() -> u64 {
    DEFAULT.iter().fold(0, |mask, (number, _)| mask | 1 << number)
}

/// Takes everything outside `mask` out of the bounding set, so that no exec can bring it back.
pub fn bound(mask: u64) -> io::Result<()> {
    for number in (0..NUMBERS_MAX).filter(|number| mask & (1 << number) == 0) {
        // SAFETY: prctl with integer arguments.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match Errno::result(dropped) {
            // Past the last one this kernel knows.
            Err(Errno::EINVAL) => break,
            other => other?,
        };
    }
    Ok(())
}

/// Sets the permitted and effective sets to `mask`; inheritable and ambient to nothing.
pub fn set(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // SAFETY: prctl with integer arguments. A kernel without ambient sets has none to clear.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let word = |word: u64| Data { effective: word as u32, permitted: word as u32, inheritable: 0 };
    let data = [word(mask & 0xffff_ffff), word(mask >> 32)];
    // SAFETY: version 3 takes a header and two data words, which live until the call returns.
    let set = unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) };
    Errno::result(set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_is_dockers() {
        // CapEff of `docker run debian grep Cap /proc/self/status`.
        assert_eq!(default_mask(), 0x0000_0000_a804_25fb);
    }
}
