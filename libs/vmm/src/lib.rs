//! Machines: starts, snapshots, restores and ends the process that runs one guest.
//!
//! [`Engine`] and [`Machine`] are the whole interface; [`qemu::Qemu`] is the engine that runs on every Linux host. What
//! an engine must do beyond the signatures is written down as a test suite (`tests/conformance`), which every engine
//! passes: what one passes, all pass.
//!
//! A snapshot is three things: a *base memory file* shared by every machine of one image, a small *device state*, and,
//! for a suspended machine, a *memory difference* against the base. Differences never build on differences:
//!
//! ```text
//!   boot ──> pause ──> save_device_state ──> stop          the bake: memory file + device state are the base
//!   restore(base) ──> resume ──> pause ──> save_difference ──> stop          launch and suspend
//!   restore(base + difference) ──> resume ──> ...                            wake; its next difference is against the base again
//! ```
//!
//! Not here: disks (only passed through), networks (only entered), uploads, and deciding when any of this happens.

pub mod difference;
mod engine;
mod error;
mod memory;
mod process;
pub mod qemu;
mod qmp;

pub use engine::{
    DifferenceStats, Engine, EngineDescription, ExitReason, Machine, MachineSpec, NetworkSpec, Phase,
    Prepared, RestoreSpec, Restored, Status, Usage,
};
pub use error::{Error, Result};
pub use process::ProcessHandle;
