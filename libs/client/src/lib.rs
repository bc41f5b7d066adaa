//! A fleet as its users reach it: where it is ([`Context`]), its gRPC clients,
//! its endpoints over HTTPS, and the zip a directory becomes. The CLI and the
//! load test stand on it; it makes no decision of its own.

mod archive;
mod call;
mod context;
mod endpoint;

pub use archive::{ArchiveError, zip_directory};
pub use call::Call;
pub use context::{ARTIFACT_BUCKET, Context, ContextError, DEFAULT_DATA_DIR, S3Access};
pub use endpoint::{
    AUTH_HEADER, EndpointClient, EndpointConnection, EndpointError, EndpointStream, HttpVersion,
};
