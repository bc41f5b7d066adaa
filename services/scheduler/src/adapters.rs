//! The world outside: records in etcd, channels to hosts, token keys, access keys,
//! invitations.

pub mod access_keys;
pub mod agents;
pub mod connectors;
pub mod invitations;
pub mod microvms;
pub mod token_keys;
