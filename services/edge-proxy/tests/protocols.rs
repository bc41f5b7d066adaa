//! What the two ends say to each other arrives as it was said: targets, streams and their ends, gRPC.

use std::sync::atomic::Ordering;

use api::microvm::v1::MicrovmState::Running;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use testkit::until;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::ONE;
use super::world::client::{ClientBody, Connection, body};
use super::world::{WAIT, World, host_name, id, limits, raw};

/// Answers with the request line that it saw, without HTTP's help.
async fn request_lines(mut stream: tokio::net::TcpStream) {
    loop {
        let head = raw::head(&mut stream).await;
        let Some((line, _)) = head.split_once("\r\n") else { return };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{line}", line.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_arrive_byte_for_byte() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    world.host.redirect(id(ONE), raw::app(request_lines).await);
    let long = format!("/{}", "p".repeat(60 * 1024));
    let own = format!("https://{}/absolute?x", host_name(ONE));
    let elsewhere = "https://other.example/";
    let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
    for (method, target, expected) in [
        ("GET", "/a%2Fb", Some("/a%2Fb")),
        ("GET", "/a//b", Some("/a//b")),
        ("GET", "//a", Some("//a")),
        ("GET", "/./a/../b", Some("/./a/../b")),
        ("GET", "/%2e%2e/x", Some("/%2e%2e/x")),
        ("GET", "/a;v=1?x=%26&x=2&y", Some("/a;v=1?x=%26&x=2&y")),
        ("GET", "/?q=a+b%20c", Some("/?q=a+b%20c")),
        ("GET", "/?", Some("/?")),
        ("GET", "/a?b?c", Some("/a?b?c")),
        ("GET", "/%ff", Some("/%ff")),
        ("GET", "/\u{e9}", Some("/\u{e9}")),
        ("GET", "/a|b\"{}^[]\\", Some("/a|b\"{}^[]\\")),
        ("GET", "/?a|b{}^[]\\`", Some("/?a|b{}^[]\\`")),
        ("GET", "/@:8080/x:y@z", Some("/@:8080/x:y@z")),
        ("OPTIONS", "*", Some("*")),
        ("PROPFIND", "/dav", Some("/dav")),
        ("GET", &long, Some(long.as_str())),
        ("GET", &own, Some("/absolute?x")),
        ("GET", elsewhere, None),
    ] {
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {}\r\n\r\n",
            host_name(ONE),
            world.token(ONE)
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = raw::head(&mut client).await;
        let length = answer.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut seen = vec![0; length.unwrap_or_default().parse().unwrap_or(0)];
        tokio::io::AsyncReadExt::read_exact(&mut client, &mut seen).await.unwrap();
        let seen = String::from_utf8(seen).unwrap();
        match expected {
            Some(expected) => assert_eq!(seen, format!("{method} {expected} HTTP/1.1"), "{answer}"),
            // Two hosts in one request.
            None => assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}"),
        }
    }
}

/// What the HTTP library does not read: RFC 3986 wants these percent-encoded, and browsers do it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_that_cannot_be_read_are_refused() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    for target in ["/a`b", "/a<b", "/a>b", "/?\"", "/?<", "/?>"] {
        let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
        let (host, token) = (host_name(ONE), world.token(ONE));
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }
    assert!(world.host.requests().is_empty());
}

