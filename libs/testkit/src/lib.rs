//! Fixtures that the tests of several crates share: certificates, a real etcd, an S3 server, gRPC services
//! that answer as a test says and what services refuse, an XFS, and waiting. A dependency of tests only: what
//! cannot go on panics, in the scripted services too, when a request is not of the type that the script names.
//!
//! Every entry point that does I/O returns a boxed future. The body of an `async fn` is compiled by each
//! crate that polls it, so without the boxes each test executable would compile the servers below once more.
#![allow(clippy::unwrap_used)] // A fixture that cannot go on fails the test like the test itself.

pub mod certificates;
mod etcd;
mod refusal;
mod s3;
mod script;
mod wait;
mod xfs;

pub use etcd::{Etcd, free_port};
pub use refusal::refusal;
pub use s3::TestS3;
pub use script::{Call, Script};
pub use wait::{PATIENCE, eventually, until};
pub use xfs::Xfs;
