//! What a host-agent decides, free of clocks, files and sockets: what a microVM's state allows, which command
//! is too old, when it is idle, what it used, who gets the room on the disk, and what to do with each one after a restart.

pub mod app_end;
pub mod capacity;
pub mod disk;
pub mod dropped;
pub mod error;
pub mod fence;
pub mod hooks;
pub mod idle;
pub mod local_state;
pub mod metering;
pub mod recovery;
pub mod spec;
pub mod transition;

pub use error::HostError;
pub use local_state::LocalState;
pub use spec::Spec;
