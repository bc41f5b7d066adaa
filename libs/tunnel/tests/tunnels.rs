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

fn fleet() -> impl Fn(Role) -> Arc<TlsIdentity> {
    let directory = tempfile::tempdir().unwrap();
    certificates::write(directory.path(), &[]);
    move |role| certificates::identity(directory.path(), role)
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

async fn serve(identity: &TlsIdentity, limits: Limits) -> Served {
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
    let identity = fleet();
    let served = serve(&identity(Role::HostAgent), Limits::default()).await;
    let client = Client::new(&identity(Role::EdgeProxy));

    let (answer, mut stream) = client.open(&served.address, &request(1), WAIT).await.unwrap();
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

    let (answer, _) = client.open(&served.address, &request(2), WAIT).await.unwrap();
    assert_eq!((answer.status(), answer.message.as_str()), (OpenStatus::Busy, "later"));
    assert_eq!(answer.retry_after.unwrap().seconds, 2);
    let (answer, _) = client.open(&served.address, &request(4), WAIT).await.unwrap();
    assert_eq!(answer.phases[0].name, "restore");
    served.stop.cancel();
}

#[tokio::test]
async fn opening_again_resumes_the_session_and_is_quick() {
    let identity = fleet();
    let served = serve(&identity(Role::HostAgent), Limits::default()).await;
    let client = Client::new(&identity(Role::EdgeProxy));
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let started = Instant::now();
        let (_, mut stream) = client.open(&served.address, &request(1), WAIT).await.unwrap();
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
    let identity = fleet();
    let served = serve(&identity(Role::HostAgent), Limits::default()).await;
    let client = Client::new(&identity(Role::Admin));
    let error = client.open(&served.address, &request(3), Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, OpenError::TimedOut { .. }), "{error}");
    until("the handler sees the client leave", || async { served.hung_up.load(Ordering::SeqCst) > 0 }).await;
}

#[tokio::test]
async fn roles_are_checked_on_both_sides() {
    let identity = fleet();
    let served = serve(&identity(Role::HostAgent), Limits::default()).await;
    for role in [Role::Scheduler, Role::HostAgent, Role::ImageBuilder] {
        let error = Client::new(&identity(role)).open(&served.address, &request(1), WAIT).await.unwrap_err();
        assert!(matches!(error, OpenError::Broken { .. }), "{role}: {error}");
    }
    // A fleet member that is no host-agent cannot pose as one.
    let posing = serve(&identity(Role::Scheduler), Limits::default()).await;
    let error =
        Client::new(&identity(Role::EdgeProxy)).open(&posing.address, &request(1), WAIT).await.unwrap_err();
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn connections_are_bounded_and_slow_ones_dropped() {
    let identity = fleet();
    let limits = Limits { connections: 1, opening: Duration::from_millis(300) };
    let served = serve(&identity(Role::HostAgent), limits).await;
    let client = Client::new(&identity(Role::EdgeProxy));
    let (_, held) = client.open(&served.address, &request(1), WAIT).await.unwrap();
    assert!(client.open(&served.address, &request(1), WAIT).await.is_err());
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
    let identity = fleet();
    let host = identity(Role::HostAgent);
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
    let client = Client::new(&identity(Role::EdgeProxy));
    let (_, mut stream) = client.open(&address, &request(1), WAIT).await.unwrap();
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
