//! The app's lifecycle hooks: one HTTP/1.1 POST on guest loopback, as AWS documents them. Only the status
//! matters; the body of the answer is read and thrown away so that the app sees a finished exchange.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use api::guest::v1::{CallHookRequest, CallHookResponse, HookKind};

use crate::loopback::Addresses;

/// Largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most bytes of an answer's body that are read before the connection is closed.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long an app may take to finish its answer once its status is known.
const BODY_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a hook has no status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connection refused")]
    Refused,
    #[error("timed out")]
    TimedOut,
    /// What came back is not an HTTP answer.
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            // A read that hits its socket timeout reports either.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

/// Path of a hook; `None` for a kind that is not one.
pub fn path(kind: HookKind) -> Option<&'static str> {
    Some(match kind {
        HookKind::Unspecified => return None,
        HookKind::Ready => "/aws/lambda-microvms/runtime/v1/ready",
        HookKind::Validate => "/aws/lambda-microvms/runtime/v1/validate",
        HookKind::Run => "/aws/lambda-microvms/runtime/v1/run",
        HookKind::Resume => "/aws/lambda-microvms/runtime/v1/resume",
        HookKind::Suspend => "/aws/lambda-microvms/runtime/v1/suspend",
        HookKind::Terminate => "/aws/lambda-microvms/runtime/v1/terminate",
    })
}

/// Answers a CallHook request; `Err` says what is wrong with the request.
pub fn call(request: &CallHookRequest) -> Result<CallHookResponse, &'static str> {
    let path = path(request.kind()).ok_or("kind is not a hook")?;
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0).ok_or("port is out of range")?;
    let timeout = request.timeout.as_ref().and_then(|timeout| api::duration(timeout).ok());
    let timeout = timeout.filter(|timeout| !timeout.is_zero()).ok_or("timeout is missing or out of range")?;
    Ok(match post(port, path, &request.body, Instant::now() + timeout) {
        Ok(status) => CallHookResponse { http_status: u32::from(status), ..CallHookResponse::default() },
        Err(error) => CallHookResponse {
            timed_out: matches!(error, Error::TimedOut),
            error: error.to_string(),
            ..CallHookResponse::default()
        },
    })
}

/// Posts to a port of guest loopback; the status of the answer, which came before `deadline`.
pub fn post(port: u16, path: &str, body: &str, deadline: Instant) -> Result<u16, Error> {
    let mut stream = connect(port, deadline)?;
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    if !body.is_empty() {
        request.push_str("Content-Type: application/json\r\n");
    }
    request.push_str("\r\n");
    // In one write: servers that read once must see it all.
    request.push_str(body);
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes())?;
    read_status(&mut stream, deadline)
}

/// A connection to the first address of guest loopback at which the port listens.
fn connect(port: u16, deadline: Instant) -> Result<TcpStream, Error> {
    let mut refused = None;
    for address in Addresses::of(port) {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(Error::TimedOut),
            // What 127.0.0.1 says is the reason; a guest without IPv6 says another thing of ::1.
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    Err(refused.map_or(Error::Refused, Error::from))
}

fn left(deadline: Instant) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::TimedOut) } else { Ok(left) }
}

fn read_status(stream: &mut TcpStream, deadline: Instant) -> Result<u16, Error> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let mut chunk = [0; 1024];
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = match stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            return Err(Error::Malformed("the answer ended before its head"));
        }
        head.extend_from_slice(&chunk[..count]);
        while let Some(end) = find(&head, b"\r\n\r\n") {
            let status = parse_status(&head)?;
            if status >= 200 {
                let expected = content_length(&head[..end]);
                drain(stream, expected, head.len() - end - 4, deadline);
                return Ok(status);
            }
            // An interim answer; the real one follows.
            head.drain(..end + 4);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(Error::Malformed("the answer's head is too large"));
        }
    }
}

