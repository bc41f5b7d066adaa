//! Kernel modules from the initramfs: `/modules/boot.list` names what every guest loads, in order;
//! `/modules/extra.list` what an app with every capability may want (overlay, tun, fuse). The initramfs
//! disappears from sight when the root is switched, so the extra ones are kept as open files.
#![allow(unsafe_code)] // finit_module has no wrapper in libc

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Mutex;

use nix::errno::Errno;

use super::{Error, Step as _};

const DIRECTORY: &str = "/modules";

/// Modules that can still be loaded.
#[derive(Debug, Default)]
pub struct Extra(Mutex<Vec<File>>);

impl Extra {
    /// Loads them, in order, once. Best effort: an app that misses one finds out with an error of its own.
    pub fn load(&self) {
        let files = self.0.lock().map(|mut files| std::mem::take(&mut *files)).unwrap_or_default();
        for file in files {
            let _ = finit_module(&file);
        }
    }
}

/// Loads the modules that every guest needs and takes hold of the extra ones.
pub fn load() -> Result<Extra, Error> {
    for name in list("boot.list")? {
        let path = format!("{DIRECTORY}/{name}");
        let file = File::open(&path).step(format!("open {path}"))?;
        match finit_module(&file) {
            // Built into this kernel, or loaded by another name.
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(error).step(format!("load {path}")),
        }
        // Frees the initramfs's memory for the guest.
        let _ = fs::remove_file(&path);
    }
    let extra = list("extra.list")?;
    let open = extra.iter().filter_map(|name| File::open(format!("{DIRECTORY}/{name}")).ok());
    Ok(Extra(Mutex::new(open.collect())))
}

/// Loads a module without parameters.
fn finit_module(file: &File) -> nix::Result<()> {
    // SAFETY: a descriptor, an empty C string that outlives the call, and no flags.
    let loaded = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    Errno::result(loaded).map(drop)
}

fn list(name: &str) -> Result<Vec<String>, Error> {
    match fs::read_to_string(format!("{DIRECTORY}/{name}")) {
        Ok(text) => Ok(text.split_ascii_whitespace().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).step(format!("read {name}")),
    }
}
