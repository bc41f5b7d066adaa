//! WebSockets through the edge: who may open one, what the app sees, and that bytes pass both ways.

use std::sync::atomic::Ordering;
use std::time::Duration;

use api::microvm::v1::MicrovmState::{Running, Suspended};
use edge_proxy::config::Limits;
use http::request::Builder;
use http::{Method, Request};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use testkit::until;
use token::{Kind, PortScope};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::world::client::body;
use super::world::host::Conduct;
use super::world::{World, claims, host_name, id, limits, raw};
use super::{ONE, TWO};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A handshake without a token.
pub fn handshake(http2: bool, path: &str) -> Builder {
    let request = Request::builder().uri(path).header("sec-websocket-version", "13");
    if http2 {
        return request.method(Method::CONNECT).extension(Protocol::from_static("websocket"));
    }
    request
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "WebSocket")
        .header("sec-websocket-key", KEY)
        .header("host", host_name(ONE))
}

fn offers(token: &str, more: &str) -> String {
    format!("lambda-microvms, lambda-microvms.authentication.{token}{more}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_both_ways_and_the_app_sees_its_own_protocols() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let token = world.token(ONE);
    for (http2, offered, select, seen, selected) in [
        (false, offers(&token, ""), None, "-", Some("lambda-microvms")),
        (true, offers(&token, ""), None, "-", Some("lambda-microvms")),
        (
            false,
            offers(&token, ", chat, lambda-microvms.port.9000, mqtt"),
            Some("mqtt"),
            "chat, mqtt",
            Some("mqtt"),
        ),
        (true, offers(&token, ", chat"), Some("chat"), "chat", Some("chat")),
        (false, String::new(), None, "-", None),
        (true, "chat".to_owned(), Some("chat"), "chat", Some("chat")),
    ] {
        let mut request = handshake(http2, "/socket");
        if !offered.starts_with("lambda") {
            request = request.header("x-aws-proxy-auth", &token);
        }
        if !offered.is_empty() {
            request = request.header("sec-websocket-protocol", &offered);
        }
        if let Some(select) = select {
            request = request.header("x-select", select);
        }
        let mut connection = world.connect(ONE, http2).await;
        let response = connection.open(ONE, request, body("")).await;
        assert_eq!(response.status().as_u16(), if http2 { 200 } else { 101 }, "{offered}");
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("sec-websocket-protocol"), selected, "{offered}");
        assert_eq!(header("sec-websocket-accept"), (!http2).then_some("from the app"), "{offered}");
        assert!(header("x-amzn-requestid").is_some());
        let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, format!("websocket {seen} 13 -\n"));
        // More than any buffer on the way, while the other direction is read.
        let sent: Vec<u8> = (0..300_000u32).flat_map(u32::to_be_bytes).collect();
        let (mut read, mut write) = tokio::io::split(stream);
        let (to_send, mut received) = (sent.clone(), vec![0; sent.len()]);
        let sending = tokio::spawn(async move {
            write.write_all(&to_send).await.unwrap();
            write
        });
        read.read_exact(&mut received).await.unwrap();
        assert!(received == sent, "bytes were changed");
        // The end of one side reaches the other and comes back.
        sending.await.unwrap().shutdown().await.unwrap();
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
    }
    let port = world.host.requests()[2].port;
    assert_eq!(port, 9000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_are_checked_before_anything_is_opened() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Suspended);
    world.microvm(TWO, Running);
    let (good, foreign) = (world.token(ONE), world.token(TWO));
    let mut shell = claims(ONE);
    (shell.kind, shell.ports) = (Kind::Shell, vec![]);
    let shell = world.keys.mint(&shell).unwrap();
    let mut narrow = claims(ONE);
    narrow.ports = vec![PortScope::Single(9000)];
    let narrow = world.keys.mint(&narrow).unwrap();
    let unauthorized = Some("UNAUTHORIZED");
    for (offered, path, status, text, error) in [
        (
            format!("lambda-microvms.authentication.{good}"),
            "/",
            403,
            "Request missing authentication",
            unauthorized,
        ),
        ("lambda-microvms".to_owned(), "/", 403, "Request missing authentication", unauthorized),
        (offers("x", ""), "/", 403, "Request missing authentication", unauthorized),
        (offers(&foreign, ""), "/", 403, "Token authentication failed", unauthorized),
        (offers(&good, ", lambda-microvms.port.x"), "/", 400, "Invalid port", None),
        (offers(&narrow, ""), "/", 403, "Access to port denied", unauthorized),
        (offers(&good, ", lambda-microvms.port.7000"), "/", 403, "Access to port denied", unauthorized),
        (offers(&shell, ""), "/", 403, "Token authentication failed", unauthorized),
        (offers(&shell, ", lambda-microvms.port.8080"), "/shell", 403, "Access to port denied", unauthorized),
    ] {
        for http2 in [false, true] {
            let request = handshake(http2, path).header("sec-websocket-protocol", &offered);
            let answer = world.connect(ONE, http2).await.send(ONE, request, body("")).await;
            assert_eq!((answer.status, answer.body.as_str()), (status, text), "{offered}");
            assert_eq!(answer.header("x-aws-proxy-error"), error, "{offered}");
        }
    }
    let broken = |change: fn(Builder) -> Builder| {
        let request =
            Request::builder().uri("/").header("x-aws-proxy-auth", &good).header("host", host_name(ONE));
        change(request.header("connection", "upgrade").header("upgrade", "websocket"))
    };
    for request in [
        broken(|request| request),
        broken(|request| request.header("sec-websocket-version", "13")),
        broken(|request| request.header("sec-websocket-version", "8").header("sec-websocket-key", KEY)),
        broken(|request| {
            request.header("sec-websocket-version", "13").header("sec-websocket-key", "c2hvcnQ=")
        }),
        broken(|request| {
            request.method("POST").header("sec-websocket-version", "13").header("sec-websocket-key", KEY)
        }),
    ] {
        let answer = world.connect(ONE, false).await.send(ONE, request, body("")).await;
        assert_eq!((answer.status, answer.body.as_str()), (400, "Invalid WebSocket handshake"));
    }
    // A shell's token opens the shell as a WebSocket, and nothing else.
    let request = Request::get("/shell").header("x-aws-proxy-auth", &shell);
    let answer = world.connect(ONE, false).await.send(ONE, request, body("")).await;
    assert_eq!((answer.status, answer.body.as_str()), (502, ""));
    assert!(world.host.requests().is_empty(), "something was opened");
    world.host.conduct(id(ONE), Conduct::Wake(Duration::from_millis(50)));
    let request = handshake(false, "/shell")
        .header("sec-websocket-protocol", offers(&shell, ", lambda-microvms.port.8022"));
    let answer = world.connect(ONE, false).await.open(ONE, request, body("")).await;
    assert_eq!(answer.status().as_u16(), 502, "the scripted host has no shell");
    let asked = &world.host.requests()[0];
    assert_eq!((asked.shell, asked.port, asked.wake), (true, 0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_has_the_drain_time_to_end_by_itself() {
    let mut world = World::start(limits()).await;
    world.microvm(ONE, Running);
    for http2 in [false, true] {
        let request = handshake(http2, "/socket").header("x-aws-proxy-auth", world.token(ONE));
        let mut connection = world.connect(ONE, http2).await;
        let response = connection.open(ONE, request, body("")).await;
        let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
        stream.read_line(&mut String::new()).await.unwrap();
        world.shutdown.cancel();
        until("no new clients", || async { world.tcp().await.is_err() }).await;
        // It goes on.
        stream.write_all(b"still there").await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut [0; 11]).await.unwrap();
        // And the edge waits for it no longer than it takes.
        drop((stream, connection));
        tokio::time::timeout(super::world::WAIT, &mut world.serving).await.expect("still draining").unwrap();
        world = World::start(limits()).await;
        world.microvm(ONE, Running);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_wakes_its_microvm_waits_and_one_ends_with_the_edge() {
    let mut world = World::start(Limits { drain_ms: 200, ..limits() }).await;
    world.microvm(ONE, Suspended);
    world.host.conduct(id(ONE), Conduct::Wake(Duration::from_millis(200)));
    let request = handshake(false, "/socket").header("x-aws-proxy-auth", world.token(ONE));
    let response = world.connect(ONE, false).await.open(ONE, request, body("")).await;
    assert_eq!(response.status().as_u16(), 101);
    assert!(response.headers().contains_key("server-timing"));
    let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
    stream.read_line(&mut String::new()).await.unwrap();
    world.shutdown.cancel();
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(super::world::WAIT, stream.read_to_end(&mut rest)).await.expect("still open");
    assert!(rest.is_empty());
    tokio::time::timeout(super::world::WAIT, &mut world.serving)
        .await
        .expect("the edge did not stop")
        .unwrap();
}

/// An app that agrees to any handshake and sends one frame.
async fn one_frame(mut stream: tokio::net::TcpStream) {
    raw::head(&mut stream).await;
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all([answer.as_bytes(), b"\x81\x05hello"].concat().as_slice()).await.unwrap();
    let _ = raw::rest(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_open_when_the_drain_time_ends_is_told_that_the_edge_goes() {
    for http2 in [false, true] {
        let mut world = World::start(Limits { drain_ms: 1000, ..limits() }).await;
        world.microvm(ONE, Running);
        world.host.redirect(id(ONE), raw::app(one_frame).await);
        let request = handshake(http2, "/").header("x-aws-proxy-auth", world.token(ONE));
        let response = world.connect(ONE, http2).await.open(ONE, request, body("")).await;
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        stream.read_exact(&mut [0; 7]).await.unwrap();
        world.shutdown.cancel();
        // 1001 is "going away"; then the stream ends.
        assert_eq!(raw::rest(&mut stream).await, b"\x88\x02\x03\xe9", "HTTP/2: {http2}");
        drop(stream);
        let serving = &mut world.serving;
        tokio::time::timeout(super::world::WAIT, serving).await.expect("the edge did not stop").unwrap();
    }
}

/// A thousand WebSockets on fifty microVMs that sleep: one message each wakes every microVM once, and each is answered on the
/// connection that it came by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sleep_and_wake_with_fifty_microvms() {
    const MICROVMS: u128 = 50;
    const EACH: usize = 20;
    let world = World::start(limits()).await;
    let mut sockets = Vec::new();
    for number in 1..=MICROVMS {
        world.microvm(number, Running);
        let mut connection = world.connect(number, true).await;
        for _ in 0..EACH {
            let request = handshake(true, "/socket").header("x-aws-proxy-auth", world.token(number));
            let response = connection.open(number, request, body("")).await;
            assert_eq!(response.status(), 200);
            let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
            let mut greeting = String::new();
            stream.read_line(&mut greeting).await.unwrap();
            sockets.push(stream);
        }
    }
    let opened = world.host.requests().len();
    let guests: Vec<_> = (1..=MICROVMS).map(|number| world.host.guest(&id(number))).collect();
    for guest in &guests {
        guest.suspend();
    }
    let messages = sockets.into_iter().enumerate().map(|(index, mut stream)| async move {
        let message = format!("message {index}\n");
        stream.write_all(message.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        assert_eq!(answer, message);
        stream
    });
    let answered = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(messages)).await;
    assert_eq!(answered.expect("some were not answered").len(), MICROVMS as usize * EACH);
    for guest in &guests {
        assert_eq!(guest.wakes.load(Ordering::SeqCst), 1);
    }
    assert_eq!(world.host.requests().len(), opened, "a tunnel was opened anew");
}
