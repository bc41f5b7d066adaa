//! Apps that speak TLS on their port: they are found out whichever way they show it, and plain apps notice nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::microvm::v1::MicrovmState::Running;
use edge_proxy::config::Limits;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testkit::until;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::ONE;
use super::websockets::handshake;
use super::world::app::AppServer;
use super::world::client::body;
use super::world::{World, host_name, id, limits, raw};

const GO: &str = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
const NGINX: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n<title>400 The plain HTTP request was sent to \
                     HTTPS port</title>";
/// What TLS apps say to a plain request: an alert, a sentence, nothing.
const WAYS: [Option<&str>; 4] = [None, Some(GO), Some(NGINX), Some("")];
/// More than is kept to be said again, and more than any buffer on the way.
const LARGE: usize = 6 << 20;

fn config(world: &World, protocols: &[&[u8]]) -> ServerConfig {
    let file = |name: &str| world.directory.path().join(name);
    let chain = CertificateDer::pem_file_iter(file("endpoints.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(file("endpoints.key")).unwrap();
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// Gives a running microVM an app that speaks TLS only.
async fn tls_app(world: &World, number: u128, to_plain: Option<&'static str>) -> AppServer {
    world.microvm(number, Running);
    let app = AppServer::start_tls(config(world, &[b"h2", b"http/1.1"]), to_plain).await;
    world.host.redirect(id(number), app.address);
    app
}

fn tunnels(world: &World, number: u128) -> usize {
    world.host.requests().iter().filter(|request| request.microvm_id == id(number)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_found_out_whichever_way_they_show_it() {
    let world = World::start(limits()).await;
    for (number, to_plain) in (1..).zip(WAYS) {
        let app = tls_app(&world, number, to_plain).await;
        let mut connection = world.connect(number, true).await;
        // The first request of all is one that must not be carried out twice.
        let request = world.authorized(number, "/flaky").method("POST");
        let answer = connection.send(number, request, body("a body")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "a body"), "{to_plain:?}");
        let taken = tunnels(&world, number);
        assert!((2..=3).contains(&taken), "{to_plain:?}: {taken}");
        for _ in 0..3 {
            let answer = connection.send(number, world.authorized(number, "/seen"), body("")).await;
            assert!(answer.body.starts_with("HTTP/1.1 /seen\n"), "{}", answer.body);
        }
        assert_eq!(app.requests.load(Ordering::SeqCst), 4);
        assert_eq!(tunnels(&world, number), taken, "the connection is kept");
        let forced = world.authorized(number, "/seen").header("x-aws-proxy-force-h2", "true");
        let answer = connection.send(number, forced, body("")).await;
        assert!(answer.body.starts_with("HTTP/2.0 "), "{}", answer.body);
        assert_eq!(tunnels(&world, number), taken + 1, "nothing is to be found out any more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_may_be_the_first() {
    let world = World::start(limits()).await;
    for (number, to_plain) in (1..).zip(WAYS) {
        let _app = tls_app(&world, number, to_plain).await;
        let request = world.authorized(number, "/trailers").method("POST");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let answer = world.connect(number, true).await.send(number, request, body("a message")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "message"), "{to_plain:?}");
        assert_eq!(answer.trailers["grpc-status"], "0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_may_be_the_first() {
    let world = World::start(limits()).await;
    let sent = "0123456789abcdef".repeat(LARGE / 16);
    let upload = async |number| {
        let request = world.authorized(number, "/flaky").method("POST");
        let answer = world.connect(number, false).await.send(number, request, body(sent.clone())).await;
        assert_eq!(answer.status, 200, "{number}");
        assert!(answer.body == sent, "{number}: bytes were changed");
    };
    for (number, to_plain) in (1..).zip(WAYS) {
        let app = tls_app(&world, number, to_plain).await;
        upload(number).await;
        assert_eq!(app.requests.load(Ordering::SeqCst), 1);
    }
    // A plain app's comes by the way that it began on.
    world.microvm(99, Running);
    upload(99).await;
    assert_eq!(tunnels(&world, 99), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_may_be_the_first_and_sleeps_and_wakes() {
    let world = World::start(limits()).await;
    for (number, to_plain) in (1..).zip(WAYS) {
        let _app = tls_app(&world, number, to_plain).await;
        let http2 = number % 2 == 0;
        let mut request = handshake(http2, "/socket").header("x-aws-proxy-auth", world.token(number));
        if let Some(headers) = request.headers_mut().filter(|_| !http2) {
            headers.insert("host", host_name(number).parse().unwrap());
        }
        let mut connection = world.connect(number, http2).await;
        let response = connection.open(number, request, body("")).await;
        assert_eq!(response.status().as_u16(), if http2 { 200 } else { 101 }, "{to_plain:?}");
        let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "websocket - 13 -\n");
        let (guest, taken) = (world.host.guest(&id(number)), tunnels(&world, number));
        for sleeps in 1..=2 {
            guest.suspend();
            until("its sleep", || async { guest.held.load(Ordering::SeqCst) == sleeps }).await;
            stream.write_all(b"hello\n").await.unwrap();
            stream.flush().await.unwrap();
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            assert_eq!((line.as_str(), guest.wakes.load(Ordering::SeqCst)), ("hello\n", sleeps));
        }
        assert_eq!(tunnels(&world, number), taken, "a tunnel was opened anew");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}

/// The farewells of TLS and of HTTP/2 would be bytes for a microVM that sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_nobody_needs_any_more_wakes_nobody() {
    let world = World::start(Limits { idle_tunnel_ms: 300, ..limits() }).await;
    let _app = tls_app(&world, 1, None).await;
    world.microvm(2, Running);
    for (number, http2) in [(1, "false"), (1, "true"), (2, "false"), (2, "true")] {
        // Nothing is said by the edge after the answer to a second request: to the first it may still owe the app the receipt of
        // its HTTP/2 settings.
        loop {
            let taken = tunnels(&world, number);
            let request = world.authorized(number, "/").header("x-aws-proxy-force-h2", http2);
            assert_eq!(world.connect(number, false).await.send(number, request, body("")).await.status, 200);
            if tunnels(&world, number) == taken {
                break;
            }
        }
        let guest = world.host.guest(&id(number));
        let woken = guest.wakes.load(Ordering::SeqCst);
        guest.suspend();
        until("the tunnel to close", || async { world.host.open.load(Ordering::SeqCst) == 0 }).await;
        assert_eq!(guest.wakes.load(Ordering::SeqCst), woken, "microVM {number}, HTTP/2: {http2}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_started_anew_may_speak_otherwise() {
    let world = World::start(limits()).await;
    let tls = tls_app(&world, ONE, None).await;
    for (address, statuses) in
        [(tls.address, [200, 200]), (world.app.address, [200, 200]), (tls.address, [502, 200])]
    {
        world.host.redirect(id(ONE), address);
        world.host.cut();
        // What a plain app was asked it may have carried out.
        for status in statuses {
            assert_eq!(world.get(ONE, "/").await.status, status, "{address}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_apps_own_400_is_an_answer() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let serve = |mut stream: tokio::net::TcpStream| async move {
        if raw::head(&mut stream).await.starts_with("GET ") {
            let answer = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    world.host.redirect(id(ONE), raw::app(serve).await);
    for asked in 1..=3 {
        let answer = world.get(ONE, "/").await;
        assert_eq!((answer.status, answer.body.as_str()), (400, "no"));
        assert_eq!(tunnels(&world, ONE), asked);
    }
}

/// It has had the request, so it must not have it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_closes_over_a_request_is_not_asked_twice() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let heads = Arc::new(AtomicUsize::new(0));
    let seen = heads.clone();
    let serve = move |mut stream: tokio::net::TcpStream| {
        let seen = seen.clone();
        async move {
            if raw::head(&mut stream).await.ends_with("\r\n\r\n") {
                seen.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    world.host.redirect(id(ONE), raw::app(serve).await);
    for asked in 1..=2 {
        let answer = world.get(ONE, "/").await;
        assert_eq!((answer.status, answer.body.as_str()), (502, ""));
        assert_eq!(answer.header("x-aws-proxy-error"), Some("APP_CONNECT_FAILED"));
        assert_eq!(heads.load(Ordering::SeqCst), asked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_speaks_neither_is_told_apart() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let refused = async |text: &str| {
        for _ in 0..2 {
            let answer = world.get(ONE, "/").await;
            assert_eq!((answer.status, answer.body.as_str()), (502, text));
            assert_eq!(answer.header("x-aws-proxy-error"), Some("APP_CONNECT_FAILED"));
        }
    };
    let serve = |mut stream: tokio::net::TcpStream| async move {
        raw::head(&mut stream).await;
        let _ = stream.write_all(b"-ERR unknown command\r\n").await;
        raw::rest(&mut stream).await;
    };
    world.host.redirect(id(ONE), raw::app(serve).await);
    refused("The app on this port speaks neither HTTP nor TLS").await;
    // It wants what this request does not.
    let app = AppServer::start_tls(config(&world, &[b"h2"]), None).await;
    world.host.redirect(id(ONE), app.address);
    refused("The app on this port turned the TLS handshake down").await;
    let forced = world.authorized(ONE, "/").header("x-aws-proxy-force-h2", "true");
    assert_eq!(world.connect(ONE, false).await.send(ONE, forced, body("")).await.status, 200);
}
