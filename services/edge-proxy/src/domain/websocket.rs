//! What a WebSocket client offers as subprotocols: browsers cannot set headers on a handshake, so token and port may come
//! as subprotocols of the platform's, which the app never sees.

use crate::domain::port::{self, BadPort};

/// Marks an offer that has the platform's values in it, and is the answer when the app selects none of its own.
pub const MARKER: &str = "lambda-microvms";
const TOKEN: &str = "lambda-microvms.authentication.";
const PORT: &str = "lambda-microvms.port.";
/// Most subprotocols that are looked at.
const PROTOCOLS_MAX: usize = 32;

/// The subprotocols of one handshake, taken apart.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The platform's marker is among them.
    pub marked: bool,
    pub token: Option<String>,
    port: Option<String>,
    /// What is left for the app, in the client's order.
    pub app: Vec<String>,
    /// A token or a port was offered twice.
    ambiguous: bool,
}

impl Offer {
    /// Reads the values of `Sec-WebSocket-Protocol`.
    pub fn read<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut offer = Self::default();
        let protocols = values.flat_map(|value| value.split(',')).map(str::trim);
        for protocol in protocols.filter(|protocol| !protocol.is_empty()).take(PROTOCOLS_MAX) {
            if protocol == MARKER {
                offer.marked = true;
            } else if let Some(token) = protocol.strip_prefix(TOKEN) {
                offer.ambiguous |= offer.token.replace(token.to_owned()).is_some();
            } else if let Some(port) = protocol.strip_prefix(PORT) {
                offer.ambiguous |= offer.port.replace(port.to_owned()).is_some();
            } else {
                offer.app.push(protocol.to_owned());
            }
        }
        offer
    }

    /// The token, when the offer is marked and has one.
    pub fn marked_token(&self) -> Option<&str> {
        self.token.as_deref().filter(|_| self.marked && !self.ambiguous)
    }

    /// The port, when one is offered.
    pub fn port(&self) -> Option<Result<u16, BadPort>> {
        let port = self.port.as_ref()?;
        Some(if self.ambiguous { Err(BadPort) } else { port::requested([port.as_bytes()].into_iter()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_taken_apart() {
        let token = "lambda-microvms.authentication.eyJ.x";
        for (values, marked_token, port, app) in [
            (vec![], None, None, vec![]),
            (vec!["chat, superchat"], None, None, vec!["chat", "superchat"]),
            (vec!["lambda-microvms", token], Some("eyJ.x"), None, vec![]),
            (vec![token], None, None, vec![]),
            (
                vec!["lambda-microvms, chat", token, "lambda-microvms.port.9000"],
                Some("eyJ.x"),
                Some(Ok(9000)),
                vec!["chat"],
            ),
            (vec!["lambda-microvms", "lambda-microvms.port.x"], None, Some(Err(BadPort)), vec![]),
            (vec!["lambda-microvms", token, token], None, None, vec![]),
            (vec!["lambda-microvms.port.1, lambda-microvms.port.1"], None, Some(Err(BadPort)), vec![]),
            (vec!["lambda-microvms2"], None, None, vec!["lambda-microvms2"]),
        ] {
            let offer = Offer::read(values.iter().copied());
            assert_eq!(offer.marked_token(), marked_token, "{values:?}");
            assert_eq!(offer.port(), port, "{values:?}");
            assert_eq!(offer.app, app, "{values:?}");
        }
    }
}
