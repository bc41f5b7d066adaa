//! What the edge decides, without sockets: which microVM a host name means, which port a request wants, what
//! is known of each microVM, and what the answers look like.

pub mod attempt;
pub mod browser;
pub mod frames;
pub mod host;
pub mod port;
pub mod rate;
pub mod refusal;
pub mod route;
pub mod speech;
pub mod timing;
pub mod websocket;
