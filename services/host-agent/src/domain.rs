//! What a host-agent decides, free of clocks, files and sockets: what a
//! microVM's phase allows, which command is too old, when it is idle, what it
//! used, and what to do with each one after a restart.

pub mod app_end;
pub mod capacity;
pub mod failure;
pub mod fence;
pub mod hooks;
pub mod idle;
pub mod metering;
pub mod phase;
pub mod recovery;
pub mod spec;
pub mod transition;

pub use failure::Failure;
pub use phase::Phase;
pub use spec::Spec;
