//! A real host-agent process with a real etcd, a real S3 endpoint, real network namespaces and real QEMU
//! guests. Needs root, QEMU, etcd, xfsprogs and busybox-static, and a guest bundle (`deploy/guest-bundle`) in
//! `target/guest-bundle` or where TORPOR_GUEST_BUNDLE says.

#![allow(clippy::unwrap_used)] // the helpers of tests are no tests themselves

#[path = "agent/app_disk.rs"]
mod app_disk;
#[path = "agent/calls.rs"]
mod calls;
#[path = "agent/connections.rs"]
mod connections;
#[path = "agent/crashes.rs"]
mod crashes;
#[path = "agent/damage.rs"]
mod damage;
#[path = "agent/ends.rs"]
mod ends;
#[path = "agent/engines_ahead.rs"]
mod engines_ahead;
#[path = "agent/lifecycle.rs"]
mod lifecycle;
#[path = "agent/scheduler.rs"]
mod scheduler;
#[path = "agent/world.rs"]
mod world;
