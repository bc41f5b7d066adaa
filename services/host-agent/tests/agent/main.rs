//! A real host-agent process with a real etcd, a real S3 endpoint, real network namespaces and real QEMU
//! guests. Needs root, QEMU, etcd, xfsprogs and busybox-static, and a guest bundle (`deploy/guest-bundle`) in
//! `target/guest-bundle` or where TORPOR_GUEST_BUNDLE says.

#![allow(clippy::unwrap_used)] // the helpers of tests are no tests themselves

mod app_disk;
mod calls;
mod checkpoints;
mod connections;
mod crashes;
mod damage;
mod edge;
mod ends;
mod engines_ahead;
mod idleness;
mod lifecycle;
mod ownership;
mod scheduler;
mod world;