/// A client that resets its HTTP/2 stream (CANCEL) ends the request at the app, before an answer and within one; its other
/// streams go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_its_client_resets_ends_at_the_app() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let at_work = || world.app.writers.load(Ordering::SeqCst);
    for to_app_http2 in ["false", "true"] {
        let Connection::Http2(sender) = world.connect(ONE, true).await else { unreachable!() };
        let mut other = Connection::Http2(sender.clone());
        for path in ["/silent", "/endless"] {
            let mut one = Connection::Http2(sender.clone());
            let request = world.authorized(ONE, path).header("x-aws-proxy-force-h2", to_app_http2);
            let asked = tokio::spawn(async move {
                let _response = one.open(ONE, request, body("")).await;
                std::future::pending::<()>().await;
            });
            until("the app is at work", || async { at_work() == 1 }).await;
            // Dropping the response, or the wait for it, resets the stream.
            asked.abort();
            let ended = until("the app hears of it", || async { at_work() == 0 });
            tokio::time::timeout(WAIT, ended).await.expect(path);
            let request = world.authorized(ONE, "/").header("x-aws-proxy-force-h2", to_app_http2);
            assert_eq!(other.send(ONE, request, body("")).await.status, 200, "{path} {to_app_http2}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_length_ends_where_the_app_closes() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    // What the app says, then it closes; what the client reads, `None` when it ends in an error.
    for (said, expected) in [
        ("HTTP/1.0 200 OK\r\n\r\nold and plain", Some("old and plain")),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nplain", Some("plain")),
        ("HTTP/1.0 200 OK\r\n\r\n", Some("")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ncut\r\n", None),
    ] {
        let serve = move |mut stream: tokio::net::TcpStream| async move {
            raw::head(&mut stream).await;
            stream.write_all(said.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            raw::rest(&mut stream).await;
        };
        world.host.redirect(id(ONE), raw::app(serve).await);
        for http2 in [false, true] {
            let request = world.authorized(ONE, "/");
            let read = match world.connect(ONE, http2).await.open_or_break(ONE, request, body("")).await {
                Ok(response) => {
                    assert_eq!(response.status(), 200);
                    response.into_body().collect().await
                }
                // A reset takes what HTTP/2 has not sent yet with it, the head too.
                Err(broken) => Err(broken),
            };
            let read = read.ok().map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap());
            assert_eq!(read.as_deref(), expected, "{said:?} http2: {http2}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_when_they_are_said() {
    let (say, said) = mpsc::unbounded_channel::<&str>();
    let said = std::sync::Arc::new(tokio::sync::Mutex::new(said));
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let serve = move |mut stream: tokio::net::TcpStream| {
        let said = said.clone();
        async move {
            raw::head(&mut stream).await;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            while let Some(event) = said.lock().await.recv().await {
                if event == "end" {
                    let _ = stream.write_all(b"0\r\n\r\n").await;
                    return;
                }
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
            }
        }
    };
    world.host.redirect(id(ONE), raw::app(serve).await);
    for http2 in [false, true] {
        let mut response =
            world.connect(ONE, http2).await.open(ONE, world.authorized(ONE, "/"), body("")).await;
        // The head came, though not one event has been said.
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            say.send(event).unwrap();
            let frame = response.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
        say.send("end").unwrap();
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}

/// A body that the test says frame by frame.
fn spoken() -> (mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>, ClientBody) {
    let (say, said) = mpsc::channel(1);
    (say, StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(said)).boxed())
}

fn with_trailers(text: &'static str) -> ClientBody {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("of the client"));
    Full::new(Bytes::from(text)).with_trailers(async move { Some(Ok(trailers)) }).boxed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_asked_for_over_http2() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let mut connection = world.connect(ONE, true).await;
    let grpc = |path: &str| {
        let request = world.authorized(ONE, path).method("POST").header("content-type", "application/grpc");
        request.header("te", "trailers").header("grpc-timeout", "1500m")
    };
    let answer = connection.send(ONE, grpc("/seen"), body("")).await;
    let seen: Vec<&str> = answer.body.lines().collect();
    for line in ["content-type: application/grpc", "grpc-timeout: 1500m", "te: trailers"] {
        assert!(seen.contains(&line), "{seen:?}");
    }
    assert_eq!(seen[0], format!("HTTP/2.0 http://{}/seen", host_name(ONE)));
    let answer = connection.send(ONE, grpc("/trailers"), with_trailers("a message")).await;
    assert_eq!(answer.body, "message");
    assert_eq!(answer.trailers["grpc-status"], "0");
    assert_eq!(answer.trailers["x-seen"], "of the client");
    // A conversation: each side says something when it has heard the other.
    let (say, stream) = spoken();
    let mut response = connection.open(ONE, grpc("/echo"), stream).await;
    for word in ["one", "two", "three"] {
        say.send(Ok(Frame::data(Bytes::from(word)))).await.unwrap();
        assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), word);
    }
    drop(say);
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(world.host.requests().len(), 1, "one tunnel carries them all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_breaks_with_its_reason() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    // The app's own reset; and one that speaks HTTP/1.1 and falls over in the middle of its answer.
    for forced in ["true", "false"] {
        let (say, stream) = spoken();
        let request = world.authorized(ONE, "/reset").method("POST").header("x-aws-proxy-force-h2", forced);
        say.send(Ok(Frame::data(Bytes::from("first")))).await.unwrap();
        let mut response = world.connect(ONE, true).await.open(ONE, request, stream).await;
        assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        say.send(Ok(Frame::data(Bytes::from("second")))).await.unwrap();
        let error = response.into_body().collect().await.unwrap_err();
        assert!(format!("{error:?}").contains("INTERNAL_ERROR"), "{forced}: {error:?}");
    }
}
