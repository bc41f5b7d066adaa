//! The public side: TLS and HTTP in, requests to apps out.

pub mod browser;
pub mod endpoint;
pub mod headers;
pub mod listener;
pub mod send;
pub mod upgrade;
