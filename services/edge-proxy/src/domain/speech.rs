//! How an app's port is spoken to, plain or over TLS, as its first bytes tell. Nothing says so in advance, so an app is asked
//! in plain; a server that speaks TLS only cannot take that for a request, and shows it in one of a few ways.

/// The type of an alert's record, the first byte that a TLS server sends when it cannot read a handshake. No answer of HTTP
/// begins with it: that of HTTP/1.1 begins with a letter, that of HTTP/2 with a frame of at most 16 KiB.
const ALERT: u8 = 21;

/// What servers say, in plain, on their TLS ports: Go, nginx, Apache, Tomcat.
const PLAIN_TO_TLS: [&[u8]; 4] = [
    b"HTTP request to an HTTPS server",
    b"plain HTTP request was sent to HTTPS port",
    b"plain HTTP to an SSL-enabled server port",
    b"combination of host and port requires TLS",
];

/// What came first from an app that was asked in plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// An answer, in the protocol that was asked in or in none that the edge knows.
    Answer,
    /// What only a server that has taken no request says: that it wants TLS, or that it does not understand.
    NoRequest,
    /// Nothing before the end. A TLS server may say no more than that, and an app that fails over a request does not either.
    Nothing,
}

/// Judges the first bytes that were read in one go; none means that the connection ended.
pub fn judge(first: &[u8], http2: bool) -> Heard {
    let bad_request = || first.starts_with(b"HTTP/1.") && first.get(8..12) == Some(b" 400");
    let says = |text: &&[u8]| first.windows(text.len()).any(|part| part == *text);
    match first.first() {
        None => Heard::Nothing,
        Some(&ALERT) => Heard::NoRequest,
        // The preface of HTTP/2 is no request of HTTP/1.1.
        Some(_) if bad_request() && (http2 || PLAIN_TO_TLS.iter().any(says)) => Heard::NoRequest,
        Some(_) => Heard::Answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_and_what_they_tell() {
        let go = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
        let nginx = "HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n<html>\r\n<head><title>400 The plain HTTP \
                     request was sent to HTTPS port</title></head>";
        let apache = "HTTP/1.1 400 Bad Request\r\n\r\nReason: You're speaking plain HTTP to an SSL-enabled server port.";
        let own = "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno";
        let quoted = "HTTP/1.1 200 OK\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
        for (first, plain, http2) in [
            (&b""[..], Heard::Nothing, Heard::Nothing),
            (b"\x15\x03\x01\x00\x02\x02\x46", Heard::NoRequest, Heard::NoRequest),
            (b"\x15", Heard::NoRequest, Heard::NoRequest),
            (go.as_bytes(), Heard::NoRequest, Heard::NoRequest),
            (nginx.as_bytes(), Heard::NoRequest, Heard::NoRequest),
            (apache.as_bytes(), Heard::NoRequest, Heard::NoRequest),
            (own.as_bytes(), Heard::Answer, Heard::NoRequest),
            (quoted.as_bytes(), Heard::Answer, Heard::Answer),
            (b"HTTP/1.1 200 OK\r\n\r\n", Heard::Answer, Heard::Answer),
            (b"H", Heard::Answer, Heard::Answer),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", Heard::Answer, Heard::Answer),
            (b"SSH-2.0-x\r\n", Heard::Answer, Heard::Answer),
        ] {
            let text = String::from_utf8_lossy(first);
            assert_eq!(judge(first, false), plain, "{text}");
            assert_eq!(judge(first, true), http2, "{text}");
        }
    }
}
