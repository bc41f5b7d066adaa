//! How Torpor's processes talk: mutual TLS with an identity in every certificate,
//! and one way to assemble a gRPC server and a channel.
//!
//! A certificate's first DNS name of the form `<role>.torpor.internal` is the process's [`Role`]; a host-agent's has
//! `<host id>.host-agent.torpor.internal` too, and so names its host ([`Identity`]). Servers ask every caller for a
//! certificate of the fleet's CA; handlers say with [`authorize`] which roles may call them, and with [`authorize_host`]
//! that a host speaks for itself only. Who calls a host says which, and no other is spoken to.
//!
//! Certificates, keys and CAs may change while a process runs ([`TlsIdentity`]).

mod certificate;
mod channel;
mod connector;
mod identity;
mod incoming;
mod layer;
mod replicas;
mod role;
mod server;
mod transport;

pub use certificate::{Facts, InUse, fingerprint};
pub use channel::{channel, request};
pub use identity::{IdentityError, TlsIdentity, install_crypto_provider};
pub use layer::{REQUEST_ID, RequestId, request_id};
pub use replicas::{CallBounds, Replicas};
pub use role::{Identity, Role, WrongPeer, authorize, authorize_host};
pub use server::{BoundServer, ServeError, ServerBuilder, listen};
pub use transport::{Dial, Dialer, Local, LocalCaller, Transport};
