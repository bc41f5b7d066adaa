//! What is sent by mistake or in bad faith: answered with 4xx, at little cost.

use std::time::{Duration, Instant, SystemTime};

use api::microvm::v1::GetMicrovmResponse;
use clock::Clock;
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::HOST;
use crate::constraints::nothing_is_found;
use crate::samples::{self, MICROVM};
use crate::world::{WAIT, World, image, signer};

const MICROVMS: &str = "/2025-09-09/microvms";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_request_are_refused() {
    let world = World::start().await;
    nothing_is_found(&world);
    let good = format!(r#"{{"imageIdentifier": "{}", "imageVersion": "1.0"}}"#, image("app"));
    let nested = |open: &str, close: &str, depth: usize| {
        format!("{{\"idlePolicy\": {}{}}}", open.repeat(depth), close.repeat(depth))
    };
    let mut bodies: Vec<(String, Vec<u8>)> = vec![
        ("deep lists".into(), nested("[", "]", 200_000).into()),
        ("deep structures".into(), nested("{\"a\":", "1}", 100_000).into()),
        ("deep in an unknown member".into(), format!("{{\"x\": {}", "[".repeat(900_000)).into()),
        ("a list".into(), b"[]".to_vec()),
        ("a number".into(), b"1".to_vec()),
        ("a text".into(), b"\"x\"".to_vec()),
        ("null".into(), b"null".to_vec()),
        ("two values".into(), format!("{good}{good}").into()),
        ("something behind".into(), format!("{good} x").into()),
        ("a byte order mark".into(), format!("\u{feff}{good}").into()),
        ("UTF-16".into(), good.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("invalid UTF-8".into(), b"{\"imageIdentifier\": \"\xff\xfe\"}".to_vec()),
        ("an overlong encoding".into(), b"{\"imageIdentifier\": \"\xc0\xaf\"}".to_vec()),
        ("half a surrogate pair".into(), br#"{"imageIdentifier": "\ud800"}"#.to_vec()),
        ("a control character".into(), b"{\"imageIdentifier\": \"a\x00b\"}".to_vec()),
        ("a key twice".into(), good.replace("imageVersion", "imageIdentifier").into()),
        (
            "a key twice, one escaped".into(),
            good.replace("\"imageVersion\"", "\"image\\u0049dentifier\"").into(),
        ),
        (
            "an inner key twice".into(),
            br#"{"imageIdentifier": "a", "idlePolicy": {"autoResumeEnabled": true, "autoResumeEnabled": false}}"#
                .to_vec(),
        ),
        ("a number beyond every type".into(), good.replace("\"1.0\"", "1e999").into()),
        (
            "a number with a million digits".into(),
            format!("{{\"maximumDurationInSeconds\": {}}}", "9".repeat(1_000_000)).into(),
        ),
        ("NaN".into(), good.replace("\"1.0\"", "NaN").into()),
        ("a comment".into(), format!("/* */{good}").into()),
    ];
    for end in 1..good.len() {
        bodies.push((format!("cut off at {end}"), good.as_bytes()[..end].to_vec()));
    }
    let mut connection = world.connection();
    for (what, body) in bodies {
        let answer = connection.send(signer().request("POST", MICROVMS, body)).await;
        assert_eq!(answer.status, 400, "{what}: {}", String::from_utf8_lossy(&answer.body));
        assert!(answer.body.len() < 4096, "{what}: the answer is as long as the request");
    }
    assert!(world.scheduler.take().is_empty());
    // And the one that is a request.
    let answer = connection.send(signer().request("POST", MICROVMS, good)).await;
    assert_eq!(answer.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_has_a_largest_size() {
    let world = World::start().await;
    nothing_is_found(&world);
    let head = format!(r#"{{"imageIdentifier": "{}", "x": ""#, image("app"));
    let body = |size: usize| format!("{head}{}\"}}", "x".repeat(size - head.len() - 2));
    for mut connection in [world.connection(), world.http2()] {
        let largest = connection.send(signer().request("POST", MICROVMS, body(1 << 20))).await;
        assert_eq!(largest.status, 404, "{}", largest.message());
        for size in [(1 << 20) + 1, 10 << 20] {
            let answer = connection.send(signer().request("POST", MICROVMS, body(size))).await;
            assert_eq!((answer.status, answer.class()), (413, "RequestEntityTooLargeException"));
        }
        // Nor is a body read whose sender nobody knows.
        let unsigned =
            http::Request::post(MICROVMS).header("host", HOST).body(Full::from(body(10 << 20))).unwrap();
        assert_eq!(connection.send(unsigned).await.status, 403);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::with(|config| config.aws.limits.body_read_ms = 300).await;
    let request = signer().request("POST", MICROVMS, "{}");
    let head = head(&request).replace("content-length: 2", "content-length: 20");
    let started = Instant::now();
    let status = raw(&world, format!("{head}{{\"").as_bytes()).await;
    assert_eq!(status, Some(400));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_share_a_bounded_memory() {
    let world = World::with(|config| {
        config.aws.limits.body_bytes = 100_000;
        config.aws.limits.body_memory_bytes = 150_000;
        // However long this test takes, the first is not given up.
        config.aws.limits.body_stall_ms = 60_000;
        config.aws.limits.body_read_ms = 60_000;
    })
    .await;
    nothing_is_found(&world);
    let body = "x".repeat(99_999);
    let request = signer().request("POST", MICROVMS, body.clone());
    let second = signer().request("POST", MICROVMS, body.clone());
    let deadline = Instant::now() + WAIT;
    let mut first = loop {
        // One that has sent most of its body and keeps it: another finds no room, until the first is done.
        let mut first = world.connection().stream().await;
        first.write_all(head(&request).as_bytes()).await.unwrap();
        first.write_all(&body.as_bytes()[..99_000]).await.unwrap();
        first.flush().await.unwrap();
        let answer = world.connection().send(second.clone()).await;
        if answer.status == 429 {
            assert_eq!(answer.class(), "ThrottlingException");
            assert_eq!(answer.header("retry-after"), Some("1"));
            break first;
        }
        // It was read before the first was, for which there was no room then.
        assert_eq!(answer.status, 400);
        assert!(Instant::now() < deadline, "there is always room");
    };
    first.write_all(&body.as_bytes()[99_000..]).await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    assert_eq!(world.connection().send(second).await.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_does_not_outlive_its_time() {
    let clock = Clock::manual(SystemTime::now());
    let world = World::at(clock.clone(), |_| ()).await;
    let microvm = Some(samples::microvm());
    world.scheduler.answer("GetMicrovm", Ok(GetMicrovmResponse { microvm }));
    let mut signer = signer();
    signer.presigned = Some(Duration::from_secs(2));
    signer.time = SystemTime::now();
    let request = signer.request("GET", &format!("{MICROVMS}/{MICROVM}"), "");
    let mut connection = world.connection();
    assert_eq!(connection.send(request.clone()).await.status, 200);
    clock.advance(Duration::from_secs(4));
    let replayed = connection.send(request).await;
    assert_eq!((replayed.status, replayed.class()), (403, "InvalidSignatureException"));
    assert_eq!(world.scheduler.take().len(), 1);
}

/// The head of a request as HTTP/1.1.
pub fn head(request: &http::Request<Full<bytes::Bytes>>) -> String {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    let length = http_body_util::Full::clone(request.body());
    let length = hyper::body::Body::size_hint(&length).exact().unwrap();
    head + &format!("content-length: {length}\r\n\r\n")
}

/// Sends bytes; the status of the first answer, `None` when the edge only closes.
pub async fn raw(world: &World, bytes: &[u8]) -> Option<u16> {
    statuses(&answers(world, bytes, 1).await).first().copied()
}

/// Sends bytes; what comes back until the edge closes, says nothing for a while, or
/// has begun this many answers.
async fn answers(world: &World, bytes: &[u8], enough: usize) -> Vec<u8> {
    const SILENCE: Duration = Duration::from_secs(1);
    let mut stream = world.connection().stream().await;
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while statuses(&answer).len() < enough {
        match tokio::time::timeout(SILENCE, stream.read(&mut buffer)).await {
            Ok(Ok(read)) if read > 0 => answer.extend_from_slice(&buffer[..read]),
            _ => break,
        }
    }
    answer
}

fn statuses(answers: &[u8]) -> Vec<u16> {
    const START: &[u8] = b"HTTP/1.";
    let starts = answers.windows(12).filter(|window| window.starts_with(START));
    starts.filter_map(|window| std::str::from_utf8(&window[9..]).ok()?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hides_behind_a_body() {
    let world = World::start().await;
    nothing_is_found(&world);
    let hidden = format!("GET /smuggled HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    for framing in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding : chunked\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999\r\n",
    ] {
        let head = format!("POST {MICROVMS} HTTP/1.1\r\nhost: {HOST}\r\n{framing}\r\n");
        let answer = answers(&world, format!("{head}0\r\n\r\n{hidden}").as_bytes(), 2).await;
        let statuses = statuses(&answer);
        assert!(statuses.len() <= 1, "{framing}: {statuses:?}");
        let fine = statuses.iter().all(|status| (400..500).contains(status));
        assert!(fine, "{framing}: {statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_can_be_read_in_two_ways_are_refused() {
    let world = World::start().await;
    nothing_is_found(&world);
    let body = format!(r#"{{"imageIdentifier": "{}"}}"#, image("app"));
    let request = signer().request("POST", MICROVMS, body.clone());
    let head = head(&request);
    let length = format!("content-length: {}\r\n", body.len());
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let smuggled = format!("{body}GET {MICROVMS}/{MICROVM} HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    assert_eq!(raw(&world, format!("{head}{body}").as_bytes()).await, Some(404), "the request itself");
    let replaced = |piece: &str, by: &str| head.replace(piece, by) + &body;
    let with = |header: &str| replaced(&length, &format!("{length}{header}"));
    for (what, bytes) in [
        ("two lengths", with("content-length: 1\r\n")),
        ("a length that is none", replaced(&length, "content-length: +5\r\n")),
        ("a list of lengths", replaced(&length, "content-length: 5, 6\r\n")),
        (
            "a length and chunks, and the chunks are no request",
            format!(
                "{}{smuggled}",
                head.replace(&length, &format!("{length}transfer-encoding: chunked\r\n"))
            ),
        ),
        (
            "chunks under a name that is none",
            format!("{}{chunked}", head.replace(&length, "transfer-encoding: xchunked\r\n")),
        ),
        ("two hosts", with("host: elsewhere\r\n")),
        ("another host than was signed", replaced(HOST, "elsewhere")),
        ("a folded header", with("x-folded: a\r\n b\r\n")),
        ("a space before the colon", replaced("host:", "host :")),
        ("a null in a header", with("x-null: a\0b\r\n")),
        ("a bare carriage return", with("x-bare: a\rb: c\r\n")),
        ("an amazon header that was not signed", with("x-amz-target: x\r\n")),
        (
            "a head without an end in sight",
            format!("{}{}", head.replace("\r\n\r\n", "\r\nx-long: "), "x".repeat(1 << 20)),
        ),
        (
            "a thousand headers",
            format!("{}{body}", head.replace(&length, &(length.clone() + &"x: y\r\n".repeat(1000)))),
        ),
        ("no protocol", format!("GET {MICROVMS}\r\n\r\n")),
        ("another protocol", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("a tunnel", format!("CONNECT {HOST} HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("an asterisk", format!("OPTIONS * HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("not HTTP", "\x16\x03\x01 hello".to_owned()),
    ] {
        let status = raw(&world, bytes.as_bytes()).await;
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{what}: {status:?}");
    }
    // Exactly the one request that is one was let through.
    assert_eq!(world.scheduler.take().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_queries_that_lead_nowhere_are_refused() {
    let world = World::start().await;
    nothing_is_found(&world);
    let long = "a".repeat(40_000);
    let mut connection = world.connection();
    for (method, target) in [
        ("GET", "/".to_owned()),
        ("GET", "/2025-09-09".to_owned()),
        ("GET", format!("{MICROVMS}/")),
        ("GET", format!("{MICROVMS}/.")),
        ("GET", format!("{MICROVMS}/../microvms")),
        ("GET", format!("/{MICROVMS}")),
        ("GET", format!("{MICROVMS}/%")),
        ("GET", format!("{MICROVMS}/%zz")),
        ("GET", format!("{MICROVMS}/%ff%fe")),
        ("GET", format!("{MICROVMS}/{long}")),
        ("GET", format!("{MICROVMS}?maxResults=a")),
        ("GET", format!("{MICROVMS}?maxResults=99999999999999999999")),
        ("GET", format!("{MICROVMS}?maxResults=1&maxResults=2")),
        ("GET", format!("{MICROVMS}?nextToken={long}")),
        ("GET", format!("{MICROVMS}?imageIdentifier=%ff")),
        ("GET", format!("{MICROVMS}?{}", "a=b&".repeat(3000))),
        ("PATCH", MICROVMS.to_owned()),
        ("HEAD", MICROVMS.to_owned()),
        ("OPTIONS", MICROVMS.to_owned()),
        ("TRACE", MICROVMS.to_owned()),
        ("BREW", MICROVMS.to_owned()),
    ] {
        let answer = connection.send(signer().request(method, &target, "")).await;
        let shown = &target[..target.len().min(80)];
        assert!((400..500).contains(&answer.status), "{method} {shown}: {}", answer.status);
    }
    assert!(world.scheduler.take().is_empty());
}
