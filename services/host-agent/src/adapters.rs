//! What the agent touches outside its own memory: files, S3, etcd, the
//! scheduler, and the processes an earlier agent left.

pub mod bases;
pub mod files;
pub mod journal;
pub mod lease;
pub mod leftovers;
pub mod logs;
pub mod scheduler;
