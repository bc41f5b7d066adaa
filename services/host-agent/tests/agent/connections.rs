//! Connections that stay open while their microVM sleeps: no byte is lost or repeated, and nobody connects anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::common::v1::Hooks;
use api::host::v1::StaleMicrovm;
use api::hostagent::v1::MicrovmSpec;
use api::microvm::v1::{MicrovmState, SnapshotCopies};
use api::tunnel::v1::OpenStatus;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines, ReadHalf,
    WriteHalf,
};

use crate::app_disk::{COUNT_PORT, ECHO_PORT, LOOPBACK_PORT, SLOW_PORT};
use crate::calls::*;
use crate::edge::Edge;
use crate::world::{Agent, PATIENCE, World};

/// What is sent before a sleep and again to wake up from it: more than the buffers of a socket's beginning.
const CHUNK: usize = 150_000;
const SLEEPS: u8 = 5;

/// An echoing connection of which some is always under way.
struct Echo {
    edge: Arc<Edge>,
    read: ReadHalf<DuplexStream>,
    write: WriteHalf<DuplexStream>,
}

/// Sends it and waits until the edge has let go of it: what the edge still has at a suspend wakes the microVM at once.
async fn send(edge: &Edge, write: &mut WriteHalf<DuplexStream>, chunk: &[u8]) {
    let due = edge.carried() + chunk.len() as u64;
    write.write_all(chunk).await.unwrap();
    testkit::until("the edge to have sent the chunk", || async { edge.carried() >= due }).await;
}

impl Echo {
    async fn open(edge: &Arc<Edge>) -> Self {
        let (read, write) = tokio::io::split(connect(edge, ECHO_PORT, true).await);
        Self { edge: Arc::clone(edge), read, write }
    }

    /// Sends a chunk and reads as much.
    async fn exchange(&mut self, sent: u8, expected: u8) {
        let chunk = vec![sent; CHUNK];
        let mut received = vec![0; CHUNK];
        let sent = send(&self.edge, &mut self.write, &chunk);
        let both = async { tokio::join!(sent, self.read.read_exact(&mut received)) };
        let ((), read) = tokio::time::timeout(PATIENCE, both).await.expect("the connection stands still");
        read.unwrap();
        assert!(received.iter().all(|byte| *byte == expected), "other bytes came back in round {expected}");
    }
}

/// A connection on which the guest counts.
struct Counting {
    lines: Lines<BufReader<DuplexStream>>,
    next: u32,
    port: u32,
}

impl Counting {
    fn of(stream: DuplexStream, port: u32) -> Self {
        Self { lines: BufReader::new(stream).lines(), next: 0, port }
    }

    async fn expect(&mut self, count: u32) {
        for _ in 0..count {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("nobody counts");
            assert_eq!(line.unwrap(), Some(self.next.to_string()), "port {}", self.port);
            self.next += 1;
        }
    }
}

/// A world with one microVM that runs.
async fn running(hooks: Option<Hooks>) -> (World, Agent, MicrovmSpec) {
    let world = World::start().await;
    let agent = world.agent(4096).await;
    let snapshot = image(&world, &agent, hooks).await;
    let one = MicrovmSpec { hooks, ..spec(&snapshot) };
    launch(&agent, &one, 1).await.unwrap();
    (world, agent, one)
}

async fn connect(edge: &Arc<Edge>, port: u32, wake: bool) -> DuplexStream {
    let (response, stream) = edge.open(port, wake).await;
    assert_eq!(response.status(), OpenStatus::Connected, "{response:?}");
    stream
}

