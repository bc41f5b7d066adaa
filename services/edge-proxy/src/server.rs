//! The public side: TLS and HTTP in, requests to apps out.

pub mod activity;
pub mod browser;
pub mod certificates;
pub mod connection;
pub mod endpoint;
pub mod headers;
pub mod limits;
pub mod listener;
pub mod send;
pub mod stream;
pub mod upgrade;
pub mod websocket;
