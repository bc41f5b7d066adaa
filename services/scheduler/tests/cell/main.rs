//! The scheduler against a real etcd and scripted host-agents over real mutual
//! TLS: in the test's process, or as a process of its own that tests kill.

// Helpers outside #[test] functions fail the test the same way.
#![allow(clippy::unwrap_used)]

mod access;
mod checkpoints;
mod connectors;
mod domains;
mod draining;
mod egress;
mod failures;
mod host;
mod invitations;
mod launch;
mod lifecycle;
mod ownership;
mod placing;
mod records;
mod time;
mod tokens;
mod usage;
mod vouching;
mod watching;
mod world;
