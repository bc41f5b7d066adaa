//! The wire: every protobuf message, client and server of Torpor, generated
//! from `proto/`, and the one way its services build errors.
//!
//! Without the feature `grpc` only the messages are here, for the guest-agent.

#![warn(missing_docs)]

macro_rules! package {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        pub mod $name {
            /// Version 1 of the package.
            pub mod v1 {
                #![allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
                include!(concat!(env!("OUT_DIR"), "/", $file));
            }
        }
    };
}

/// The generated packages.
pub mod torpor {
    package!(/** Access keys and their policies. */ access, "torpor.access.v1.rs");
    package!(/** Types several services share. */ common, "torpor.common.v1.rs");
    package!(/** The customer's network connectors. */ connector, "torpor.connector.v1.rs");
    package!(/** Own domains of microVMs and images. */ domain, "torpor.domain.v1.rs");
    package!(/** Guest-agent frames. */ guest, "torpor.guest.v1.rs");
    package!(/** Hosts and bake placement. */ host, "torpor.host.v1.rs");
    package!(/** What is asked of one host. */ hostagent, "torpor.hostagent.v1.rs");
    package!(/** Images, versions, builds. */ image, "torpor.image.v1.rs");
    package!(/** MicroVMs. */ microvm, "torpor.microvm.v1.rs");
    package!(/** The edge's way to a guest port. */ tunnel, "torpor.tunnel.v1.rs");
}
pub use torpor::{access, common, connector, domain, guest, host, hostagent, image, microvm, tunnel};

mod conversions;
#[cfg(feature = "grpc")]
pub mod errors;
mod metering;
mod redacted;

pub use conversions::{ConversionError, duration, duration_proto, system_time, timestamp};

/// Encoded `FileDescriptorSet` of every package, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
