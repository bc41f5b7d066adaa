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
    /// A port of the endpoint, for a browser session: good in the session's cookie, and nowhere else.
    Browser,
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
    /// Paths that it opens, with all that lies under them; empty means every path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Methods that it opens; empty means every method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// When it was made, in seconds since 1970.
    #[serde(rename = "iat")]
    pub issued_at: u64,
    /// When it stops working, in seconds since 1970.
    #[serde(rename = "exp")]
    pub expires_at: u64,
    /// How often the microVM's tokens had been revoked when this one was made. One of a time
    /// before there were revocations says nothing, which is 0.
    #[serde(rename = "rev", default, skip_serializing_if = "is_zero")]
    pub revocations: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Claims {
    /// True when the port is in one of the scopes.
    #[must_use]
    pub fn allows(&self, port: u16) -> bool {
        self.ports.iter().any(|scope| scope.allows(port))
    }

    /// True when the tokens of the microVM were revoked after this one was made, by their number of revocations now. A
    /// token may know of a revocation before whoever asks: then it was made after that one, and is good.
    #[must_use]
    pub fn is_revoked(&self, revocations: u64) -> bool {
        self.revocations < revocations
    }
}
