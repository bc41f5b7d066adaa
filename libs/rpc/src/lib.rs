//! How Torpor's processes talk: mutual TLS with a role in every certificate,
//! and one way to assemble a gRPC server and a channel.
//!
//! A certificate's first DNS name of the form `<role>.torpor.internal` is the
//! process's [`Role`]. Servers ask every caller for a certificate of the fleet's
//! CA; handlers say which roles may call them with [`authorize`].

mod channel;
mod identity;
mod layer;
mod replicas;
mod role;
mod server;
mod transport;

pub use channel::{channel, request};
pub use identity::{IdentityError, TlsIdentity, install_crypto_provider};
pub use layer::{REQUEST_ID, RequestId, request_id};
pub use replicas::{CallBounds, Replicas};
pub use role::{Role, authorize, peer_role};
pub use server::{BoundServer, ServeError, ServerBuilder, listen};
pub use transport::{Dial, Dialer, Local, LocalCaller, Transport};
