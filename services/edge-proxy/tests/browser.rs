//! Browser sessions: the link that begins one, its cookie, and who may use that.

use std::sync::Arc;

use api::microvm::v1::MicrovmState::Running;
use api::microvm::v1::{RedeemMicrovmInvitationRequest, RedeemMicrovmInvitationResponse};
use http::Request;
use testkit::until;
use token::{Claims, Kind, PortScope};
use tokio::sync::Semaphore;
use tonic::Status;

use super::websockets::handshake;
use super::world::client::{Answer, body};
use super::world::{World, claims, host_name, label, limits, microvm, now};
use super::{ONE, TWO};

const CODE: &str = "0123456789_abcdefghijklmnopqrstuvwxyz-ABCDE";
const SPENT: &str = "This link was used before or has expired. Make a new one: torpor open ID";

fn session() -> RedeemMicrovmInvitationResponse {
    RedeemMicrovmInvitationResponse {
        session_token: "sealed.token".into(),
        session_duration: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        path: "/start?a=1#b".into(),
    }
}

impl World {
    /// The token of a session at port 9000, changed.
    fn session(&self, change: impl Fn(&mut Claims)) -> String {
        let mut claims = claims(ONE);
        (claims.kind, claims.ports) = (Kind::Browser, vec![PortScope::Single(9000)]);
        change(&mut claims);
        self.keys.mint(&claims).unwrap()
    }

    async fn ask(&self, request: http::request::Builder) -> Answer {
        self.connect(ONE, false).await.send(ONE, request, body("")).await
    }
}

fn link(code: &str) -> http::request::Builder {
    Request::get(format!("/.torpor/open?code={code}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_begins_a_session() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let script = &world.scheduler.script;
    script.answer("RedeemMicrovmInvitation", Ok(session()));
    let answer = world.ask(link(CODE)).await;
    assert_eq!((answer.status, answer.body.as_str()), (303, ""));
    for (name, value) in [
        ("location", "/start?a=1#b"),
        ("set-cookie", "__Host-torpor=sealed.token; Path=/; Max-Age=3600; Secure; HttpOnly; SameSite=Lax"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(answer.header(name), Some(value));
    }
    let asked: RedeemMicrovmInvitationRequest = script.only("RedeemMicrovmInvitation");
    assert_eq!((asked.code.as_str(), asked.endpoint_label), (CODE, label(ONE).to_string()));
    for (refusal, status, text, error) in [
        (Status::not_found("spent"), 403, SPENT, Some("INVITATION_SPENT")),
        (Status::unavailable("no leader"), 503, "", None),
    ] {
        script.answer::<RedeemMicrovmInvitationResponse>("RedeemMicrovmInvitation", Err(refusal));
        let answer = world.ask(link(CODE)).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, text));
        assert_eq!(answer.header("x-aws-proxy-error"), error);
        assert_eq!(answer.header("set-cookie"), None);
    }
    script.take();
    // Everything else is a request like any other.
    let missing = (403, "Request missing authentication".to_owned());
    for request in [
        link(&CODE[1..]),
        link(CODE).method("POST"),
        Request::get("/.torpor/open"),
        Request::get(format!("/.torpor/open/?code={CODE}")),
        link(CODE).header("host", "example.com"),
        link(CODE).header("x-aws-proxy-auth", "x"),
    ] {
        let answer = world.ask(request).await;
        assert_eq!((answer.status, answer.body), missing);
    }
    let answer = world.ask(link(CODE).header("x-aws-proxy-auth", world.token(ONE))).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "the app's own path");
    assert!(script.take().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redemptions_are_bounded() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    world.scheduler.script.react_later(
        "RedeemMicrovmInvitation",
        move |_: RedeemMicrovmInvitationRequest| {
            let gate = Arc::clone(&waiting);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(session())
            }
        },
    );
    let slow = futures::future::join_all((0..8).map(|_| world.ask(link(CODE))));
    let ninth = async {
        let mut asked = 0;
        until("all of them wait", || {
            asked += world.scheduler.script.take().len();
            std::future::ready(asked == 8)
        })
        .await;
        let refused = world.ask(link(CODE)).await;
        gate.add_permits(8);
        refused
    };
    let (slow, refused) = tokio::join!(slow, ninth);
    assert!(slow.iter().all(|answer| answer.status == 303), "{slow:?}");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cookie_opens_one_port_and_stays_at_the_edge() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let good = world.session(|_| ());
    for http2 in [false, true] {
        let cookies = format!("a=1; __Host-torpor={good}; b=2");
        let request = Request::get("/seen").header("cookie", cookies);
        let answer = world.connect(ONE, http2).await.send(ONE, request, body("")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains("cookie: a=1; b=2\n"), "{}", answer.body);
        assert!(!answer.body.contains("__Host-torpor"), "{}", answer.body);
        let set: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
        assert_eq!(set, ["app=1"], "an app sets no session");
        assert_eq!(world.host.requests().last().unwrap().port, 9000);
    }
    let (missing, failed) = ("Request missing authentication", "Token authentication failed");
    let cookie = |token: &str| Request::get("/").header("cookie", format!("__Host-torpor={token}"));
    let expired = world.session(|claims| claims.expires_at = now() - 1);
    let foreign = world.session(|claims| claims.microvm_id = claims_of_two());
    for (case, request, text) in [
        ("expired", cookie(&expired), failed),
        ("another microVM's", cookie(&foreign), failed),
        ("a program's token", cookie(&world.token(ONE)), failed),
        ("no token", cookie("x"), missing),
        ("two", cookie(&good).header("cookie", format!("__Host-torpor={good}")), missing),
        ("a bad header first", cookie(&good).header("x-aws-proxy-auth", "x"), missing),
        ("in the header", Request::get("/").header("x-aws-proxy-auth", &good), failed),
        ("another port", cookie(&good).header("x-aws-proxy-port", "8080"), "Access to port denied"),
    ] {
        let answer = world.ask(request).await;
        assert_eq!((answer.status, answer.body.as_str()), (403, text), "{case}");
    }
    let answer = world.ask(cookie("x").header("x-aws-proxy-auth", world.token(ONE))).await;
    assert_eq!(answer.status, 200, "a good header counts alone");
    // A revocation ends sessions too.
    assert_eq!(world.ask(cookie(&good)).await.status, 200);
    let mut revoked = microvm(ONE, Running, &world.host.address.to_string());
    revoked.microvm.as_mut().unwrap().token_revocations = 1;
    world.scheduler.tell(revoked);
    until("the session is over", || async { world.ask(cookie(&good)).await.body == failed }).await;
    let later = world.session(|claims| claims.revocations = 1);
    assert_eq!(world.ask(cookie(&later)).await.status, 200);
}

