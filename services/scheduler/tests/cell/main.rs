//! The scheduler as a process, against a real etcd and scripted host-agents
//! over real mutual TLS.

// Helpers outside #[test] functions fail the test the same way.
#![allow(clippy::unwrap_used)]

mod access;
mod connectors;
mod egress;
mod failures;
mod host;
mod launch;
mod lifecycle;
mod placing;
mod rig;
mod watching;