/// Reads the rest of the answer, within bounds; what goes wrong here no longer matters.
fn drain(stream: &mut TcpStream, expected: Option<usize>, already: usize, deadline: Instant) {
    let wanted = expected.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
    let deadline = deadline.min(Instant::now() + BODY_TIMEOUT);
    let mut have = already;
    let mut chunk = [0; 4096];
    while have < wanted {
        let Ok(left) = left(deadline) else { return };
        if stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => have += count,
        }
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

fn parse_status(head: &[u8]) -> Result<u16, Error> {
    const NOT_HTTP: Error = Error::Malformed("the answer is not HTTP/1");
    let rest = head.strip_prefix(b"HTTP/1.").ok_or(NOT_HTTP)?;
    // "1 200 ..." or "0 200 ...".
    let digits = match rest {
        [b'0' | b'1', b' ', digits @ ..] => digits.get(..3).ok_or(NOT_HTTP)?,
        _ => return Err(NOT_HTTP),
    };
    let status = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(NOT_HTTP)?;
    if (100..600).contains(&status) { Ok(status) } else { Err(NOT_HTTP) }
}

fn content_length(head: &[u8]) -> Option<usize> {
    std::str::from_utf8(head).ok()?.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// One connection of a server that answers with `answer` (then closes if `close`).
    fn server(answer: &'static [u8], close: bool) -> (u16, thread::JoinHandle<String>) {
        server_on(TcpListener::bind("127.0.0.1:0").unwrap(), answer, close)
    }

    fn server_on(
        listener: TcpListener,
        answer: &'static [u8],
        close: bool,
    ) -> (u16, thread::JoinHandle<String>) {
        let port = listener.local_addr().unwrap().port();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            if !close {
                // Held open until the client closes it.
                let _ = stream.read(&mut [0; 1]);
            }
            String::from_utf8(request[..count].to_vec()).unwrap()
        });
        (port, served)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn statuses_of_answers() {
        let large =
            Box::leak([b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 20_000]].concat().into_boxed_slice());
        let cases: [(&str, &'static [u8], Result<u16, &str>); 8] = [
            ("plain", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ok(200)),
            ("1.0", b"HTTP/1.0 503 Busy\r\n\r\n", Ok(503)),
            ("no reason", b"HTTP/1.1 204\r\n\r\n", Ok(204)),
            ("interim", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\n\r\n", Ok(500)),
            ("not HTTP", b"\x16\x03\x01 hello\r\n\r\n", Err("the answer is not HTTP/1")),
            ("no status", b"HTTP/1.1 abc\r\n\r\n", Err("the answer is not HTTP/1")),
            ("cut", b"HTTP/1.1 200 OK\r\n", Err("the answer ended before its head")),
            ("large", large, Err("the answer's head is too large")),
        ];
        for (name, answer, expected) in cases {
            let (port, served) = server(answer, true);
            let status = post(port, "/x", "", soon()).map_err(|error| error.to_string());
            assert_eq!(status, expected.map_err(str::to_owned), "{name}");
            drop(served);
        }
    }

    #[test]
    fn every_kind_of_loopback_listener_is_reached() {
        for listener in crate::loopback::tests::listeners() {
            let address = listener.local_addr().unwrap();
            let (port, _served) = server_on(listener, b"HTTP/1.1 200 OK\r\n\r\n", true);
            assert_eq!(post(port, "/x", "", soon()).map_err(|error| error.to_string()), Ok(200), "{address}");
        }
    }

    #[test]
    fn an_open_connection_does_not_hold_the_status_back() {
        let (port, _served) = server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false);
        let started = Instant::now();
        assert_eq!(post(port, "/x", "", soon()).unwrap(), 200);
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn the_request_is_what_the_hook_interface_says() {
        let (port, served) = server(b"HTTP/1.1 200 OK\r\n\r\n", true);
        let response = call(&CallHookRequest {
            kind: HookKind::Run.into(),
            port: u32::from(port),
            timeout: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
            body: "{\"microvmId\":\"m\"}".to_owned(),
        });
        assert_eq!(response.unwrap().http_status, 200);
        assert_eq!(
            served.join().unwrap(),
            format!(
                "POST /aws/lambda-microvms/runtime/v1/run HTTP/1.1\r\nHost: localhost:{port}\r\n\
                 Connection: close\r\nContent-Length: 17\r\nContent-Type: application/json\r\n\r\n\
                 {{\"microvmId\":\"m\"}}"
            )
        );
    }

    #[test]
    fn silence_and_refusal() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let started = Instant::now();
        let silent = post(port, "/x", "", started + Duration::from_millis(100));
        assert!(matches!(silent, Err(Error::TimedOut)));
        assert!(started.elapsed() < Duration::from_secs(2));
        drop(listener);
        assert!(matches!(post(port, "/x", "", soon()), Err(Error::Refused)));
    }

    #[test]
    fn bad_requests_are_refused() {
        let timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let good = CallHookRequest { kind: HookKind::Run.into(), port: 1, timeout, body: String::new() };
        for bad in [
            CallHookRequest { kind: 0, ..good.clone() },
            CallHookRequest { port: 0, ..good.clone() },
            CallHookRequest { port: 65_536, ..good.clone() },
            CallHookRequest { timeout: None, ..good.clone() },
        ] {
            assert!(call(&bad).is_err());
        }
    }
}
