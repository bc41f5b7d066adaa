//! The world outside: records in etcd, channels to hosts, token keys, access keys.

pub mod access;
pub mod agents;
pub mod codec;
pub mod connectors;
pub mod keys;
