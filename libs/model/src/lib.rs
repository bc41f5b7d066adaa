//! The words of Torpor as types: ids and names, state tables, limits, and the
//! way a request's violations are collected. Pure: no I/O, no clock, no wire
//! types. Services translate their wire messages into these at the edge.

pub mod connectors;
pub mod domains;
pub mod ids;
pub mod limits;
pub mod networks;
pub mod recovery;
mod snapshot_number;
pub mod state;
pub mod validate;

pub use connectors::{ConnectorArn, ConnectorName, ConnectorResource, Direction, ManagedConnector};
pub use domains::DomainName;
pub use ids::{
    ClientToken, HostId, IdError, ImageArn, ImageIdentifier, ImageName, KmsKeyIdentifier, MicrovmId,
    PLATFORM_ACCOUNT, RoleArn, VersionNumber,
};
pub use limits::MemoryClass;
pub use networks::Subnet;
pub use snapshot_number::SnapshotNumber;
pub use validate::Violations;
