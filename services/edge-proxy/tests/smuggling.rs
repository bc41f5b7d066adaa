//! Requests that two readers might take apart in two ways: each is refused and its connection closed, or the app sees exactly
//! one request, in the edge's own framing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::microvm::v1::MicrovmState::Running;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::ONE;
use super::world::host::Host;
use super::world::{WAIT, World, host_name, limits, microvm};

/// After this long without a byte an answer counts as whole.
const SILENCE: Duration = Duration::from_millis(500);

/// What comes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// 400, and nothing reaches the app.
    Refused,
    /// The app sees one request with this body.
    Passed(&'static str),
    /// The app sees no whole request: its body broke.
    Broken,
}

/// What connections have sent so far, by their number.
type Seen = Arc<Mutex<BTreeMap<usize, Vec<u8>>>>;

/// An app that notes every byte of every connection, and answers whatever it takes for a request.
struct Recorder {
    address: SocketAddr,
    seen: Seen,
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Seen::default());
        let connections = seen.clone();
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                number += 1;
                connections.lock().unwrap().insert(number, Vec::new());
                tokio::spawn(record(stream, connections.clone(), number));
            }
        });
        Self { address, seen }
    }

    /// Takes the whole requests seen so far, and whatever else there was.
    fn take(&self) -> (Vec<(String, String)>, String) {
        let connections = std::mem::take(&mut *self.seen.lock().unwrap());
        let mut all = (Vec::new(), String::new());
        for bytes in connections.values() {
            let (requests, rest) = apart(bytes);
            all.0.extend(requests);
            all.1.push_str(&rest);
        }
        all
    }
}

