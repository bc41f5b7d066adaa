//! What the agent touches outside its own memory: files, S3, etcd, the
//! scheduler, and the processes an earlier agent left.

pub mod clock_mark;
pub mod files;
pub mod image_snapshots;
mod io_error;
pub mod journal;
pub mod lease;
pub mod leftovers;
pub mod local_snapshot;
pub mod logs;
pub mod remote_snapshots;
pub mod volume;
