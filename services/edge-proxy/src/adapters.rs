//! The edge's neighbours: token keys in etcd, the scheduler, the hosts.

pub mod dial;
pub mod keys;
pub mod routes;
pub mod scheduler;
pub mod tunnels;
