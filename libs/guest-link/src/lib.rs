//! How a host-agent and a guest-agent talk: length-prefixed protobuf frames
//! over one byte stream, several exchanges at a time, events in between.
//!
//! ```text
//! host-agent                                       guest-agent (process 1)
//!   Link ── u32 BE length ── Frame{exchange: n, ...Request} ──>
//!        <── u32 BE length ── Frame{exchange: n, ...Response | Failure} ──
//!        <── u32 BE length ── Frame{exchange: 0, logs | app exited | keep awake} ──
//! ```
//!
//! [`frame`] is the codec both ends share. [`Link`] (feature `host`) is the host's end. It treats everything
//! the guest sends as hostile: sizes, counts and waits are bounded, and nothing it sends can panic the host.
//!
//! What this is not: it opens no connection (the caller brings the stream) and
//! decides nothing about what an answer means.

use std::ops::RangeInclusive;
use std::time::Duration;

pub mod frame;
#[cfg(feature = "host")]
mod link;

#[cfg(feature = "host")]
pub use link::{Error, Event, Link};

/// TCP port of the guest-agent's control connection.
pub const CONTROL_PORT: u16 = 1024;

/// TCP port of the guest-agent's relay to ports on guest loopback.
///
/// The caller sends the port (u16, big-endian), the guest answers one byte of
/// [`RelayAnswer`], then bytes flow both ways.
pub const RELAY_PORT: u16 = 1025;

/// TCP port of the guest-agent's shells: WebSockets at the path `/shell`, each a terminal with a root shell in the app's
/// container.
pub const SHELL_PORT: u16 = 1026;

/// The guest-agent's own ports, which are no app's.
pub const AGENT_PORTS: [u16; 3] = [CONTROL_PORT, RELAY_PORT, SHELL_PORT];

/// Longest line of app output that a log event carries, in bytes.
pub const LOG_LINE_BYTES_MAX: usize = 16 * 1024;

/// Most lines in one log event.
pub const LOG_LINES_PER_EVENT_MAX: usize = 256;

/// What an app may ask for when it keeps its microVM awake, in seconds.
pub const KEEP_AWAKE_SECONDS: RangeInclusive<u64> = 1..=28_800;

/// Shortest time between two such requests. The guest-agent refuses what comes sooner; the host, which must not rely on
/// that, drops what comes in less than half of it.
pub const KEEP_AWAKE_INTERVAL: Duration = Duration::from_secs(1);

/// Fewest bytes of entropy a repair takes.
pub const ENTROPY_BYTES_MIN: usize = 64;

/// Most bytes of entropy a repair takes.
pub const ENTROPY_BYTES_MAX: usize = 512;

/// Cuts a text to at most `bytes_max` bytes, between characters.
pub fn truncate_text(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        // At most three steps: a character has at most four bytes, and position 0 is a boundary.
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The relay's one-byte answer to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RelayAnswer {
    /// Connected; the next byte comes from the app.
    Connected = 0,
    /// Nothing listens on that port of guest loopback.
    Refused = 1,
    /// The relay carries as many connections as it may.
    Busy = 2,
}

impl RelayAnswer {
    /// Reads the byte; `None` for a value that is no answer.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Connected),
            1 => Some(Self::Refused),
            2 => Some(Self::Busy),
            _ => None,
        }
    }
}