/// A connection of each kind: an echo that owes a chunk, a port that counts, and a server on guest loopback that does.
async fn under_way(edge: &Arc<Edge>) -> (Echo, Counting, Counting) {
    let mut echo = Echo::open(edge).await;
    let counting = Counting::of(connect(edge, COUNT_PORT, true).await, COUNT_PORT);
    let mut loopback = connect(edge, LOOPBACK_PORT, true).await;
    loopback.write_all(b"GET /cgi-bin/counting HTTP/1.0\r\n\r\n").await.unwrap();
    let mut loopback = Counting::of(loopback, LOOPBACK_PORT);
    while !loopback.lines.next_line().await.unwrap().unwrap().is_empty() {}
    // A chunk is always owed: written before a sleep, read after it.
    send(edge, &mut echo.write, &[0; CHUNK]).await;
    (echo, counting, loopback)
}

#[tokio::test(flavor = "multi_thread")]
async fn they_sleep_and_wake_with_their_guest() {
    let (_world, agent, one) = running(None).await;
    let id = one.microvm_id.as_str();
    let edge = Edge::new(&agent, id, 1);
    let (mut echo, mut counting, mut loopback) = under_way(&edge).await;
    for sleep in 0..SLEEPS {
        counting.expect(3).await;
        loopback.expect(3).await;
        let suspended = suspend(&agent, id, 1).await.unwrap();
        eprintln!("{}", steps(&suspended));
        assert_eq!(suspended.state(), MicrovmState::Suspended);
        echo.exchange(sleep + 1, sleep).await;
        eprintln!("{}", steps(&observed(&agent).await[id]));
    }
    counting.expect(3).await;
    loopback.expect(3).await;
    assert_eq!(agent.log_text().matches("from=Waking to=Running").count(), usize::from(SLEEPS));

    // Awake by the scheduler's word, without a byte of the client's.
    suspend(&agent, id, 1).await.unwrap();
    resume(&agent, &one, 1, None).await.unwrap();
    counting.expect(50).await;
    loopback.expect(50).await;

    // One that may not wake it ends when its client speaks; the end of the microVM ends all.
    let mut still = connect(&edge, ECHO_PORT, false).await;
    edge.is_awake(false);
    suspend(&agent, id, 1).await.unwrap();
    still.write_all(b"hello?").await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, still.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Suspended);
    terminate(&agent, id, 1).await.unwrap();
    edge.is_awake(true);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, echo.read.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a connection outlived its microVM");
    assert!(agent.engines().is_empty());
}

