//! Clients that break HTTP/2's spirit, frame by frame: they lose their connection, and others are answered meanwhile.

use std::time::Duration;

use api::microvm::v1::MicrovmState::Running;
use edge_proxy::config::Limits;
use futures::future::join_all;
use testkit::{eventually, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::limits::closed;
use super::world::{WAIT, World, host_name, limits};
use super::{ONE, TWO};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Preface and settings of a client.
fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A request's head in HPACK: `GET / https`, and the endpoint.
fn head() -> Vec<u8> {
    let host = host_name(ONE);
    let mut head = vec![0x82, 0x84, 0x87, 0x01, u8::try_from(host.len()).unwrap()];
    head.extend(host.as_bytes());
    head
}

/// The error codes of the GOAWAY frames in what the edge sent.
fn goaways(mut bytes: &[u8]) -> Vec<u32> {
    let mut codes = Vec::new();
    while bytes.len() >= 9 {
        let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) * 256 + usize::from(bytes[2]);
        let Some(payload) = bytes.get(9..9 + length) else { break };
        if bytes[3] == GOAWAY {
            codes.push(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        bytes = &bytes[9 + length..];
    }
    codes
}

/// Sends a flood of resets, and is told to calm down.
async fn reset(world: &World, flood: &[u8]) {
    let mut stream = world.tls(ONE, true, |_| ()).await.unwrap();
    let _ = stream.write_all(flood).await;
    let _ = stream.flush().await;
    let mut sent = Vec::new();
    let _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut sent)).await.expect("still open");
    assert_eq!(goaways(&sent).last(), Some(&ENHANCE_YOUR_CALM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_cost_the_connection_and_nobody_else() {
    const STREAMS: u32 = 2000;
    const CLIENTS: usize = 4;
    let world = World::start(limits()).await;
    world.microvm(TWO, Running);
    let mut flood = hello();
    for stream in 0..STREAMS {
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream * 2 + 1, &head()));
        flood.extend(frame(RST_STREAM, 0, stream * 2 + 1, &CANCEL.to_be_bytes()));
    }
    let flooding = join_all((0..CLIENTS).map(|_| reset(&world, &flood)));
    let asking = async {
        for _ in 0..20 {
            assert_eq!(world.get(TWO, "/").await.status, 200);
        }
    };
    tokio::join!(flooding, asking);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_an_end_cost_the_connection() {
    let world = World::start(limits()).await;
    world.microvm(TWO, Running);
    // A literal header of 8,000 bytes, as often as one likes; and nothing, as often as one likes.
    let mut large = vec![0x00, 1, b'x', 0x7f, 0xc1, 0x3d];
    large.extend([b'y'; 8000]);
    for piece in [large, Vec::new()] {
        let mut stream = world.tls(ONE, true, |_| ()).await.unwrap();
        stream.write_all(&hello()).await.unwrap();
        stream.write_all(&frame(HEADERS, END_STREAM, 1, &head())).await.unwrap();
        let more = frame(CONTINUATION, 0, 1, &piece);
        let (mut read, mut write) = tokio::io::split(stream);
        let writing = async { while write.write_all(&more).await.is_ok() {} };
        let reading = closed(&mut read);
        tokio::select! {
            () = writing => {}
            () = reading => {}
        }
    }
    assert_eq!(world.get(TWO, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_the_answers_to_their_flood_is_cut() {
    let limited = Limits { connections_per_address: 3, unread_ms: 300, ..limits() };
    let world = World::start(limited).await;
    world.microvm(TWO, Running);
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut stream =
            eventually("there is a place", || async { world.tls(ONE, true, |_| ()).await.ok() }).await;
        stream.write_all(&hello()).await.unwrap();
        let batch = flood.repeat(1000);
        // Until the edge takes no more of it, because nobody takes its answers.
        let taken = Duration::from_secs(2);
        while matches!(tokio::time::timeout(taken, stream.write_all(&batch)).await, Ok(Ok(()))) {}
        assert_eq!(world.get(TWO, "/").await.status, 200);
        until("its place is free again", || async {
            let all = join_all((0..3).map(|_| world.tls(TWO, false, |_| ()))).await;
            all.iter().all(Result::is_ok)
        })
        .await;
    }
}
