//! The port a request asks for.

/// The port of requests that name none.
pub const DEFAULT: u16 = 8080;
/// What clients of a shell call its port; in the guest it is another.
pub const SHELL: u16 = 8022;

/// Where in the guest a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// An app's TCP port.
    Port(u16),
    /// The guest-agent's shell.
    Shell,
}

/// Reads the values of the port header, of which there may be one.
pub fn requested<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<u16, BadPort> {
    let Some(value) = values.next() else {
        return Ok(DEFAULT);
    };
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BadPort);
    }
    let port = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    port.filter(|port| *port > 0).ok_or(BadPort)
}

/// The header is not a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPort;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_their_ports() {
        for (values, expected) in [
            (&[][..], Ok(8080)),
            (&["1"], Ok(1)),
            (&["65535"], Ok(65535)),
            (&["08080"], Ok(8080)),
            (&["0"], Err(BadPort)),
            (&["65536"], Err(BadPort)),
            (&["+80"], Err(BadPort)),
            (&["-1"], Err(BadPort)),
            (&[" 80"], Err(BadPort)),
            (&["http"], Err(BadPort)),
            (&[""], Err(BadPort)),
            (&["80", "80"], Err(BadPort)),
        ] {
            assert_eq!(requested(values.iter().map(|value| value.as_bytes())), expected, "{values:?}");
        }
    }
}