fn claims_of_two() -> String {
    claims(TWO).microvm_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_sites_cannot_use_the_cookie() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let cookie = format!("__Host-torpor={}", world.session(|_| ()));
    let own = format!("https://{}", host_name(ONE));
    let sibling = format!("https://{}", host_name(TWO));
    let site = "sec-fetch-site";
    let followed = [(site, "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    for (method, headers, good) in [
        ("GET", &[][..], true),
        ("GET", &followed, true),
        ("GET", &[(site, "same-site")], false),
        ("GET", &[("origin", &*sibling)], false),
        ("POST", &[], false),
        ("POST", &followed, false),
        ("POST", &[("origin", &*own)], true),
        ("POST", &[("origin", "null")], false),
        ("POST", &[("origin", "null"), (site, "same-origin")], true),
        ("DELETE", &[("origin", &*sibling), (site, "same-site")], false),
        ("WEBSOCKET", &[("origin", &*own)], true),
        ("WEBSOCKET", &[("origin", &*sibling)], false),
        ("WEBSOCKET", &[], false),
    ] {
        for http2 in [false, true] {
            let request = match method {
                "WEBSOCKET" => handshake(http2, "/socket"),
                method => Request::builder().method(method).uri("/echo"),
            };
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let before = world.app.requests.load(std::sync::atomic::Ordering::SeqCst);
            let request = request.header("cookie", &cookie);
            let response = world.connect(ONE, http2).await.open(ONE, request, body("")).await;
            let reached = world.app.requests.load(std::sync::atomic::Ordering::SeqCst) > before;
            assert_eq!(reached, good, "{method} {headers:?}");
            if !good {
                assert_eq!(response.status().as_u16(), 403, "{method} {headers:?}");
                assert_eq!(response.headers()["x-aws-proxy-error"], "CROSS_SITE", "{method} {headers:?}");
            }
        }
    }
    // A token among the subprotocols counts alone, as it always did.
    let offered = format!("lambda-microvms, lambda-microvms.authentication.{}", world.token(ONE));
    let request = handshake(false, "/socket")
        .header("cookie", &cookie)
        .header("origin", &sibling)
        .header("sec-websocket-protocol", offered);
    let response = world.connect(ONE, false).await.open(ONE, request, body("")).await;
    assert_eq!(response.status().as_u16(), 101);
}
