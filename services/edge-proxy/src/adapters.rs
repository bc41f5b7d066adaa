//! The edge's neighbours: token keys and own domains in etcd, the scheduler, the hosts.

pub mod app_stream;
pub mod body;
pub mod dial;
pub mod domains;
pub mod expect;
pub mod paced;
pub mod routes;
pub mod scheduler;
pub mod tls_apps;
pub mod token_keys;
pub mod tunnels;
