//! What one address, one slow client and one microVM may hold, and that the others are served all the same.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::microvm::v1::MicrovmState::Running;
use edge_proxy::config::Limits;
use futures::future::join_all;
use http::Request;
use hyper_util::rt::TokioIo;
use testkit::certificates;
use testkit::until;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::world::client::{Connection, body};
use super::world::raw;
use super::world::{DOMAIN, WAIT, World, host_name, limits};
use super::{ONE, TWO, websockets};

/// Another client's address.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const THREE: u128 = 0x0000_0003_0000_4000_8000_0000_0000_0003;

/// Waits until the edge closes a connection.
pub async fn closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    let reading = async { while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(WAIT, reading).await.expect("still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_opens_all_it_can_leaves_room_for_others() {
    let mut world = World::start(Limits { connections: 5, connections_per_address: 3, ..limits() }).await;
    world.microvm(ONE, Running);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(world.tls(ONE, false, |_| ()).await.unwrap());
    }
    for _ in 0..10 {
        // Before TLS: nothing was sent and it is closed.
        closed(&mut world.tcp().await.unwrap()).await;
        assert!(world.tls(ONE, false, |_| ()).await.is_err());
    }
    world.from = ELSEWHERE;
    assert_eq!(world.get(ONE, "/").await.status, 200);
    world.from = Ipv4Addr::LOCALHOST;
    held.pop();
    until("its place is free again", || async { world.tls(ONE, false, |_| ()).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_counts_as_a_connection_until_it_closes() {
    let world = World::start(Limits { connections_per_address: 1, ..limits() }).await;
    world.microvm(ONE, Running);
    let request = websockets::handshake(false, "/socket").header("x-aws-proxy-auth", world.token(ONE));
    let response = world.connect(ONE, false).await.open(ONE, request, body("")).await;
    assert_eq!(response.status().as_u16(), 101);
    let stream = hyper::upgrade::on(response).await.unwrap();
    assert!(world.tls(ONE, false, |_| ()).await.is_err());
    drop(stream);
    until("its place is free again", || async { world.tls(ONE, false, |_| ()).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_of_one_address_wait_behind_each_other() {
    let mut world = World::start(Limits { handshakes: 4, handshake_ms: 60_000, ..limits() }).await;
    world.microvm(ONE, Running);
    let silent = world.tcp().await.unwrap();
    let answered = async || {
        let hello = world.tls(ONE, false, |_| ());
        tokio::time::timeout(Duration::from_millis(300), hello).await.is_ok()
    };
    until("the silent one has the address's turn", || async { !answered().await }).await;
    world.from = ELSEWHERE;
    assert_eq!(world.get(ONE, "/").await.status, 200);
    world.from = Ipv4Addr::LOCALHOST;
    drop(silent);
    assert_eq!(world.get(ONE, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_head_and_an_idle_connection_end() {
    let world = World::start(Limits { header_read_ms: 300, ..limits() }).await;
    let mut stream = world.tls(ONE, false, |_| ()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-never").await.unwrap();
    closed(&mut stream).await;
    drop(world);
    let world = World::start(Limits { idle_ms: 300, ..limits() }).await;
    world.microvm(ONE, Running);
    for http2 in [false, true] {
        let mut connection = world.connect(ONE, http2).await;
        // Longer than the idle time, and not idle.
        assert_eq!(connection.send(ONE, world.authorized(ONE, "/slow"), body("")).await.status, 200);
        // The client answers pings, and asks nothing.
        until("it is told to go", || async {
            match &connection {
                Connection::Http1(sender) => sender.is_closed(),
                Connection::Http2(sender) => sender.is_closed(),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_connection_gives_its_buffers_back_and_goes_on() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let mut stream = world.tls(ONE, false, |_| ()).await.unwrap();
    let (host, token) = (host_name(ONE), world.token(ONE));
    let request = format!(
        "POST /echo HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\ncontent-length: 2\r\n\r\nhi"
    );
    for cut in [request.len(), 1, request.len() - 1] {
        stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
        until("it has buffers", || async { world.counts("connections_quiet 0") }).await;
        stream.write_all(&request.as_bytes()[cut..]).await.unwrap();
        let head = raw::head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
        until("it is quiet", || async { world.counts("connections_quiet 1") }).await;
    }
    world.shutdown.cancel();
    closed(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rest_gives_no_head_its_time_anew() {
    let world = World::start(Limits { header_read_ms: 3000, ..limits() }).await;
    world.microvm(ONE, Running);
    let mut stream = world.tls(ONE, false, |_| ()).await.unwrap();
    let (host, token) = (host_name(ONE), world.token(ONE));
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\n\r\nGET /");
    stream.write_all(request.as_bytes()).await.unwrap();
    let begun = Instant::now();
    closed(&mut stream).await;
    // Once for the connection, and once for its rest.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_is_given_up() {
    let world = World::start(Limits { unread_ms: 300, ..limits() }).await;
    world.microvm(ONE, Running);
    let given_up = async || {
        until("it is given up", || async { world.host.open.load(Ordering::SeqCst) == 0 }).await;
    };
    for http2 in [false, true] {
        let mut connection = world.connect(ONE, http2).await;
        let response = connection.open(ONE, world.authorized(ONE, "/endless"), body("")).await;
        assert_eq!(response.status().as_u16(), 200);
        given_up().await;
        if http2 {
            // Its neighbours on the connection are not.
            assert_eq!(connection.send(ONE, world.authorized(ONE, "/"), body("")).await.status, 200);
            world.host.cut();
        }
        drop(response);
        given_up().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_nobody_reads_is_given_up() {
    let world = World::start(Limits { unread_ms: 300, idle_ms: 300, ..limits() }).await;
    world.microvm(ONE, Running);
    for http2 in [false, true] {
        let request = websockets::handshake(http2, "/socket").header("x-aws-proxy-auth", world.token(ONE));
        let mut connection = world.connect(ONE, http2).await;
        let response = connection.open(ONE, request, body("")).await;
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        // It is an echo: whoever does not read cannot write for ever. Over HTTP/2 the connection's end tells the client.
        let writing = async { while stream.write_all(&[0; 64 * 1024]).await.is_ok() {} };
        let given_up = until("it is given up", || async { world.host.open.load(Ordering::SeqCst) == 0 });
        tokio::time::timeout(WAIT * 2, async { tokio::join!(writing, given_up) })
            .await
            .unwrap_or_else(|_| panic!("http2 {http2}: {} open", world.host.open.load(Ordering::SeqCst)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_a_rate_are_refused() {
    let limited = Limits { requests_per_second_per_microvm: 1, ..limits() };
    let by_address = Limits { requests_per_second_per_address: 1, ..limits() };
    for (limits, by_address) in [(limited, false), (by_address, true)] {
        let mut world = World::start(limits).await;
        world.microvm(ONE, Running);
        world.microvm(TWO, Running);
        let answers = join_all((0..8).map(|_| world.get(ONE, "/"))).await;
        assert!(answers.iter().any(|answer| answer.status == 200));
        let refused = answers.iter().find(|answer| answer.status == 429).expect("no rate");
        assert_eq!((refused.header("retry-after"), refused.body.as_str()), (Some("1"), ""));
        if by_address {
            world.from = ELSEWHERE;
        }
        assert_eq!(world.get(TWO, "/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_over_a_rate_wait() {
    const BYTES: usize = 1_000_000;
    // Half of what goes through is a burst.
    const AT_LEAST: Duration = Duration::from_millis(700);
    let limited = Limits { bytes_per_second_per_microvm: BYTES as u64, ..limits() };
    let world = World::start(limited).await;
    for (number, http2) in [(ONE, false), (TWO, true)] {
        world.microvm(number, Running);
        let started = Instant::now();
        let request = world.authorized(number, "/echo").method("POST");
        let mut connection = world.connect(number, http2).await;
        let answer = connection.send(number, request, body(vec![b'x'; BYTES])).await;
        assert_eq!((answer.status, answer.body.len()), (200, BYTES));
        assert!(started.elapsed() >= AT_LEAST, "{:?}", started.elapsed());
    }
    world.microvm(THREE, Running);
    let request = websockets::handshake(true, "/socket").header("x-aws-proxy-auth", world.token(THREE));
    let response = world.connect(THREE, true).await.open(THREE, request, body("")).await;
    assert_eq!(response.status().as_u16(), 200);
    let stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let (mut read, mut write) = tokio::io::split(stream);
    let started = Instant::now();
    let mut back = vec![0; BYTES];
    let (written, read) = tokio::join!(write.write_all(&[b'x'; BYTES]), read.read_exact(&mut back));
    written.unwrap();
    assert_eq!(read.unwrap(), BYTES);
    assert!(started.elapsed() >= AT_LEAST, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_certificate_is_used_once_it_is_whole() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let ours = world.directory.path().to_owned();
    let wildcard = format!("*.{DOMAIN}");
    let fresh = || {
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[("endpoints", &[&wildcard])]);
        directory
    };
    let (second, third) = (fresh(), fresh());
    let take = |from: &tempfile::TempDir, name: &str| {
        std::fs::copy(from.path().join(name), ours.join(name)).unwrap();
    };
    // Half of it: the key fits no certificate.
    take(&second, "endpoints.key");
    assert_eq!(world.get(ONE, "/").await.status, 200);
    take(&second, "endpoints.pem");
    take(&second, "ca.pem");
    until("the second certificate is in use", || async { world.tls(ONE, false, |_| ()).await.is_ok() }).await;
    std::fs::write(ours.join("endpoints.pem"), "nonsense").unwrap();
    assert_eq!(world.get(ONE, "/").await.status, 200);
    for name in ["endpoints.pem", "endpoints.key", "ca.pem"] {
        take(&third, name);
    }
    until("the third certificate is in use", || async { world.tls(ONE, false, |_| ()).await.is_ok() }).await;
    assert_eq!(world.get(ONE, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_is_one_and_the_connections_own() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    world.microvm(TWO, Running);
    let (one, two) = (host_name(ONE), host_name(TWO));
    let spelt = format!("{}.:8443", one.to_uppercase());
    for (target, hosts, named, status) in [
        ("/", vec![&one], true, 200),
        ("/", vec![&spelt], true, 200),
        ("/", vec![&two], true, 421),
        ("/", vec![&one], false, 200),
        ("/", vec![&one, &one], true, 400),
        ("/", vec![&one, &two], true, 400),
        ("https://ONE/", vec![&one], true, 200),
        ("https://ONE/", vec![&two], true, 400),
        ("https://user@ONE/", vec![&one], true, 400),
    ] {
        let mut stream = world.tls(ONE, false, |config| config.enable_sni = named).await.unwrap();
        let mut request = format!("GET {} HTTP/1.1\r\nconnection: close\r\n", target.replace("ONE", &one));
        for host in &hosts {
            request += &format!("host: {host}\r\n");
        }
        request += &format!("x-aws-proxy-auth: {}\r\n\r\n", world.token(ONE));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let expected = format!("HTTP/1.1 {status} ");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&expected), "{target} {hosts:?} {named}: {answer}");
    }
    for (authority, host, status) in
        [(&one, Some(&spelt), 400), (&one, Some(&one), 200), (&one, Some(&two), 400), (&two, None, 421)]
    {
        let Connection::Http2(mut sender) = world.connect(ONE, true).await else { unreachable!() };
        let mut request = Request::get(format!("https://{authority}/"))
            .header("x-aws-proxy-auth", world.token(ONE))
            .body(body(""))
            .unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{authority} {host:?}");
    }
}
