//! Connections that stay open while their microVM sleeps: no byte is lost or repeated, and nobody connects anew.

use std::time::{Duration, Instant};

use api::common::v1::Hooks;
use api::hostagent::v1::MicrovmSpec;
use api::microvm::v1::MicrovmState;
use api::tunnel::v1::OpenStatus;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines, ReadHalf, WriteHalf,
};
use tunnel::ClientStream;

use crate::app_disk::{COUNT_PORT, ECHO_PORT, LOOPBACK_PORT, SLOW_PORT};
use crate::calls::*;
use crate::world::{Agent, PATIENCE, World};

/// What is sent before a sleep and again to wake up from it: more than the buffers of a socket's beginning.
const CHUNK: usize = 150_000;
const SLEEPS: u8 = 5;

/// An echoing connection of which some is always under way.
struct Echo {
    read: ReadHalf<ClientStream>,
    write: WriteHalf<ClientStream>,
}

impl Echo {
    async fn open(agent: &Agent, id: &str, port: u32) -> Self {
        let (read, write) = tokio::io::split(connect(agent, id, port, true).await);
        Self { read, write }
    }

    /// Sends a chunk and reads as much.
    async fn exchange(&mut self, sent: u8, expected: u8) {
        let chunk = vec![sent; CHUNK];
        let mut received = vec![0; CHUNK];
        let both = async { tokio::join!(self.write.write_all(&chunk), self.read.read_exact(&mut received)) };
        let (written, read) =
            tokio::time::timeout(PATIENCE, both).await.expect("the connection stands still");
        written.unwrap();
        read.unwrap();
        assert!(received.iter().all(|byte| *byte == expected), "other bytes came back in round {expected}");
    }
}

/// A connection on which the guest counts.
struct Counting {
    lines: Lines<BufReader<ClientStream>>,
    next: u32,
    port: u32,
}

impl Counting {
    fn of(stream: ClientStream, port: u32) -> Self {
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

async fn connect(agent: &Agent, id: &str, port: u32, wake: bool) -> ClientStream {
    let (response, stream) = open(agent, id, port, wake).await;
    assert_eq!(response.status(), OpenStatus::Connected, "{response:?}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn they_sleep_and_wake_with_their_guest() {
    let (_world, agent, one) = running(None).await;
    let id = one.microvm_id.as_str();
    let mut echo = Echo::open(&agent, id, ECHO_PORT).await;
    let mut counting = Counting::of(connect(&agent, id, COUNT_PORT, true).await, COUNT_PORT);
    let mut loopback = connect(&agent, id, LOOPBACK_PORT, true).await;
    loopback.write_all(b"GET /cgi-bin/counting HTTP/1.0\r\n\r\n").await.unwrap();
    let mut loopback = Counting::of(loopback, LOOPBACK_PORT);
    while !loopback.lines.next_line().await.unwrap().unwrap().is_empty() {}
    // A chunk is always owed: written before the sleep, read after it.
    echo.write.write_all(&[0; CHUNK]).await.unwrap();
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
    let mut still = connect(&agent, id, ECHO_PORT, false).await;
    suspend(&agent, id, 1).await.unwrap();
    still.write_all(b"hello?").await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, still.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Suspended);
    terminate(&agent, id, 1).await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, echo.read.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a connection outlived its microVM");
    assert!(agent.engines().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_microvm_answers_before_it_sleeps() {
    let (_world, agent, one) = running(None).await;
    let id = one.microvm_id.as_str();
    assert_eq!(get(&agent, id, "count").await, "1");
    let mut request = connect(&agent, id, SLOW_PORT, true).await;
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
    let mut echo = Echo::open(&agent, id, ECHO_PORT).await;
    echo.exchange(1, 1).await;
    assert_eq!(get(&agent, id, "set?suspend=500").await, "ok");
    suspend(&agent, id, 1).await.unwrap_err();
    echo.exchange(2, 2).await;
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running);
}
