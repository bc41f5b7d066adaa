//! A link against a guest end in the same process, honest and hostile.

use api::common::v1::LogLine;
use api::guest::v1::{Failure, KeepAwake, PrepareSnapshotResponse, StreamLogsResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::frame::{PREFIX_BYTES, announced_length, decode, encode};

async fn receive(stream: &mut DuplexStream) -> Frame {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await.unwrap();
    let mut body = vec![0; announced_length(prefix).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    decode(&body).unwrap()
}

async fn answer(stream: &mut DuplexStream, exchange: u32, body: Body) {
    stream.write_all(&encode(&Frame { exchange, body: Some(body) }).unwrap()).await.unwrap();
}

fn link() -> (Link, mpsc::Receiver<Event>, DuplexStream) {
    let (host, guest) = duplex(1 << 16);
    let (link, events) = Link::start(host);
    (link, events, guest)
}

fn logs(texts: &[&str], dropped: u64) -> Body {
    let lines = texts.iter().map(|text| LogLine { text: (*text).to_owned(), ..LogLine::default() });
    Body::StreamLogsResponse(StreamLogsResponse { lines: lines.collect(), dropped })
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (link, _events, mut guest) = link();
    let (first, second) = (link.clone(), link.clone());
    let stats = tokio::spawn(async move { first.stats().await });
    let one = receive(&mut guest).await;
    let prepare = tokio::spawn(async move { second.prepare_snapshot(true).await });
    let two = receive(&mut guest).await;
    answer(&mut guest, two.exchange, Body::PrepareSnapshotResponse(PrepareSnapshotResponse {})).await;
    prepare.await.unwrap().unwrap();
    let used = GetStatsResponse { memory_used_bytes: 7, processes: 1 };
    answer(&mut guest, one.exchange, Body::GetStatsResponse(used)).await;
    assert_eq!(stats.await.unwrap().unwrap(), used);
}

#[tokio::test]
async fn failures_and_wrong_answers_are_errors() {
    let (link, _events, mut guest) = link();
    for (body, expected) in [
        (
            Body::Failure(Failure { message: "x".repeat(2000), invalid: true }),
            Error::Failed { call: "GetStats", message: "x".repeat(512), invalid: true },
        ),
        (Body::PrepareSnapshotResponse(PrepareSnapshotResponse {}), Error::Protocol("GetStats")),
    ] {
        let caller = link.clone();
        let call = tokio::spawn(async move { caller.stats().await });
        let frame = receive(&mut guest).await;
        answer(&mut guest, frame.exchange, body).await;
        assert_eq!(call.await.unwrap().unwrap_err(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_times_out_and_a_late_answer_is_dropped() {
    let (link, _events, mut guest) = link();
    let request = CallHookRequest {
        timeout: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
        ..CallHookRequest::default()
    };
    let error = link.call_hook(request).await.unwrap_err();
    assert_eq!(error, Error::TimedOut { call: "CallHook", after: Duration::from_secs(5) });
    let frame = receive(&mut guest).await;
    answer(&mut guest, frame.exchange, Body::CallHookResponse(CallHookResponse::default())).await;
    assert!(!link.is_closed());
    assert!(link.shared.waiting.lock().callers.is_empty());
}

#[tokio::test]
async fn death_reaches_every_waiter_and_the_events() {
    let (link, mut events, guest) = link();
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let link = link.clone();
            tokio::spawn(async move { link.stats().await })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(guest);
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(Error::Closed(_))));
    }
    assert!(matches!(events.recv().await, Some(Event::Closed { .. })));
    assert!(events.recv().await.is_none());
    assert!(matches!(link.stats().await, Err(Error::Closed(_))));
    assert!(link.is_closed());
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_stream() {
    let (link, _events, mut guest) = link();
    drop(link);
    assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn hostile_bytes_end_the_link_in_bounded_time() {
    let too_many = encode(&Frame { exchange: 0, body: Some(logs(&["x"; 257], 0)) }).unwrap();
    let cases: [(&str, &[u8]); 4] = [
        ("a length over the limit", &[0xff; 4]),
        ("bytes that are no frame", &[0, 0, 0, 2, 0xff, 0xff]),
        ("half a frame and silence", &[0, 0, 1, 0, 1]),
        ("too many lines", &too_many),
    ];
    for (name, bytes) in cases {
        let (link, mut events, mut guest) = link();
        guest.write_all(bytes).await.unwrap();
        assert!(matches!(events.recv().await, Some(Event::Closed { .. })), "{name}");
        assert!(link.is_closed(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn unread_logs_are_counted_and_the_exit_still_arrives() {
    let (link, mut events, mut guest) = link();
    for _ in 0..EVENTS_MAX + 10 {
        answer(&mut guest, 0, logs(&["a", "b"], 0)).await;
    }
    let exited = AppExited { exit_code: 3, ..Default::default() };
    answer(&mut guest, 0, Body::AppExited(exited)).await;
    answer(&mut guest, 0, Body::AppExited(exited)).await;
    // An exchange behind them proves the reader has taken them all.
    let caller = link.clone();
    let call = tokio::spawn(async move { caller.stats().await });
    let frame = receive(&mut guest).await;
    answer(&mut guest, frame.exchange, Body::GetStatsResponse(GetStatsResponse::default())).await;
    call.await.unwrap().unwrap();
    for _ in 0..EVENTS_MAX {
        assert!(matches!(events.recv().await, Some(Event::Logs { dropped: 0, .. })));
    }
    assert_eq!(events.recv().await, Some(Event::AppExited(exited)));
    answer(&mut guest, 0, logs(&["c"], 5)).await;
    match events.recv().await {
        Some(Event::Logs { dropped, lines }) => assert_eq!((dropped, lines.len()), (25, 1)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn long_lines_are_cut_on_a_character() {
    let (_link, mut events, mut guest) = link();
    answer(&mut guest, 0, logs(&["é".repeat(10_000).as_str()], 0)).await;
    match events.recv().await {
        Some(Event::Logs { lines, .. }) => assert_eq!(lines[0].text.len(), crate::LOG_LINE_BYTES_MAX),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_stays_awake_is_heard_within_bounds_and_not_too_often() {
    let (_link, mut events, mut guest) = link();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let heard = |seconds: u64| Some(Event::KeepAwake(Some(Duration::from_secs(seconds))));
    // What is out of bounds does not count against the next one; what follows too soon is dropped.
    for duration in [seconds(0), seconds(28_801), seconds(-1), seconds(28_800), seconds(2), None] {
        answer(&mut guest, 0, Body::KeepAwake(KeepAwake { duration })).await;
    }
    assert_eq!(events.recv().await, heard(28_800));
    tokio::time::sleep(crate::KEEP_AWAKE_INTERVAL).await;
    answer(&mut guest, 0, Body::KeepAwake(KeepAwake { duration: None })).await;
    assert_eq!(events.recv().await, Some(Event::KeepAwake(None)));
    tokio::time::sleep(crate::KEEP_AWAKE_INTERVAL).await;
    answer(&mut guest, 0, Body::KeepAwake(KeepAwake { duration: seconds(3) })).await;
    assert_eq!(events.recv().await, heard(3));
}