/// Connections to the echo's port that the guest's kernel takes for open, on either side.
async fn open_in_guest(agent: &Agent, id: &str) -> usize {
    const STATES: [&str; 2] = ["01", "08"];
    let echo = format!(":{ECHO_PORT:04X}");
    let table = get(agent, id, "sockets").await;
    let is_open = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&echo))
            && words.nth(1).is_some_and(|state| STATES.contains(&state))
    };
    table.lines().filter(is_open).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_them_end_instead() {
    let world = World::start().await;
    let agent = world.agent(4096).await;
    let snapshot = image(&world, &agent, None).await;
    let one = MicrovmSpec { end_connections_at_suspend: true, ..spec(&snapshot) };
    launch(&agent, &one, 1).await.unwrap();
    let id = one.microvm_id.as_str();
    let edge = Edge::new(&agent, id, 1);
    for sleep in 0..2 {
        let mut echo = Echo::open(&edge).await;
        let mut request = connect(&edge, SLOW_PORT, true).await;
        request.write_all(b"go\n").await.unwrap();
        echo.exchange(sleep, sleep).await;
        assert_eq!(open_in_guest(&agent, id).await, 1);
        let suspended = suspend(&agent, id, 1).await.unwrap();
        eprintln!("{}", steps(&suspended));
        // What was under way has been answered, and both sides hear of the end.
        let mut rest = String::new();
        tokio::time::timeout(PATIENCE, request.read_to_string(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, format!("{}\n", sleep + 1));
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, echo.read.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty());
        // Nobody woke it for that.
        assert_eq!(observed(&agent).await[id].state(), MicrovmState::Suspended);
        drop(echo);
        testkit::until("the app to close its end", || async { open_in_guest(&agent, id).await == 0 }).await;
    }
    assert_eq!(agent.log_text().matches("from=Waking to=Running").count(), 2);
    terminate(&agent, id, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_microvm_answers_before_it_sleeps() {
    let (_world, agent, one) = running(None).await;
    let id = one.microvm_id.as_str();
    let edge = Edge::new(&agent, id, 1);
    assert_eq!(get(&agent, id, "count").await, "1");
    let mut request = connect(&edge, SLOW_PORT, true).await;
    request.write_all(b"go\n").await.unwrap();
    // The request is in the guest when the microVM's bytes say so.
    until(&agent, id, |one| one.metering.as_ref().is_some_and(|metering| metering.endpoint_bytes > 0)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    let (suspended, late) = tokio::join!(suspend(&agent, id, 1), async {
        // Comes when no new ones are let in: it waits, and wakes the microVM again.
        tokio::time::sleep(Duration::from_millis(100)).await;
        get(&agent, id, "count").await
    });
    eprintln!("{} after {:?}", steps(&suspended.unwrap()), begun.elapsed());
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, request.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "2\n");
    assert_eq!(late, "3");
    assert_eq!(agent.log_text().matches("from=Waking to=Running").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspend_whose_hook_fails_leaves_them_open() {
    let (_world, agent, one) = running(Some(hooks(&["suspend"]))).await;
    let id = one.microvm_id.as_str();
    let edge = Edge::new(&agent, id, 1);
    let mut echo = Echo::open(&edge).await;
    echo.exchange(1, 1).await;
    assert_eq!(get(&agent, id, "set?suspend=500").await, "ok");
    suspend(&agent, id, 1).await.unwrap_err();
    echo.exchange(2, 2).await;
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running);
}

/// Waits until the snapshot is in S3; where it is there.
async fn uploaded(agent: &Agent, id: &str) -> SnapshotCopies {
    let (one, _) = until(agent, id, |one| one.snapshot.as_ref().is_some_and(|copies| copies.remote)).await;
    one.snapshot.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn they_move_to_another_host_and_outlive_its_agent() {
    let (world, first, one) = running(None).await;
    let id = one.microvm_id.as_str();
    let edge = Edge::new(&first, id, 1);
    let (mut echo, mut counting, mut loopback) = under_way(&edge).await;

    let mut agents = [first, world.agent(4096).await];
    let (mut at, mut owed) = (0, 0);
    // An odd round moves it, an even one kills the agent and starts it again.
    for round in 1..=6u8 {
        let generation = u64::from(round / 2) + 1;
        counting.expect(3).await;
        loopback.expect(3).await;
        edge.is_awake(false);
        suspend(&agents[at], id, generation).await.unwrap();
        if round % 2 == 1 {
            let copies = uploaded(&agents[at], id).await;
            let left = at;
            at = 1 - left;
            edge.is_at(&agents[at], generation + 1);
            let woken = resume(&agents[at], &one, generation + 1, Some(copies)).await.unwrap();
            eprintln!("{}", steps(&woken));
            // The host that it has left hears of it, and ends what waits there.
            world.reports.lock().unwrap().stale.insert(
                agents[left].host_id.clone(),
                vec![StaleMicrovm { microvm_id: id.to_owned(), generation }],
            );
            testkit::until("the copy is dropped", || async { agents[left].names("microvms").is_empty() })
                .await;
            edge.is_awake(true);
        } else {
            agents[at].kill();
            agents[at].start(None).await;
        }
        // After the agent's death this wakes it.
        echo.exchange(round, owed).await;
        owed = round;
        edge.is_awake(true);
    }
    counting.expect(3).await;
    loopback.expect(3).await;

    // Nobody comes for one whose client has left: the app hears of it, and the others go on.
    suspend(&agents[at], id, 4).await.unwrap();
    drop(loopback);
    resume(&agents[at], &one, 4, None).await.unwrap();
    counting.expect(50).await;
    echo.exchange(7, owed).await;
    terminate(&agents[at], id, 4).await.unwrap();
}
