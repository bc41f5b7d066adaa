//! WebSockets through the edge: who may open one, what the app sees, and that bytes pass both ways.

use std::time::Duration;

use api::microvm::v1::MicrovmState::{Running, Suspended};
use http::request::Builder;
use http::{Method, Request};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use token::{Kind, PortScope};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::world::client::body;
use super::world::host::Conduct;
use super::world::{World, claims, host_name, id, limits};
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
async fn one_that_wakes_its_microvm_waits_and_one_ends_with_the_edge() {
    let mut world = World::start(limits()).await;
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
