//! The world outside: records in etcd, channels to hosts, token keys, access keys,
//! invitations, own domains.

pub mod access_keys;
pub mod agents;
pub mod certificates;
pub mod connectors;
pub mod domains;
pub mod invitations;
pub mod microvms;
pub mod token_keys;
