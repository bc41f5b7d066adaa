//! Own domains: which certificate is shown, which microVM is reached, and who is refused.

use std::sync::Arc;

use api::domain::v1::domain::Target;
use api::domain::v1::{Domain, StoredDomain};
use api::microvm::v1::MicrovmState::Running;
use api::microvm::v1::{RedeemMicrovmInvitationRequest, RedeemMicrovmInvitationResponse};
use http::Request;
use http::request::Builder;
use prost::Message as _;
use records::Expect;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testkit::certificates::chain;
use testkit::until;
use token::{Kind, PortScope};

use super::world::client::{Answer, Connection, body};
use super::world::{World, claims, host_name, id, label, limits, microvm};
use super::{ONE, TWO};

const NAME: &str = "app.example.org";
const OTHER: &str = "other.example.org";
const YEARS: std::ops::Range<i32> = 2020..2100;

/// A chain and its key in PEM.
type Pem = (String, String);

impl World {
    /// Binds a name as the scheduler does. Returns its certificate.
    async fn bind(&self, name: &str, target: Target) -> Pem {
        let pem = chain(&[name], YEARS);
        let certificates = CertificateDer::pem_slice_iter(pem.0.as_bytes());
        let endpoint_label = match &target {
            Target::MicrovmId(id) => id["microvm-".len()..].to_owned(),
            Target::ImageName(_) => String::new(),
        };
        let stored = StoredDomain {
            domain: Some(Domain { name: name.into(), target: Some(target), ..Domain::default() }),
            endpoint_label,
            image_id: String::new(),
            certificates: certificates.map(|certificate| certificate.unwrap().to_vec()).collect(),
            private_key: PrivateKeyDer::from_pem_slice(pem.1.as_bytes()).unwrap().secret_der().to_vec(),
        };
        let value = stored.encode_to_vec();
        self.store.put_if(&format!("domains/{name}"), value, Expect::Any, None).await.unwrap();
        pem
    }

    /// A connection under a name, if the edge shows the certificate.
    async fn shown(&self, name: &str, http2: bool, (chain, _): &Pem) -> Option<Connection> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::pem_slice_iter(chain.as_bytes()).last().unwrap().unwrap();
        roots.add(authority).unwrap();
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build().unwrap();
        let only = |config: &mut rustls::ClientConfig| config.dangerous().set_certificate_verifier(verifier);
        let stream = self.tls_for(name.to_owned(), http2, only).await.ok()?;
        Some(Connection::over(stream, http2).await)
    }

    /// The same once the edge has heard of the certificate.
    async fn own(&self, name: &str, http2: bool, pem: &Pem) -> Connection {
        until("the certificate", || async { self.shown(name, http2, pem).await.is_some() }).await;
        self.shown(name, http2, pem).await.unwrap()
    }
}

fn of(number: u128) -> Target {
    Target::MicrovmId(id(number))
}

fn with(token: &str) -> Builder {
    Request::get("/seen").header("x-aws-proxy-auth", token)
}

fn brief(answer: &Answer) -> (u16, &str) {
    (answer.status, &answer.body)
}

