//! Both ends over real TLS on loopback.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::common::v1::Phase;
use api::tunnel::v1::{OpenRequest, OpenStatus};
use rpc::{Role, TlsIdentity};
use testkit::{certificates, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tunnel::{Client, Ended, Limits, OpenError, Responder, Server};

const WAIT: Duration = Duration::from_secs(5);

struct Fleet(tempfile::TempDir);

impl Fleet {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[]);
        Self(directory)
    }

    fn role(&self, role: Role) -> Arc<TlsIdentity> {
        certificates::identity(self.0.path(), role)
    }

    fn host(&self, id: &str) -> Arc<TlsIdentity> {
        certificates::host(self.0.path(), id)
    }
}

fn request(port: u32) -> OpenRequest {
    OpenRequest { microvm_id: "microvm-x".into(), generation: 3, port, wake: true, ..Default::default() }
}

/// Echoes on port 1, closes on port 2, holds on port 3 and counts hang-ups, answers 4 with a phase.
async fn handle(request: OpenRequest, mut responder: Responder, hung_up: Arc<AtomicUsize>) {
    match request.port {
        1 => {
            let stream = responder.connect(Vec::new()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
        2 => responder.refuse(OpenStatus::Busy, "later", Some(Duration::from_secs(2))).await,
        3 => {
            responder.abandoned().await;
            hung_up.fetch_add(1, Ordering::SeqCst);
        }
        _ => {
            let phase = Phase { name: "restore".into(), ..Default::default() };
            drop(responder.connect(vec![phase]).await.unwrap());
        }
    }
}

struct Served {
    address: String,
    hung_up: Arc<AtomicUsize>,
    stop: CancellationToken,
}

async fn serve(identity: &Arc<TlsIdentity>, limits: Limits) -> Served {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), identity, limits).await.unwrap();
    let address = server.local_address().unwrap().to_string();
    let (hung_up, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let counter = hung_up.clone();
    let handler = move |request, responder| handle(request, responder, counter.clone());
    tokio::spawn(server.serve(handler, stop.clone()));
    Served { address, hung_up, stop }
}

#[tokio::test]
async fn statuses_phases_and_bytes_come_through() {
    let fleet = Fleet::new();
    let served = serve(&fleet.host("a"), Limits::default()).await;
    let client = Client::new(&fleet.role(Role::EdgeProxy));

    let (answer, mut stream) = client.open(("a", &served.address), &request(1), WAIT).await.unwrap();
    assert_eq!(answer.status(), OpenStatus::Connected);
    let sent = vec![7; 300_000];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let (_, received) = tokio::join!(
        async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        },
        async {
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.unwrap();
            received
        }
    );
    assert_eq!(received, sent);

    let (answer, _) = client.open(("a", &served.address), &request(2), WAIT).await.unwrap();
    assert_eq!((answer.status(), answer.message.as_str()), (OpenStatus::Busy, "later"));
    assert_eq!(answer.retry_after.unwrap().seconds, 2);
    let (answer, _) = client.open(("a", &served.address), &request(4), WAIT).await.unwrap();
    assert_eq!(answer.phases[0].name, "restore");
    served.stop.cancel();
}

#[tokio::test]
async fn opening_again_resumes_the_session_and_is_quick() {
    let fleet = Fleet::new();
    let served = serve(&fleet.host("a"), Limits::default()).await;
    let client = Client::new(&fleet.role(Role::EdgeProxy));
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let started = Instant::now();
        let (_, mut stream) = client.open(("a", &served.address), &request(1), WAIT).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        let kind = stream.get_ref().get_ref().1.handshake_kind().unwrap();
        assert_eq!(round > 0, kind == rustls::HandshakeKind::Resumed, "round {round}: {kind:?}");
        slowest = slowest.max(started.elapsed());
    }
    // Nagle's algorithm against delayed acknowledgements would cost 40 ms each;
    // the bound leaves room for a busy machine.
    println!("slowest open and echo: {slowest:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

#[tokio::test]
async fn whoever_waits_can_hang_up_and_waits_are_bounded() {
    let fleet = Fleet::new();
    let served = serve(&fleet.host("a"), Limits::default()).await;
    let client = Client::new(&fleet.role(Role::Admin));
    let error =
        client.open(("a", &served.address), &request(3), Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, OpenError::TimedOut { .. }), "{error}");
    until("the handler sees the client leave", || async { served.hung_up.load(Ordering::SeqCst) > 0 }).await;
}

