//! The edge's way to a guest port: one TLS connection per guest connection,
//! authenticated on both sides. It starts with one framed `OpenRequest` and one
//! framed `OpenResponse` and then carries the guest's bytes in pieces ([`Channel`]), across the guest's sleeps ([`Stream`]).
//!
//! ```text
//!  edge-proxy                              host-agent
//!  Client::open ---- OpenRequest --------> Server::serve -> handler(request, Responder)
//!               <--- OpenResponse -------- Responder::connect / refuse
//!  Stream       <=== guest's bytes ======> Session
//! ```
//!
//! A frame is its length, four bytes big-endian, and a protobuf message of at most [`FRAME_MAX`] bytes. The
//! client sends nothing after its frame until it is answered, so that whoever waits for a microVM to wake can
//! be seen to hang up ([`Responder::abandoned`]).
//!
//! What this does not do: decide who may open what, wake microVMs, pool connections.

#![warn(missing_docs)]

mod channel;
mod client;
mod copy;
mod frame;
mod server;
mod stream;

pub use channel::Channel;
pub use client::{Client, ClientStream, OpenError};
pub use copy::{ANSWER_WAIT, Copied, Ended, Session, copy};
pub use frame::{FRAME_MAX, FrameError, read_frame, write_frame};
pub use server::{Limits, Responder, Server, ServerStream};
pub use stream::{Reattach, Stream};
