//! From the kernel's hand-over to a guest that can run an app: modules, root disk, mounts, link, identity
//! files. Runs once, before the bake's snapshot, so it may take its time; a failure ends the microVM.

use std::fs;
use std::io;

mod cmdline;
mod modules;
pub mod mounts;
pub mod network;

pub use cmdline::Settings;
pub use modules::Extra as ExtraModules;

use crate::identity;

/// A step of the boot that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct Error {
    step: String,
    source: io::Error,
}

/// Names the step in an error.
pub trait Step<T> {
    /// Maps the error to [`Error`] with the step's name.
    fn step(self, step: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error { step: step.into(), source: source.into() })
    }
}

/// What the boot leaves for the server.
#[derive(Debug)]
pub struct Booted {
    /// Settings from the kernel's command line.
    pub settings: Settings,
    /// Handles to the files that a repair rewrites.
    pub identity: identity::Identity,
    pub resolver: identity::ResolverFile,
    /// Modules for apps with every capability, not yet loaded.
    pub extra_modules: ExtraModules,
}

pub fn boot() -> Result<Booted, Error> {
    mounts::kernel_file_systems()?;
    mounts::adopt_console()?;
    let settings = Settings::parse(&fs::read_to_string("/proc/cmdline").step("read /proc/cmdline")?);
    let extra_modules = modules::load()?;
    mounts::switch_root(&settings)?;
    mounts::guest_file_systems()?;
    let identity = identity::Identity::prepare()?;
    let resolver = identity::ResolverFile::prepare()?;
    network::bring_up()?;
    protect_agent();
    Ok(Booted { settings, identity, resolver, extra_modules })
}

/// Keeps the agent alive when the guest runs out of memory or processes.
fn protect_agent() {
    // Best effort: without them the agent is only less protected.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = fs::write("/proc/sys/kernel/core_pattern", "core");
}