#[tokio::test]
async fn roles_are_checked_on_both_sides() {
    let fleet = Fleet::new();
    let served = serve(&fleet.host("a"), Limits::default()).await;
    for role in [Role::Scheduler, Role::HostAgent, Role::ImageBuilder] {
        let error =
            Client::new(&fleet.role(role)).open(("a", &served.address), &request(1), WAIT).await.unwrap_err();
        assert!(matches!(error, OpenError::Broken { .. }), "{role}: {error}");
    }
    // A fleet member that is no host-agent cannot pose as one.
    let posing = serve(&fleet.role(Role::Scheduler), Limits::default()).await;
    let error = Client::new(&fleet.role(Role::EdgeProxy))
        .open(("a", &posing.address), &request(1), WAIT)
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_host_that_answers_at_anothers_address_is_not_spoken_to() {
    let fleet = Fleet::new();
    let served = serve(&fleet.host("b"), Limits::default()).await;
    let client = Client::new(&fleet.role(Role::EdgeProxy));
    for _ in 0..2 {
        // The second time the session is resumed; it is compared all the same.
        let (answer, _) = client.open(("b", &served.address), &request(4), WAIT).await.unwrap();
        assert_eq!(answer.status(), OpenStatus::Connected);
        let error = client.open(("a", &served.address), &request(1), WAIT).await.unwrap_err();
        let OpenError::Connect { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
        let said = source.to_string();
        assert!(said.contains("host-agent of a") && said.contains("host-agent of b"), "{said}");
    }
    // A certificate of the role alone is no host's.
    let nobody = serve(&fleet.role(Role::HostAgent), Limits::default()).await;
    assert!(client.open(("a", &nobody.address), &request(1), WAIT).await.is_err());
}

#[tokio::test]
async fn certificates_and_the_ca_change_and_open_tunnels_stay() {
    let fleet = Fleet::new();
    let served = serve(&fleet.host("a"), Limits::default()).await;
    let client = Client::new(&fleet.role(Role::EdgeProxy));
    let (_, mut stream) = client.open(("a", &served.address), &request(1), WAIT).await.unwrap();
    let shown = |stream: &tunnel::Channel<tunnel::ClientStream>| {
        stream.get_ref().get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = shown(&stream);
    // Everything anew, the authority too: without trust in both, this is a fleet that went from one to the other at once.
    certificates::write(fleet.0.path(), &[]);
    let names = rpc::Identity::of_host("a").dns_names();
    certificates::issue(fleet.0.path(), "host-agent-of-a", &names);
    until("both sides have read the new files", || async {
        let opened = client.open(("a", &served.address), &request(1), WAIT).await;
        opened.is_ok_and(|(_, stream)| shown(&stream) != before)
    })
    .await;
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_and_slow_ones_dropped() {
    let fleet = Fleet::new();
    let limits = Limits { connections: 1, opening: Duration::from_millis(300) };
    let served = serve(&fleet.host("a"), limits).await;
    let client = Client::new(&fleet.role(Role::EdgeProxy));
    let (_, held) = client.open(("a", &served.address), &request(1), WAIT).await.unwrap();
    assert!(client.open(("a", &served.address), &request(1), WAIT).await.is_err());
    drop(held);
    // A connection that says nothing gives its place back.
    let deadline = Instant::now() + WAIT;
    let mut silent = loop {
        let mut silent = tokio::net::TcpStream::connect(&served.address).await.unwrap();
        // Closed at once: the place is not free yet. Closed later: it was slow.
        let started = Instant::now();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
        if started.elapsed() > Duration::from_millis(200) {
            break silent;
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_copy_is_cut_by_its_token() {
    let fleet = Fleet::new();
    let host = fleet.host("a");
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), &host, Limits::default()).await.unwrap();
    let address = server.local_address().unwrap().to_string();
    let (cut, stop) = (CancellationToken::new(), CancellationToken::new());
    let (report, reports) = tokio::sync::mpsc::unbounded_channel();
    let to_cut = cut.clone();
    let handler = move |_, responder: Responder| {
        let (cut, report) = (to_cut.clone(), report.clone());
        async move {
            let stream = responder.connect(Vec::new()).await.unwrap();
            let (guest, mut app) = tokio::io::duplex(1024);
            app.write_all(b"hello").await.unwrap();
            report.send(tunnel::copy(stream, guest, |_| (), &cut).await).unwrap();
        }
    };
    let serving = tokio::spawn(server.serve(handler, stop.clone()));
    let client = Client::new(&fleet.role(Role::EdgeProxy));
    let (_, mut stream) = client.open(("a", &address), &request(1), WAIT).await.unwrap();
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    cut.cancel();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let (copied, ended) = { reports }.recv().await.unwrap();
    assert_eq!(copied.from_guest, 5);
    assert!(matches!(ended, Ended::Cut));
    stop.cancel();
    serving.await.unwrap();
}
