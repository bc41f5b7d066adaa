//! The world outside: records in etcd, channels to hosts, token keys, access keys.

pub mod access_keys;
pub mod agents;
pub mod codec;
pub mod connectors;
pub mod token_keys;
