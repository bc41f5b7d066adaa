//! The app's door to its own idle timer: HTTP/1.1 on a Unix socket that every process of the app can reach.
//!
//! ```text
//! PUT /keep-awake     body: seconds, "1800"     do not put this microVM to sleep until then
//! DELETE /keep-awake                            as its idle policy has it again
//! ```
//!
//! What is taken is passed on to the host, which has the last word on it and bounds it again; the app is answered at once.
//! One caller at a time: the door is the app's, and whoever blocks it blocks only the app.

use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use api::guest::v1::KeepAwake;
use guest_link::{KEEP_AWAKE_INTERVAL, KEEP_AWAKE_SECONDS};

use crate::console::say;

/// Where the app finds the door.
pub const SOCKET: &str = "/run/torpor/awake.sock";

const PATH: &str = "/keep-awake";
/// Largest request, head and body, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
const HEADERS_MAX: usize = 32;
/// How long a request may take to arrive, and its answer to be taken.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A status and a sentence; the sentence of 202 is empty.
type Answer = (u16, String);

pub struct Door<T> {
    listener: UnixListener,
    /// Passes a request on; false when there is no host to take it.
    tell: T,
    /// When a request was last taken.
    taken: Option<Instant>,
}

impl<T: Fn(KeepAwake) -> bool> Door<T> {
    /// Opens the door at `path`, to every user.
    pub fn open(path: &Path, tell: T) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Ok(Self { listener, tell, taken: None })
    }

    /// Serves until the socket fails.
    pub fn run(mut self) {
        loop {
            match self.listener.accept() {
                // A caller that is gone again, or too slow, has no answer to take.
                Ok((stream, _)) => drop(self.serve(stream)),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return say(&format!("the keep-awake socket failed: {error}")),
            }
        }
    }

    fn serve(&mut self, mut stream: UnixStream) -> io::Result<()> {
        let (status, sentence) = match read(&mut stream)? {
            Ok(request) => self.take(request),
            Err(answer) => answer,
        };
        stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
        let retry = if status == 429 { "Retry-After: 1\r\n" } else { "" };
        write!(
            stream,
            "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n{sentence}",
            phrase(status),
            sentence.len(),
        )
    }

    fn take(&mut self, request: KeepAwake) -> Answer {
        let now = Instant::now();
        if self.taken.is_some_and(|taken| now.duration_since(taken) < KEEP_AWAKE_INTERVAL) {
            return (429, format!("at most one request in {} s\n", KEEP_AWAKE_INTERVAL.as_secs()));
        }
        if !(self.tell)(request) {
            return (503, "the host does not listen now; try again\n".to_owned());
        }
        self.taken = Some(now);
        (202, String::new())
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        202 => "Accepted",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Bad Request",
    }
}

/// One request, or what its caller is told instead.
fn read(stream: &mut UnixStream) -> io::Result<Result<KeepAwake, Answer>> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let mut bytes = [0; REQUEST_BYTES_MAX];
    let mut length = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes[length..])? {
            0 if length == REQUEST_BYTES_MAX => return Ok(Err(bad("the request is too long"))),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => length += count,
        }
        match parse(&bytes[..length]) {
            Ok(None) if Instant::now() < deadline => {}
            Ok(None) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(answer) => return Ok(Err(answer)),
        }
    }
}

/// What the bytes so far ask for; `None` while they are not whole.
fn parse(bytes: &[u8]) -> Result<Option<KeepAwake>, Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(bad("this is not an HTTP request")),
    };
    if request.path != Some(PATH) {
        return Err((404, format!("there is only {PATH}\n")));
    }
    match request.method {
        Some("DELETE") => return Ok(Some(KeepAwake { duration: None })),
        Some("PUT") => {}
        _ => return Err((405, "use PUT or DELETE\n".to_owned())),
    }
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length =
        length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok());
    let Some(end) = length.and_then(|length| head.checked_add(length)) else {
        return Err(bad("PUT needs a body of a known length: the seconds"));
    };
    if end > REQUEST_BYTES_MAX {
        return Err(bad("the request is too long"));
    }
    let Some(body) = bytes.get(head..end) else { return Ok(None) };
    let seconds = std::str::from_utf8(body).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match seconds.filter(|seconds| KEEP_AWAKE_SECONDS.contains(seconds)) {
        Some(seconds) => {
            let duration = api::duration_proto(Duration::from_secs(seconds));
            Ok(Some(KeepAwake { duration: Some(duration) }))
        }
        None => {
            let (least, most) = (KEEP_AWAKE_SECONDS.start(), KEEP_AWAKE_SECONDS.end());
            Err(bad(&format!("the body must be whole seconds, {least} to {most}")))
        }
    }
}

fn bad(sentence: &str) -> Answer {
    (400, format!("{sentence}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn put(body: &str) -> String {
        format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn requests_and_what_is_wrong_with_them() {
        let seconds = |seconds| {
            Ok(Some(KeepAwake { duration: Some(api::duration_proto(Duration::from_secs(seconds))) }))
        };
        let refused = |text: &str| parse(text.as_bytes()).expect_err("refused").0;
        for (text, expected) in [
            (put("1"), seconds(1)),
            (put("28800\n"), seconds(28_800)),
            (format!("DELETE {PATH} HTTP/1.1\r\n\r\n"), Ok(Some(KeepAwake { duration: None }))),
            (put("60").trim_end_matches('0').to_owned(), Ok(None)),
            ("PUT /keep".to_owned(), Ok(None)),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
        for wrong in ["0", "28801", "1.5", "-1", "", "soon"] {
            assert_eq!(refused(&put(wrong)), 400, "{wrong}");
        }
        for (text, status) in [
            ("GET /keep-awake HTTP/1.1\r\n\r\n", 405),
            ("PUT / HTTP/1.1\r\n\r\n", 404),
            ("PUT /keep-awake HTTP/1.1\r\n\r\n", 400),
            ("PUT /keep-awake HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
            ("PUT /keep-awake HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", 400),
            ("\0\r\n\r\n", 400),
        ] {
            assert_eq!(refused(text), status, "{text}");
        }
    }

    #[test]
    fn one_request_in_a_second_reaches_the_host() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("awake.sock");
        let told = Arc::new(Mutex::new(Vec::new()));
        let door = Door::open(&path, {
            let told = Arc::clone(&told);
            move |request| {
                let mut told = told.lock().unwrap();
                told.push(request);
                // Nobody listens at first.
                told.len() > 1
            }
        });
        let door = door.unwrap();
        std::thread::spawn(move || door.run());
        let ask = |text: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer.split(' ').nth(1).unwrap().to_owned()
        };
        let answers = [ask(&put("5")), ask(&put("60")), ask(&put("60")), ask("nonsense\r\n\r\n")];
        assert_eq!(answers, ["503", "202", "429", "400"]);
        assert_eq!(told.lock().unwrap().len(), 2);
    }
}
