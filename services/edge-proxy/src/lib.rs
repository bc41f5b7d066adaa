//! The edge-proxy: the only public face of a fleet. It ends the clients' TLS, checks tokens itself, finds each microVM in a
//! table it keeps by watching the scheduler, and carries requests through a tunnel to the microVM's host, holding them while
//! it is launched or woken. On a listener of its own it serves the AWS-compatible API (`aws`, a feature of its own: the
//! endpoints build and work without it).
//!
//! It keeps no state that outlives it; run as many as there are clients for. Not here yet: the public gRPC API, WebSockets.

pub mod app;
pub mod config;

mod adapters;
#[cfg(feature = "aws")]
mod aws;
mod domain;
mod metrics;
mod server;
