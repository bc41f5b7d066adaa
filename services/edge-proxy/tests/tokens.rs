//! What becomes of tokens that were good when they were made.

use api::microvm::v1::MicrovmState::Running;
use api::microvm::v1::WatchMicrovmsResponse;
use http::Request;
use hyper_util::rt::TokioIo;
use records::Expect;
use testkit::until;
use token::{Key, KeySet, Kind};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::websockets::handshake;
use super::world::client::body;
use super::world::{World, claims, limits, microvm, now};
use super::{ONE, TWO};

impl World {
    /// The scheduler tells that a microVM's tokens were revoked so often.
    fn revoke(&self, number: u128, times: u64) -> WatchMicrovmsResponse {
        let mut message = microvm(number, Running, &self.host.address.to_string());
        message.microvm.as_mut().unwrap().token_revocations = times;
        self.scheduler.tell(message.clone());
        message
    }

    /// A good token that knows of so many revocations.
    fn token_after(&self, number: u128, revocations: u64, kind: Kind) -> String {
        let mut claims = claims(number);
        (claims.revocations, claims.kind) = (revocations, kind);
        self.keys.mint(&claims).unwrap()
    }

    async fn answers(&self, number: u128, token: &str) -> (u16, String, Option<String>) {
        let request = Request::get("/").header("x-aws-proxy-auth", token);
        let answer = self.connect(number, false).await.send(number, request, body("")).await;
        let error = answer.header("x-aws-proxy-error").map(str::to_owned);
        (answer.status, answer.body, error)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_open_nothing_and_later_ones_do() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    world.microvm(TWO, Running);
    let failed = (403, "Token authentication failed".to_owned(), Some("UNAUTHORIZED".to_owned()));
    let [old, new] = [0, 1].map(|revocations| world.token_after(ONE, revocations, Kind::Endpoint));
    let shell = world.token_after(ONE, 0, Kind::Shell);
    assert_eq!(world.answers(ONE, &old).await.0, 200);
    // One that is ahead of the news is good: the scheduler counts before it seals.
    assert_eq!(world.answers(ONE, &new).await.0, 200);
    assert_eq!(world.answers(ONE, &shell).await, failed, "a shell's token is for /shell");
    world.revoke(ONE, 1);
    until("the news is there", || async { world.answers(ONE, &old).await == failed }).await;
    assert_eq!(world.answers(ONE, &new).await.0, 200);
    assert_eq!(world.answers(TWO, &world.token(TWO)).await.0, 200, "another microVM's");
    let request = handshake(false, "/shell").header("x-aws-proxy-auth", &shell);
    let answer = world.connect(ONE, false).await.send(ONE, request, body("")).await;
    assert_eq!((answer.status, answer.body), (403, failed.1));
    // And where the edge has not heard of the microVM, it asks, and hears of the revocation too.
    let three = 0x0000_0003_0000_4000_8000_0000_0000_0003;
    let mut told = microvm(three, Running, &world.host.address.to_string());
    told.microvm.as_mut().unwrap().token_revocations = 2;
    world.scheduler.whisper(told);
    assert_eq!(world.answers(three, &world.token_after(three, 1, Kind::Endpoint)).await.0, 403);
    assert_eq!(world.answers(three, &world.token_after(three, 2, Kind::Endpoint)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_closes_the_websockets_of_its_tokens() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let open = async |token: String| {
        let request = handshake(false, "/socket").header("x-aws-proxy-auth", token);
        let response = world.connect(ONE, false).await.open(ONE, request, body("")).await;
        assert_eq!(response.status().as_u16(), 101);
        let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
        stream.read_line(&mut String::new()).await.unwrap();
        stream
    };
    let mut old = open(world.token_after(ONE, 0, Kind::Endpoint)).await;
    let mut new = open(world.token_after(ONE, 1, Kind::Endpoint)).await;
    world.revoke(ONE, 1);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(super::world::WAIT, old.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty(), "it is still open");
    new.write_all(b"still here\n").await.unwrap();
    let mut line = String::new();
    new.read_line(&mut line).await.unwrap();
    assert_eq!(line, "still here\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scoped_token_opens_its_paths_and_methods() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let mut scoped = claims(ONE);
    (scoped.paths, scoped.methods) =
        (vec!["/echo".into(), "/socket".into()], vec!["GET".into(), "PUT".into()]);
    let token = world.keys.mint(&scoped).unwrap();
    let (path, method) = ("Access to path denied", "Access to method denied");
    for (verb, target, expected) in [
        ("GET", "/echo", None),
        ("GET", "/echo/", None),
        ("PUT", "/echo/more?x=/../y", None),
        ("GET", "/", Some(path)),
        ("GET", "/echoes", Some(path)),
        ("GET", "/seen?/echo", Some(path)),
        ("GET", "/echo/../seen", Some(path)),
        ("GET", "/echo/..;/seen", Some(path)),
        ("GET", "/echo/%2e%2E/seen", Some(path)),
        ("GET", "/echo%2f..%2fseen", Some(path)),
        ("GET", "/echo//seen", Some(path)),
        ("GET", "//echo", Some(path)),
        ("POST", "/echo", Some(method)),
        ("HEAD", "/echo", Some("")),
        ("DELETE", "/seen", Some(path)),
    ] {
        for http2 in [false, true] {
            if http2 && target.contains('?') {
                continue; // the test's HTTP/2 client has no query
            }
            let before = world.app.requests.load(std::sync::atomic::Ordering::SeqCst);
            let request = Request::builder().method(verb).uri(target).header("x-aws-proxy-auth", &token);
            let answer = world.connect(ONE, http2).await.send(ONE, request, body("")).await;
            let reached = world.app.requests.load(std::sync::atomic::Ordering::SeqCst) > before;
            assert_eq!(reached, expected.is_none(), "{verb} {target}");
            if let Some(text) = expected {
                assert_eq!((answer.status, answer.body.as_str()), (403, text), "{verb} {target}");
                assert_eq!(answer.header("x-aws-proxy-error"), Some("SCOPE_DENIED"), "{verb} {target}");
            }
        }
    }
    // A handshake is a GET, in both protocols; the port is looked at first.
    for http2 in [false, true] {
        for (target, status) in [("/socket", if http2 { 200 } else { 101 }), ("/seen", 403)] {
            let request = handshake(http2, target).header("x-aws-proxy-auth", &token);
            let response = world.connect(ONE, http2).await.open(ONE, request, body("")).await;
            assert_eq!(response.status().as_u16(), status, "{target}");
        }
    }
    let request = Request::get("/").header("x-aws-proxy-auth", &token).header("x-aws-proxy-port", "1");
    let answer = world.connect(ONE, false).await.send(ONE, request, body("")).await;
    assert_eq!(answer.body, "Access to port denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_drops_no_living_token() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let old = world.token(ONE);
    assert_eq!(world.answers(ONE, &old).await.0, 200);
    let successor = Key::generate(now()).unwrap();
    let value = serde_json::to_vec(&successor).unwrap();
    world.store.put_if(&format!("keys/{}", successor.id), value, Expect::Absent, None).await.unwrap();
    let new = KeySet::new(vec![successor]).unwrap().mint(&claims(ONE)).unwrap();
    assert_eq!(world.answers(ONE, &new).await.0, 200, "the news is there");
    assert_eq!(world.answers(ONE, &old).await.0, 200, "sealed before the rotation");
    // The scheduler drops a key when every token that it sealed has expired.
    let retired = format!("keys/{}", world.keys.keys()[0].id);
    world.store.delete_if(&retired, Expect::Any, None).await.unwrap();
    until("the key is gone", || async { world.answers(ONE, &old).await.0 == 403 }).await;
    assert_eq!(world.answers(ONE, &old).await.1, "Token authentication failed");
    assert_eq!(world.answers(ONE, &new).await.0, 200);
}