async fn record(mut stream: TcpStream, connections: Seen, number: usize) {
    let (mut buffer, mut answered) = ([0; 4096], 0);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let whole = {
            let mut connections = connections.lock().unwrap();
            // Taken in the meantime: this connection is of a case that is over.
            let Some(bytes) = connections.get_mut(&number) else { return };
            bytes.extend_from_slice(&buffer[..count]);
            apart(bytes).0.len()
        };
        while answered < whole {
            answered += 1;
            let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

/// Takes bytes apart as a strict reader does: heads with bodies, and the rest.
fn apart(bytes: &[u8]) -> (Vec<(String, String)>, String) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (mut requests, mut rest) = (Vec::new(), text.as_str());
    while let Some((head, behind)) = rest.split_once("\r\n\r\n") {
        let lower = head.to_ascii_lowercase();
        let value = |name: &str| {
            let values: Vec<&str> = lower.lines().filter_map(|line| line.strip_prefix(name)).collect();
            assert!(values.len() <= 1, "{head}");
            values.first().map(|value| value.trim().to_owned())
        };
        let body = match (value("content-length:"), value("transfer-encoding:").as_deref()) {
            (Some(length), None) => {
                let length: usize = length.parse().unwrap();
                behind.split_at_checked(length).map(|(body, behind)| (body.to_owned(), behind))
            }
            (None, Some("chunked")) => chunks(behind),
            (None, None) => Some((String::new(), behind)),
            framing => panic!("{framing:?} in {head}"),
        };
        let Some((body, behind)) = body else { break };
        requests.push((head.to_owned(), body));
        rest = behind;
    }
    (requests, rest.to_owned())
}

fn chunks(mut text: &str) -> Option<(String, &str)> {
    let mut body = String::new();
    loop {
        let (size, behind) = text.split_once("\r\n")?;
        let (piece, behind) = behind.split_at_checked(usize::from_str_radix(size, 16).unwrap())?;
        text = behind.strip_prefix("\r\n")?;
        body.push_str(piece);
        if piece.is_empty() {
            return Some((body, text));
        }
    }
}

/// What the edge answered until it closed or fell silent: the first status, how many there were, whether it closed.
async fn answers(world: &World, request: &[u8]) -> (Option<u16>, usize, bool) {
    let mut stream = world.tls(ONE, false, |_| ()).await.unwrap();
    let _ = stream.write_all(request).await;
    let _ = stream.flush().await;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    let closed = loop {
        // The first answer takes as long as it takes.
        let silence = if answer.is_empty() { WAIT } else { SILENCE };
        match tokio::time::timeout(silence, stream.read(&mut buffer)).await {
            Ok(Ok(count @ 1..)) => answer.extend_from_slice(&buffer[..count]),
            Ok(_) => break true,
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&answer);
    let statuses: Vec<u16> =
        text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)?.parse().ok()).collect();
    (statuses.first().copied(), statuses.len(), closed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_one_or_none() {
    use Fate::{Broken, Passed, Refused};
    const HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";
    let world = World::start(limits()).await;
    let app = Recorder::start().await;
    let host =
        Host::start(&testkit::certificates::host(world.directory.path(), crate::world::HOST), app.address)
            .await;
    world.scheduler.tell(microvm(ONE, Running, &host.address.to_string()));
    let token = world.token(ONE);
    let own = format!("host: {}\r\nx-aws-proxy-auth: {token}\r\n", host_name(ONE));
    let hidden = format!("GET /smuggled HTTP/1.1\r\n{own}\r\n");
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 * 1024));
    let cases: &[(&str, &str, Fate)] = &[
        // One framing, in every spelling that is one.
        ("content-length: 5\r\n", "hello", Passed("hello")),
        ("content-length: 5 \r\n", "hello", Passed("hello")),
        ("content-length: 5\r\ncontent-length: 5\r\n", "hello", Passed("hello")),
        ("transfer-encoding: chunked\r\n", HELLO, Passed("hello")),
        ("transfer-encoding:   chunked\r\n", HELLO, Passed("hello")),
        ("transfer-encoding:\tchunked\r\n", HELLO, Passed("hello")),
        ("Transfer-Encoding: CHUNKED\r\n", HELLO, Passed("hello")),
        ("x-bare: line feed\ncontent-length: 5\r\n", "hello", Passed("hello")),
        ("transfer-encoding: chunked\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n", Passed("hello")),
        ("transfer-encoding: chunked\r\n", "0005\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n", Passed("hello")),
        // Two framings: chunks count, and the connection ends, so that what follows is nobody's request.
        ("content-length: 6\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\nHIDDEN", Passed("")),
        ("transfer-encoding: chunked\r\ncontent-length: 6\r\n", "0\r\n\r\nHIDDEN", Passed("")),
        ("content-length: 6\r\ntransfer-encoding: chunked, identity\r\n", "0\r\n\r\nHIDDEN", Refused),
        ("content-length: 6\r\ntransfer-encoding: xchunked\r\n", "0\r\n\r\nHIDDEN", Refused),
        // Framings that are none.
        ("transfer-encoding: chunked, identity\r\n", HELLO, Refused),
        ("transfer-encoding: identity\r\n", "HIDDEN", Refused),
        ("transfer-encoding: xchunked\r\n", HELLO, Refused),
        ("transfer-encoding: \"chunked\"\r\n", HELLO, Refused),
        ("transfer-encoding: \u{b}chunked\r\n", HELLO, Refused),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", HELLO, Refused),
        ("transfer-encoding : chunked\r\n", HELLO, Refused),
        ("content-length: 5\r\ncontent-length: 6\r\n", "hello", Refused),
        ("content-length: 5, 5\r\n", "hello", Refused),
        ("content-length: +5\r\n", "hello", Refused),
        ("content-length: -5\r\n", "hello", Refused),
        ("content-length: 0x5\r\n", "hello", Refused),
        ("content-length: 5 0\r\n", "hello", Refused),
        ("content-length: \r\n", "hello", Refused),
        ("content-length: 99999999999999999999\r\n", "hello", Refused),
        // Heads that are none.
        ("x-folded: a\r\n b\r\ncontent-length: 5\r\n", "hello", Refused),
        ("x-null: a\0b\r\ncontent-length: 5\r\n", "hello", Refused),
        ("x-return: a\rb\r\ncontent-length: 5\r\n", "hello", Refused),
        ("x name: a\r\ncontent-length: 5\r\n", "hello", Refused),
        ("no colon\r\ncontent-length: 5\r\n", "hello", Refused),
        (": no name\r\ncontent-length: 5\r\n", "hello", Refused),
        // Chunks that are none.
        ("transfer-encoding: chunked\r\n", "FFFFFFFFFFFFFFFFF\r\nhelloHIDDEN", Broken),
        ("transfer-encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\nHIDDEN", Broken),
        ("transfer-encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\nHIDDEN", Broken),
        ("transfer-encoding: chunked\r\n", "5\r\nhelloX\r\n0\r\n\r\nHIDDEN", Broken),
        ("transfer-encoding: chunked\r\n", "5\nhello\r\n0\r\n\r\nHIDDEN", Broken),
        ("transfer-encoding: chunked\r\n", "\r\n5\r\nhello\r\n0\r\n\r\nHIDDEN", Broken),
        ("transfer-encoding: chunked\r\n", &long, Broken),
    ];
    for (framing, body, fate) in cases {
        let what = format!("{framing:?} {:?}", &body[..body.len().min(60)]);
        let request = format!("POST /case HTTP/1.1\r\n{own}{framing}\r\n{body}").replace("HIDDEN", &hidden);
        let (status, count, closed) = answers(&world, request.as_bytes()).await;
        let (requests, rest) = app.take();
        assert!(!rest.contains("smuggled"), "{what}: {rest}");
        match fate {
            Refused => {
                assert_eq!((status, count, closed), (Some(400), 1, true), "{what}");
                assert!(requests.is_empty() && rest.is_empty(), "{what}: {requests:?} {rest}");
            }
            Passed(body) => {
                assert_eq!((status, count), (Some(200), 1), "{what}");
                assert_eq!(requests.len(), 1, "{what}: {requests:?}");
                let (head, seen) = &requests[0];
                assert!(head.starts_with("POST /case HTTP/1.1\r\n"), "{what}: {head}");
                assert_eq!((seen.as_str(), rest.as_str()), (*body, ""), "{what}");
                assert!(closed || !request.contains("/smuggled"), "{what}: still open");
            }
            Broken => {
                assert!(count <= 1 && status.is_none_or(|status| status >= 400), "{what}: {status:?}");
                assert!(closed && requests.is_empty(), "{what}: {closed} {requests:?}");
            }
        }
    }
}
