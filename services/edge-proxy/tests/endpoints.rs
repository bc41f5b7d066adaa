//! Requests through a real edge, over real TLS, to a real app.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::microvm::v1::MicrovmState::{Pending, Running, Suspended, Terminated};
use api::tunnel::v1::OpenStatus;
use bytes::Bytes;
use edge_proxy::config::Limits;
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use records::Expect;
use token::{Claims, Key, KeySet, Kind, PortScope};

mod browser;
mod domains;
mod floods;
mod leaving;
mod limits;
mod protocols;
mod smuggling;
mod storm;
mod tls_apps;
mod tokens;
mod uploads;
mod websockets;
mod world;
use testkit::until;
use world::client::body;
use world::host::Conduct;
use world::{World, claims, host_name, limits, microvm, now};

const ONE: u128 = 0x0000_0001_0000_4000_8000_0000_0000_0001;
const TWO: u128 = 0x0000_0002_0000_4000_8000_0000_0000_0002;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What it is, host name, token, port header; status, text and error header.
type Case<'a> = (&'a str, &'a str, Option<&'a str>, Option<&'a str>, (u16, &'a str, Option<&'a str>));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_ports_are_checked_before_anything_is_opened() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Suspended);
    world.microvm(TWO, Running);
    let good = world.token(ONE);
    let mint = |change: fn(&mut Claims)| {
        let mut claims = claims(ONE);
        change(&mut claims);
        world.keys.mint(&claims).unwrap()
    };
    let foreign = KeySet::new(vec![Key::generate(now()).unwrap()]).unwrap().mint(&claims(ONE)).unwrap();
    let mut broken = good.clone();
    broken.replace_range(
        good.len() - 8..good.len() - 7,
        if good.as_bytes()[good.len() - 8] == b'A' { "B" } else { "A" },
    );
    let missing = (403, "Request missing authentication", Some("UNAUTHORIZED"));
    let failed = (403, "Token authentication failed", Some("UNAUTHORIZED"));
    let denied = (403, "Access to port denied", Some("UNAUTHORIZED"));
    let misdirected = (421, "Misdirected request", None);
    let bad_port = (400, "Invalid port", None);
    let own = host_name(ONE);
    let cases: &[Case] = &[
        ("no token", &own, None, None, missing),
        ("not a token", &own, Some("Bearer x"), None, missing),
        ("empty", &own, Some(""), None, missing),
        ("expired", &own, Some(&mint(|claims| claims.expires_at = now() - 1)), None, failed),
        ("another microVM's", &own, Some(&world.token(TWO)), None, failed),
        ("another endpoint's connection", &host_name(TWO), Some(&good), None, misdirected),
        ("a foreign host name", "example.com", Some(&good), None, failed),
        ("unknown key", &own, Some(&foreign), None, failed),
        ("tampered with", &own, Some(&broken), None, failed),
        ("a shell's", &own, Some(&mint(|claims| claims.kind = Kind::Shell)), None, failed),
        ("port out of scope", &own, Some(&good), Some("8081"), denied),
        (
            "default port out of scope",
            &own,
            Some(&mint(|c| c.ports = vec![PortScope::Single(9000)])),
            None,
            denied,
        ),
        ("not a port", &own, Some(&good), Some("http"), bad_port),
        ("port zero", &own, Some(&good), Some("0"), bad_port),
    ];
    for http2 in [false, true] {
        let mut connection = world.connect(ONE, http2).await;
        for (case, host, token, port, (status, text, error)) in cases {
            if http2 && *host != own {
                continue; // the test's HTTP/2 client names the endpoint by itself
            }
            let mut request = Request::get("/");
            if !http2 {
                request = request.header("host", *host);
            }
            if let Some(token) = token {
                request = request.header("X-aws-proxy-auth", *token);
            }
            if let Some(port) = port {
                request = request.header("X-aws-proxy-port", *port);
            }
            let answer = connection.send(ONE, request, body("")).await;
            assert_eq!((answer.status, answer.body.as_str()), (*status, *text), "{case}");
            assert_eq!(answer.header("x-aws-proxy-error"), *error, "{case}");
            assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{case}");
            assert!(answer.headers.contains_key("x-amzn-requestid"), "{case}");
        }
    }
    let unknown = world.get(99, "/").await;
    assert_eq!((unknown.status, unknown.body.as_str()), (failed.0, failed.1));
    assert!(world.host.requests().is_empty(), "something was opened");
    assert_eq!(world.scheduler.resumes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_is_served() {
    let mut world = World::start(limits()).await;
    world.microvm(ONE, Running);
    for address in world.edges.clone() {
        world.edge = address;
        assert_eq!(world.get(ONE, "/").await.status, 200, "{address}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_arrive_clean_in_both_protocols() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    for http2 in [false, true] {
        let request = world
            .authorized(ONE, "/seen")
            .header("X-aws-proxy-port", "9000")
            .header("x-aws-proxy-anything", "1")
            .header("x-forwarded-for", "6.6.6.6")
            .header("traceparent", TRACE)
            .header("tracestate", "vendor=1")
            .header("x-custom", "kept");
        let answer = world.connect(ONE, http2).await.send(ONE, request, body("")).await;
        assert_eq!(answer.status, 200);
        let expected = [
            "HTTP/1.1 /seen".to_owned(),
            format!("host: {}", host_name(ONE)),
            format!("traceparent: {TRACE}"),
            "tracestate: vendor=1".to_owned(),
            "x-custom: kept".to_owned(),
            "x-forwarded-for: 127.0.0.1".to_owned(),
            "x-forwarded-proto: https".to_owned(),
        ];
        let seen: Vec<&str> =
            answer.body.lines().filter(|line| !line.starts_with("content-length: 0")).collect();
        assert_eq!(seen, expected, "http2: {http2}");
        assert_eq!(answer.header("x-app"), Some("yes"));
        assert_eq!(answer.header("x-aws-proxy-error"), None);
        assert_eq!(answer.header("keep-alive"), None);
        // The app's own comes first.
        let timing: Vec<&str> =
            answer.headers.get_all("server-timing").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!((timing.len(), timing[0]), (2, "own;dur=1"));
        assert!(timing[1].starts_with("edge;dur=") && timing[1].contains(", app;dur="), "{}", timing[1]);
        // What is no trace is not passed on.
        let request = world.authorized(ONE, "/seen").header("X-aws-proxy-port", "9000");
        let request = request.header("traceparent", "00-1-2-3").header("tracestate", "vendor=1");
        let answer = world.connect(ONE, http2).await.send(ONE, request, body("")).await;
        assert!(!answer.body.contains("trace"), "{}", answer.body);
    }
    let asked = world.host.requests();
    assert!(asked.iter().all(|request| request.port == 9000 && request.wake && request.generation == 1));
    assert!(asked.iter().all(|request| request.request_id.len() == 36));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    for http2 in [false, true] {
        let (sender, receiver) =
            tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        let stream = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed();
        let mut connection = world.connect(ONE, http2).await;
        let request = world.authorized(ONE, "/echo").method("POST");
        sender.send(Ok(Frame::data(Bytes::from("first")))).await.unwrap();
        let mut response = connection.open(ONE, request, stream).await;
        assert_eq!(response.status(), 200);
        let mut next = async || response.frame().await.unwrap().unwrap().into_data().unwrap();
        // The first piece is back before the last has been sent.
        assert_eq!(next().await, "first");
        sender.send(Ok(Frame::data(Bytes::from("second")))).await.unwrap();
        assert_eq!(next().await, "second");
        drop(sender);
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        // And a large one.
        let large = "x".repeat(3_000_000);
        let request = world.authorized(ONE, "/echo").method("POST");
        let answer = connection.send(ONE, request, body(large.clone())).await;
        assert_eq!(answer.body.len(), large.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_http2_with_trailers_when_asked_for() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let mut connection = world.connect(ONE, true).await;
    for _ in 0..3 {
        let request = world
            .authorized(ONE, "/trailers")
            .header("X-aws-proxy-force-h2", "true")
            .header("te", "trailers");
        let answer = connection.send(ONE, request, body("")).await;
        assert_eq!(answer.body, "message");
        assert_eq!(answer.trailers.get("grpc-status").unwrap(), "0");
    }
    let request = world.authorized(ONE, "/seen").header("X-aws-proxy-force-h2", "true");
    let answer = connection.send(ONE, request, body("")).await;
    assert!(answer.body.starts_with(&format!("HTTP/2.0 http://{}/seen", host_name(ONE))), "{}", answer.body);
    assert_eq!(world.host.requests().len(), 1, "one tunnel carries them all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_are_kept_and_dead_ones_replaced() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let mut connection = world.connect(ONE, false).await;
    for _ in 0..5 {
        assert_eq!(connection.send(ONE, world.authorized(ONE, "/"), body("")).await.status, 200);
    }
    assert_eq!(world.host.requests().len(), 1, "the tunnel was not kept");
    // Cut, as a suspend does: the next request opens another and nobody notices.
    world.host.cut();
    assert_eq!(connection.send(ONE, world.authorized(ONE, "/"), body("")).await.status, 200);
    assert_eq!(world.host.requests().len(), 2);
    // The app falls over just when a kept connection is used again.
    let before = world.app.requests.load(Ordering::SeqCst);
    let answer = connection.send(ONE, world.authorized(ONE, "/flaky"), body("")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.app.requests.load(Ordering::SeqCst), before + 2);
    assert_eq!(world.host.requests().len(), 3);
    // What may not be done twice is not: the app had the request.
    let post = world.authorized(ONE, "/flaky").method("POST");
    let answer = connection.send(ONE, post, body("")).await;
    assert_eq!((answer.status, answer.header("x-aws-proxy-error")), (502, Some("APP_CONNECT_FAILED")));
    // Unused tunnels do not stay for ever.
    drop(world);
    let world = World::start(Limits { idle_tunnel_ms: 200, ..limits() }).await;
    world.microvm(ONE, Running);
    assert_eq!(world.get(ONE, "/").await.status, 200);
    assert_eq!(world.host.open.load(Ordering::SeqCst), 1);
    until("the unused tunnel is closed", || async { world.host.open.load(Ordering::SeqCst) == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_refusals_become_answers() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let connect_failed = Some("MICROVM_CONNECT_FAILED");
    let store_away = "The host of this MicroVM cannot reach the record store (etcd). It serves again as soon as the store is back.";
    for (status, code, error, body, retry_after) in [
        (OpenStatus::NotHere, 503, None, "", Some("1")),
        (OpenStatus::Fenced, 503, Some("STORE_AWAY"), store_away, Some("1")),
        (OpenStatus::Terminated, 502, connect_failed, "", None),
        (OpenStatus::Suspended, 502, None, "", None),
        (OpenStatus::WakeFailed, 502, None, "", None),
        (OpenStatus::PortClosed, 502, Some("APP_CONNECT_FAILED"), "", None),
        (OpenStatus::NoRoom, 503, None, "", Some("1")),
        (OpenStatus::Busy, 429, None, "", Some("3")),
        (OpenStatus::NoIngress, 403, Some("UNAUTHORIZED"), "Access to port denied", None),
        (OpenStatus::Invalid, 500, None, "", None),
    ] {
        world.host.conduct(world::id(ONE), Conduct::Refuse(status));
        let answer = world.get(ONE, "/").await;
        assert_eq!((answer.status, answer.body.as_str()), (code, body), "{status:?}");
        assert_eq!(answer.header("x-aws-proxy-error"), error, "{status:?}");
        assert_eq!(answer.header("retry-after"), retry_after, "{status:?}");
    }
    // The states that need no host.
    world.microvm(ONE, Terminated);
    let mut asleep = microvm(TWO, Suspended, "");
    asleep.microvm.as_mut().unwrap().idle_policy = None;
    world.scheduler.tell(asleep);
    until("the edge knows that it has ended", || async {
        let asked = world.host.requests().len();
        world.get(ONE, "/").await.status == 502 && world.host.requests().len() == asked
    })
    .await;
    let answer = world.get(ONE, "/").await;
    assert_eq!((answer.status, answer.header("x-aws-proxy-error")), (502, connect_failed));
    let answer = world.get(TWO, "/").await;
    assert_eq!((answer.status, answer.header("x-aws-proxy-error"), answer.body.as_str()), (502, None, ""));
    assert_eq!(world.scheduler.resumes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_wakes_and_launches() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Suspended);
    world.host.conduct(world::id(ONE), Conduct::Wake(Duration::from_millis(300)));
    let started = Instant::now();
    let answer = world.get(ONE, "/").await;
    assert_eq!(answer.status, 200);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let timing = answer.header("server-timing").unwrap();
    for part in ["edge;dur=", "tunnel;dur=3", "restore;dur=300.000;start=0.000", "app;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    // The next one finds it awake.
    world.host.conduct(world::id(ONE), Conduct::Serve);
    let awake = world.get(ONE, "/").await;
    assert!(!awake.header("server-timing").unwrap().contains("restore"));

    // A launch: no host yet, then one. The follower does not even know of it.
    world.scheduler.whisper(microvm(TWO, Pending, ""));
    let before = world.scheduler.look_ups();
    let waiting = world.get(TWO, "/");
    let placed = async {
        until("the edge asks for it", || async { world.scheduler.look_ups() > before }).await;
        world.microvm(TWO, Pending);
    };
    let (answer, ()) = tokio::join!(waiting, placed);
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_microvm_whose_host_is_full_is_woken_where_there_is_room() {
    let world = World::start(limits()).await;
    let identity = testkit::certificates::host(world.directory.path(), world::HOST);
    let roomy = world::host::Host::start(&identity, world.app.address).await;
    world.microvm(ONE, Suspended);
    world.host.conduct(world::id(ONE), Conduct::Refuse(OpenStatus::NoRoom));
    let mut placed = microvm(ONE, Running, &roomy.address.to_string());
    placed.microvm.as_mut().unwrap().generation = 2;
    world.scheduler.on_resume(placed);
    assert_eq!(world.get(ONE, "/").await.status, 200);
    assert_eq!((world.scheduler.resumes(), roomy.requests().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_microvm_whose_host_is_gone_is_woken_elsewhere_once() {
    let world = World::start(limits()).await;
    for (number, gone) in [(ONE, "127.0.0.1:1"), (TWO, "")] {
        let before = world.scheduler.resumes();
        let mut placed = microvm(number, Running, &world.host.address.to_string());
        placed.microvm.as_mut().unwrap().generation = 2;
        world.scheduler.tell(microvm(number, Suspended, gone));
        world.scheduler.on_resume(placed);
        let answers = futures::future::join_all((0..5).map(|_| world.get(number, "/"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        assert_eq!(world.scheduler.resumes(), before + 1, "host gone: {gone:?}");
        assert_eq!(world.host.requests().last().unwrap().generation, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_scheduler_and_new_keys_do_not_stop_requests() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    assert_eq!(world.get(ONE, "/").await.status, 200);
    until("the edge follows", || async { world.scheduler.followers() > 0 }).await;
    world.scheduler.script.stop();
    assert_eq!(world.get(ONE, "/").await.status, 200);
    // A token overtakes the news of the key that sealed it.
    let key = Key::generate(now()).unwrap();
    let token = KeySet::new(vec![key.clone()]).unwrap().mint(&claims(ONE)).unwrap();
    let (name, value) = (format!("keys/{}", key.id), serde_json::to_vec(&key).unwrap());
    let early = async {
        let request = Request::get("/").header("x-aws-proxy-auth", &token);
        world.connect(ONE, true).await.send(ONE, request, body("")).await
    };
    let (answer, _) = tokio::join!(early, world.store.put_if(&name, value, Expect::Absent, None));
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_bounded_and_drained() {
    let mut world = World::start(Limits { requests_per_microvm: 1, ..limits() }).await;
    world.microvm(ONE, Running);
    world.microvm(TWO, Running);
    assert_eq!(world.get(ONE, "/").await.status, 200);
    let before = world.app.requests.load(Ordering::SeqCst);
    let probe = async {
        until("the slow request is there", || async { world.app.requests.load(Ordering::SeqCst) > before })
            .await;
        let refused = world.get(ONE, "/").await;
        let other = world.get(TWO, "/").await;
        // In flight, it is let finish; new connections are not taken.
        world.shutdown.cancel();
        (refused, other)
    };
    let (slow, (refused, other)) = tokio::join!(world.get(ONE, "/slow"), probe);
    assert_eq!((slow.status, slow.body.as_str()), (200, "slow"));
    assert_eq!(slow.header("connection"), Some("close"));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(other.status, 200);
    let serving = std::mem::replace(&mut world.serving, tokio::spawn(async {}));
    tokio::time::timeout(world::WAIT, serving).await.unwrap().unwrap();
}
