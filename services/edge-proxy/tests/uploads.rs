//! Uploads that the app has an opinion of before it has read them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::microvm::v1::MicrovmState::Running;
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use testkit::until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::ONE;
use super::world::client::body;
use super::world::{World, host_name, id, limits, raw};

/// More than all buffers between a client and its app hold.
const LARGE: usize = 24 << 20;
const TOO_LARGE: &str =
    "HTTP/1.1 413 Content Too Large\r\nx-app: yes\r\ncontent-length: 18\r\n\r\nthat is too much\r\n";

fn head(world: &World, more: &str) -> String {
    format!(
        "PUT /upload HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {}\r\n{more}\r\n",
        host_name(ONE),
        world.token(ONE)
    )
}

/// A world whose microVM's app is a function of a connection.
async fn world_of<S>(serve: impl Fn(tokio::net::TcpStream) -> S + Send + Sync + 'static) -> World
where
    S: Future<Output = ()> + Send + 'static,
{
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    world.host.redirect(id(ONE), raw::app(serve).await);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_says_when_a_body_that_is_held_back_may_come() {
    let world = world_of(|mut stream| async move {
        loop {
            let head = raw::head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            assert!(head.contains("expect: 100-continue\r\n"), "{head}");
            // An app that knows nothing of the matter waits for the body in silence.
            if head.contains("x-polite: yes") {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            }
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
    })
    .await;
    for polite in ["yes", "no"] {
        let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
        let more = format!("expect: 100-continue\r\nx-polite: {polite}\r\ncontent-length: 5\r\n");
        client.write_all(head(&world, &more).as_bytes()).await.unwrap();
        assert_eq!(raw::head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"hello").await.unwrap();
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_turns_a_body_away_before_any_of_it_is_sent() {
    let unread = Arc::new(AtomicUsize::new(usize::MAX));
    let seen = unread.clone();
    let world = world_of(move |mut stream| {
        let seen = seen.clone();
        async move {
            raw::head(&mut stream).await;
            stream.write_all(TOO_LARGE.as_bytes()).await.unwrap();
            seen.store(raw::rest(&mut stream).await.len(), Ordering::SeqCst);
        }
    })
    .await;
    let app_saw_no_body = || async { unread.swap(usize::MAX, Ordering::SeqCst) == 0 };
    let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
    let more = "expect: 100-continue\r\ncontent-length: 1000000\r\n";
    client.write_all(head(&world, more).as_bytes()).await.unwrap();
    let answer = raw::head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("x-app: yes\r\n"), "{answer}");
    assert_eq!(raw::rest(&mut client).await, b"that is too much\r\n");
    until("the app's connection is closed", app_saw_no_body).await;
    // hyper's client sends the body without waiting; it stays at the edge.
    let mut connection = world.connect(ONE, true).await;
    let request = world.authorized(ONE, "/upload").method("PUT").header("expect", "100-continue");
    let answer = connection.send(ONE, request, body("much")).await;
    assert_eq!((answer.status, answer.body.as_str()), (413, "that is too much\r\n"));
    until("the app's connection is closed", app_saw_no_body).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_answers_and_closes_is_heard_by_those_who_send_first() {
    let world = world_of(|mut stream| async move {
        raw::head(&mut stream).await;
        stream.write_all(TOO_LARGE.as_bytes()).await.unwrap();
        // Dropped with input unread, the socket resets the connection.
    })
    .await;
    let chunk = vec![b'x'; 64 * 1024];
    for chunked in [false, true] {
        let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
        let more = if chunked {
            "transfer-encoding: chunked\r\n".into()
        } else {
            format!("content-length: {LARGE}\r\n")
        };
        client.write_all(head(&world, &more).as_bytes()).await.unwrap();
        // As most HTTP libraries do: everything is sent before anything is read.
        for _ in 0..LARGE / chunk.len() {
            let frame = if chunked { [b"10000\r\n", &chunk[..], b"\r\n"].concat() } else { chunk.clone() };
            client.write_all(&frame).await.unwrap();
        }
        if chunked {
            client.write_all(b"0\r\n\r\n").await.unwrap();
        }
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "chunked: {chunked}: {answer}");
        let mut text = [0; 18];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"that is too much\r\n");
    }
    // In HTTP/2 the answer overtakes what is held back by the window.
    for attempt in 0..8 {
        let request = world.authorized(ONE, "/upload").method("PUT");
        let upload = body(vec![b'x'; LARGE]);
        let answer = world.connect(ONE, true).await.send(ONE, request, upload).await;
        assert_eq!((answer.status, answer.body.as_str()), (413, "that is too much\r\n"), "{attempt}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edges_own_refusals_reach_those_who_send_first() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    for (token, port, status) in
        [("x".to_owned(), 8080, 403), (world.token(ONE), 8081, 403), (world.token(ONE), 9001, 502)]
    {
        let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
        let head = format!(
            "PUT / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {token}\r\nx-aws-proxy-port: {port}\r\n\
             content-length: {LARGE}\r\n\r\n",
            host_name(ONE)
        );
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'x'; LARGE]).await.unwrap();
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_stalls_the_writer() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    // Sent to an app that reads nothing; the client's two protocols, and the app's.
    for (http2, force_h2) in [(false, false), (true, false), (true, true)] {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let endless = futures::stream::repeat_with(move || {
            counter.fetch_add(chunk.len(), Ordering::SeqCst);
            Ok(Frame::data(chunk.clone()))
        });
        let mut request = world.authorized(ONE, "/stall").method("POST");
        if force_h2 {
            request = request.header("x-aws-proxy-force-h2", "true");
        }
        let mut connection = world.connect(ONE, http2).await;
        let upload = connection.open(ONE, request, StreamBody::new(endless).boxed());
        tokio::select! {
            response = upload => panic!("{response:?}"),
            () = stalls(&sent) => {}
        }
    }
    // Received from an app that does not stop.
    for (http2, force_h2) in [(false, false), (true, false), (true, true)] {
        let before = world.app.produced.load(Ordering::SeqCst);
        let mut request = world.authorized(ONE, "/endless");
        if force_h2 {
            request = request.header("x-aws-proxy-force-h2", "true");
        }
        let response = world.connect(ONE, http2).await.open(ONE, request, body("")).await;
        until("the app writes", || async { world.app.produced.load(Ordering::SeqCst) > before }).await;
        stalls(&world.app.produced).await;
        let buffered = world.app.produced.load(Ordering::SeqCst) - before;
        assert!(buffered < LARGE, "{buffered} bytes are on the way");
        // The client goes, and so does the app's writer.
        drop(response);
        until("the app's writer ends", || async { world.app.writers.load(Ordering::SeqCst) == 0 }).await;
    }
}

/// Waits until a number stands still for a while, below what would be boundless.
async fn stalls(number: &AtomicUsize) {
    const STILL: Duration = Duration::from_millis(300);
    let (mut last, mut since) = (0, std::time::Instant::now());
    until("the writer stalls", || {
        let now = number.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
        let still = last > 0 && since.elapsed() > STILL;
        async move { still }
    })
    .await;
    assert!(last < LARGE * 2, "{last} bytes were taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_breaks_off_at_the_app() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let seen = Arc::new(AtomicUsize::new(usize::MAX));
    let counter = seen.clone();
    let raw = raw::app(move |mut stream| {
        let counter = counter.clone();
        async move {
            raw::head(&mut stream).await;
            counter.store(raw::rest(&mut stream).await.len(), Ordering::SeqCst);
        }
    })
    .await;
    world.host.redirect(id(ONE), raw);
    let mut client = world.tls(ONE, false, |_| ()).await.unwrap();
    client.write_all(head(&world, "content-length: 1000\r\n").as_bytes()).await.unwrap();
    client.write_all(b"only this").await.unwrap();
    drop(client);
    until("the app knows", || async { seen.load(Ordering::SeqCst) <= 9 }).await;
}