const FAILED: (u16, &str) = (403, "Token authentication failed");
const MISDIRECTED: (u16, &str) = (421, "Misdirected request");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_leads_to_its_microvm_as_its_endpoint_does() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    world.microvm(TWO, Running);
    let certificate = world.bind(NAME, of(ONE)).await;
    let others = world.bind(OTHER, of(TWO)).await;
    let (token, of_two) = (world.token(ONE), world.token(TWO));
    for http2 in [false, true] {
        let mut own = world.own(NAME, http2, &certificate).await;
        world.own(OTHER, http2, &others).await;
        let answer = own.send_for(NAME, with(&token), body("")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains("host: app.example.org\n"), "{}", answer.body);
        let opened = world.host.requests().len();
        for (host, request, refused) in [
            (NAME, with(&of_two), FAILED),
            (NAME, Request::get("/"), (403, "Request missing authentication")),
            (NAME, with(&token).header("x-aws-proxy-port", "8081"), (403, "Access to port denied")),
            // Each name has its own connections.
            (OTHER, with(&of_two), MISDIRECTED),
            (&host_name(ONE), with(&token), MISDIRECTED),
            ("unknown.example.org", with(&token), FAILED),
        ] {
            let answer = own.send_for(host, request, body("")).await;
            assert_eq!(brief(&answer), refused, "{host} http2: {http2}");
        }
        let mut endpoint = world.connect(ONE, http2).await;
        let answer = endpoint.send_for(NAME, with(&token), body("")).await;
        assert_eq!(brief(&answer), MISDIRECTED);
        assert_eq!(world.host.requests().len(), opened, "something was opened");
        assert_eq!(endpoint.send(ONE, with(&token), body("")).await.status, 200);
    }
    let mut own = world.own(NAME, false, &certificate).await;
    let answer = own.send_for("APP.example.ORG.:8443", with(&token), body("")).await;
    assert_eq!(answer.status, 200, "however it is spelt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_leads_to_the_microvms_of_its_image_only() {
    let world = World::start(limits()).await;
    for (number, image) in [(ONE, "app"), (TWO, "other")] {
        let mut message = microvm(number, Running, &world.host.address.to_string());
        message.microvm.as_mut().unwrap().image_name = image.into();
        world.scheduler.tell(message);
    }
    let certificate = world.bind("*.apps.example.org", Target::ImageName("app".into())).await;
    let name = |number| format!("{}.apps.example.org", label(number));
    let mut own = world.own(&name(ONE), false, &certificate).await;
    let answer = own.send_for(&name(ONE), with(&world.token(ONE)), body("")).await;
    assert!(answer.body.contains(&format!("host: {}\n", name(ONE))), "{}", answer.body);
    let mut foreign = world.own(&name(TWO), false, &certificate).await;
    let answer = foreign.send_for(&name(TWO), with(&world.token(TWO)), body("")).await;
    assert_eq!(brief(&answer), FAILED, "a microVM of another image");
    let answer = own.send_for(&name(ONE), with(&world.token(TWO)), body("")).await;
    assert_eq!(brief(&answer), FAILED);
    assert!(world.shown("x.apps.example.org", false, &certificate).await.is_none(), "no endpoint's label");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_changes_and_connections_stay() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let token = world.token(ONE);
    let first = world.bind(NAME, of(ONE)).await;
    let mut old = world.own(NAME, true, &first).await;
    assert_eq!(old.send_for(NAME, with(&token), body("")).await.status, 200);

    let second = world.bind(NAME, of(ONE)).await;
    let mut new = world.own(NAME, true, &second).await;
    assert!(world.shown(NAME, true, &first).await.is_none(), "the old certificate is still shown");
    for connection in [&mut old, &mut new] {
        assert_eq!(connection.send_for(NAME, with(&token), body("")).await.status, 200);
    }

    // What is left out is as unknown as what is removed; so is what turns bad.
    world.store.put_if(&format!("domains/{NAME}"), vec![0xff], Expect::Any, None).await.unwrap();
    until("the domain to go", || async { world.shown(NAME, true, &second).await.is_none() }).await;
    let third = world.bind(NAME, of(ONE)).await;
    world.own(NAME, true, &third).await;
    world.store.delete_if(&format!("domains/{NAME}"), Expect::Any, None).await.unwrap();
    until("the domain to go", || async { world.shown(NAME, true, &third).await.is_none() }).await;
    for connection in [&mut old, &mut new] {
        let answer = connection.send_for(NAME, with(&token), body("")).await;
        assert_eq!(brief(&answer), FAILED);
    }
    assert_eq!(world.get(ONE, "/").await.status, 200, "the endpoint stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_takes_a_name_of_the_fleet() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    world.microvm(TWO, Running);
    // No scheduler writes these.
    let taken = world.bind(&format!("*.{}", super::world::DOMAIN), Target::ImageName(String::new())).await;
    let good = world.bind(NAME, of(ONE)).await;
    world.own(NAME, false, &good).await;
    assert!(world.shown(&host_name(ONE), false, &taken).await.is_none());
    assert_eq!(world.get(ONE, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_session_is_for_the_name_it_began_with() {
    let world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let certificate = world.bind(NAME, of(ONE)).await;
    let mut own = world.own(NAME, false, &certificate).await;
    let script = &world.scheduler.script;
    let redeemed = RedeemMicrovmInvitationResponse {
        session_token: "sealed.token".into(),
        session_duration: Some(api::duration_proto(std::time::Duration::from_secs(60))),
        path: "/start".into(),
    };
    script.answer("RedeemMicrovmInvitation", Ok(redeemed));
    let link = Request::get(format!("/.torpor/open?code={}", "A".repeat(43)));
    let answer = own.send_for(NAME, link, body("")).await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/start")));
    // Browsers keep a cookie of this kind for the very host that set it.
    let cookie = answer.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("__Host-torpor=sealed.token; Path=/;") && !cookie.contains("Domain"),
        "{cookie}"
    );
    let asked: RedeemMicrovmInvitationRequest = script.only("RedeemMicrovmInvitation");
    assert_eq!(asked.endpoint_label, label(ONE).to_string());

    let mut session = claims(ONE);
    (session.kind, session.ports) = (Kind::Browser, vec![PortScope::Single(9000)]);
    let cookie = format!("__Host-torpor={}", world.keys.mint(&session).unwrap());
    for (origin, status) in [
        (format!("https://{NAME}"), 200),
        (format!("https://{}", host_name(ONE)), 403),
        (format!("https://{OTHER}"), 403),
    ] {
        let request = Request::post("/seen").header("cookie", &cookie).header("origin", &origin);
        let answer = own.send_for(NAME, request, body("")).await;
        assert_eq!(answer.status, status, "{origin}: {}", answer.body);
    }
}
