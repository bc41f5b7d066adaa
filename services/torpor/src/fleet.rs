//! A whole fleet on one machine: what `torpor up` and `torpor down` do.
//!
//! ```text
//! torpor up --detach ── starts ──> supervisor (torpor up --supervised)
//!        |  reads fleet.json          | holds run/lock, writes run/fleet.json
//!        v                            v
//!   progress lines        etcd, s3 -> scheduler -> host-agents, image-builder -> edge-proxy
//! ```
//!
//! Nothing in the services knows that it is a single machine: each gets a
//! settings file with addresses and certificates, like anywhere else.
//!
//! Children die with their supervisor (the kernel kills them), engines do not:
//! they belong to their host-agent, which adopts them when it comes back.

pub mod authority;
pub mod bringup;
pub mod components;
pub mod configuration;
pub mod credentials;
pub mod drain;
pub mod files;

pub mod lock;
pub mod parts;
pub mod plan;
pub mod ports;
pub mod prerequisites;
pub mod probe;
pub mod process;
pub mod reach;
pub mod record;
pub mod rights;
pub mod roots;
pub mod rotation;
pub mod s3;
pub mod spawn;
pub mod storage;
pub mod supervisor;
