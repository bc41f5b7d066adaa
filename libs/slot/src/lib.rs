//! Slots: network namespaces made before they are needed, one per microVM.
//!
//! ```text
//!  root namespace                      namespace <prefix>-<index>
//!  uplink -- NAT -- <prefix>-v<index> ====== uplink -- NAT, filter -- tap0 -- guest
//!                   outer /30, gateway side  guest side     169.254.100.1  169.254.100.2
//! ```
//!
//! Every clone of a snapshot keeps the guest address baked into its memory; the namespace translates it to an
//! outer address of its own. The filter in the namespace decides what the guest may reach; the root
//! namespace's table drops whatever still tries to reach the host or another slot, so that a mistake in one
//! of the two does not open the host. Both also bound how many connections a slot has and begins, and nothing that
//! comes from a guest makes an entry in the machine's neighbour table: the kernel's tables are every guest's
//! and the host's.
//!
//! What this does not do: start engines, count bytes, decide which policy a guest gets. Nor does it make a
//! namespace safe to reuse: a slot is destroyed after one microVM, and the caller hands it back only when the
//! engine process has been reaped.

mod command;
mod creation;
mod dialer;
mod error;
mod firewall;
mod forget;
mod forwarding;
mod frozen;
mod inside;
mod policy;
mod pool;
mod question;
mod record;
mod relay;
mod room;
mod settings;
mod taken;

pub use command::CommandError;
pub use dialer::Dialer;
pub use error::Error;
pub use frozen::{Frozen, FrozenTcp, freeze};
pub use model::Subnet;
pub use policy::{POLICY_NETWORKS_MAX, Policy, PolicyError};
pub use pool::{Pool, Reserved};
pub use settings::{Egress, PoolSettings, SettingsError, TapOwner};
pub use taken::Slot;

use std::net::Ipv4Addr;

/// Name of the tap device in every slot.
pub const TAP: &str = "tap0";
/// Address of the guest, the same in every slot.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);
/// Address of the slot's side of the tap; the guest's gateway and resolver.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);
/// Prefix length of the network between the two.
pub const GUEST_PREFIX_LENGTH: u8 = 30;
/// MAC address of the guest's interface.
pub const GUEST_MAC: [u8; 6] = [0x06, 0x00, 0xa9, 0xfe, 0x64, 0x02];
/// MAC address of the slot's side. Constant, because a restored guest still
/// holds its gateway's address in its neighbour table.
pub const GATEWAY_MAC: [u8; 6] = [0x06, 0x00, 0xa9, 0xfe, 0x64, 0x01];
/// Port of the resolver relay on [`GATEWAY_ADDRESS`].
pub const DNS_PORT: u16 = 53;
