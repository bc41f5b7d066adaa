//! The two ways in: gRPC from scheduler and image-builder, tunnels from edges.

pub mod host_agent;
mod log_stream;
pub mod status;
pub mod tunnel;
mod waiting;
