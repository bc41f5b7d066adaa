//! The scheduler: microVM records, placement, lifecycles.
//!
//! ```text
//! server/    decode, one call, encode           (gRPC)
//! term/      what a leader does while it leads  (memory, tasks, etcd, hosts)
//! domain/    what is decided                    (pure)
//! adapters/  records in etcd, channels to hosts, token keys
//! ```
//!
//! One replica leads; [`leader`] campaigns, loads a [`term`] and drops it
//! whole when leadership is lost. It does not run anything itself: hosts do.

// Read by this program and its tests only.

pub mod adapters;
pub mod app;
pub mod config;
pub mod domain;
pub mod leader;
pub mod metrics;
pub mod refusal;
pub mod server;
pub mod term;
pub mod vouches;
