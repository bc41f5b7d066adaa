//! Strangers and slow clients hold nothing that callers need.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{HOST, Signer};
use crate::constraints::nothing_is_found;
use crate::hostile::head;
use crate::world::{World, signer};

const MICROVMS: &str = "/2025-09-09/microvms";
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const OTHER: (&str, &str) = ("AKIATESTANOTHER00000", "aJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_requests_hold_nothing_that_callers_need() {
    const HALF_SENT: usize = 60;
    let world = World::with(|config| {
        config.aws.limits.requests = 2;
        config.aws.limits.unverified_per_address = 4;
        config.aws.limits.body_read_ms = 60_000;
        config.aws.limits.body_stall_ms = 60_000;
    })
    .await;
    nothing_is_found(&world);
    let claimed = head(&signer().request("POST", MICROVMS, "{}")).replace("length: 2", "length: 2000");
    for half in [
        // A stranger's, to a path that does not exist, and to one that does.
        format!("POST /x HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000\r\n\r\n"),
        format!("POST {MICROVMS} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000\r\n\r\n"),
        // One that names a key, whose id is no secret.
        claimed,
    ] {
        let mut held = Vec::new();
        for _ in 0..HALF_SENT {
            let mut stream = world.connection().stream().await;
            stream.write_all(half.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            held.push(stream);
        }
        let mut elsewhere = world.connection();
        elsewhere.from = ELSEWHERE;
        for _ in 0..5 {
            let answer = elsewhere.send(signer().request("POST", MICROVMS, "{}")).await;
            assert_eq!(answer.status, 400, "{}", answer.message());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_whose_body_does_not_come_ends_its_connection() {
    let world = World::start().await;
    let mut stream = world.connection().stream().await;
    let half = format!("POST /x HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000\r\n\r\n");
    stream.write_all(half.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bodies_of_one_key_leave_memory_for_others() {
    let world = World::with(|config| {
        config.aws.limits.body_bytes = 100_000;
        config.aws.limits.body_memory_bytes = 400_000;
    })
    .await;
    nothing_is_found(&world);
    world.add_key(OTHER, |_| ()).await;
    let body = "x".repeat(99_999);
    let request = signer().request("POST", MICROVMS, body.clone());
    let mut first = world.connection().stream().await;
    first.write_all(head(&request).as_bytes()).await.unwrap();
    first.write_all(&body.as_bytes()[..99_000]).await.unwrap();
    first.flush().await.unwrap();
    testkit::until("the key has all it may have", || async {
        world.connection().send(signer().request("POST", MICROVMS, body.clone())).await.status == 429
    })
    .await;
    let other = Signer::new(OTHER.0, OTHER.1);
    let answer = world.connection().send(other.request("POST", MICROVMS, body.clone())).await;
    assert_eq!(answer.status, 400, "{}", answer.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_has_its_connections_and_its_rate() {
    let world = World::with(|config| {
        config.aws.limits.connections_per_address = 2;
        config.aws.limits.requests_per_second_per_address = 1;
    })
    .await;
    nothing_is_found(&world);
    let mut connection = world.connection();
    // At most so many within a second.
    let mut refused = None;
    for _ in 0..100 {
        let answer = connection.send(signer().request("POST", MICROVMS, "{}")).await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("there is no rate");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let mut elsewhere = world.connection();
    elsewhere.from = ELSEWHERE;
    assert_eq!(elsewhere.send(signer().request("POST", MICROVMS, "{}")).await.status, 400);
    let _second = world.connection().stream().await;
    let mut third = tokio::net::TcpStream::connect(world.api).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(10), third.read(&mut [0; 1])).await;
    assert!(read.expect("still open").is_ok_and(|count| count == 0), "it was taken");
}
