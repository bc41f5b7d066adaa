//! What a token says.

use serde::{Deserialize, Serialize};

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Ports of the endpoint.
    Endpoint,
    /// A shell.
    Shell,
}

/// A set of guest ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortScope {
    /// One port.
    Single(u16),
    /// From the first to the second, both included.
    Range(u16, u16),
}

impl PortScope {
    pub const ALL: Self = Self::Range(1, u16::MAX);

    /// True when the port is in the set.
    #[must_use]
    pub fn allows(&self, port: u16) -> bool {
        match *self {
            Self::Single(one) => one == port,
            Self::Range(first, last) => (first..=last).contains(&port),
        }
    }
}

/// The sealed part of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The one microVM it is good for, "microvm-<uuid>".
    #[serde(rename = "vm")]
    pub microvm_id: String,
    pub kind: Kind,
    pub ports: Vec<PortScope>,
    /// When it was made, in seconds since 1970.
    #[serde(rename = "iat")]
    pub issued_at: u64,
    /// When it stops working, in seconds since 1970.
    #[serde(rename = "exp")]
    pub expires_at: u64,
}

impl Claims {
    /// True when the port is in one of the scopes.
    #[must_use]
    pub fn allows(&self, port: u16) -> bool {
        self.ports.iter().any(|scope| scope.allows(port))
    }
}
