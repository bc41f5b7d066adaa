//! The world outside: records in etcd, channels to hosts, token keys.

pub mod agents;
pub mod codec;
pub mod keys;
