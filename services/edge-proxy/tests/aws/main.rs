//! The AWS-compatible API of a real edge: real TLS, signatures by the SDK's own
//! code, real etcd, and gRPC services that follow a script.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod auth;
mod client;
mod connectors;
mod constraints;
mod fuzz;
mod hostile;
mod keys;
mod limits;
mod permissions;
mod recordings;
mod samples;
mod services;
mod sts;
mod translation;
mod world;
