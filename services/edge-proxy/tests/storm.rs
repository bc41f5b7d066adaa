//! Many microVMs that sleep are called at once, and their host wakes a few at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::microvm::v1::MicrovmState::Suspended;
use edge_proxy::config::Limits;
use futures::future::join_all;
use host_agent::{Turn, Wakes};
use testkit::until;
use tokio::task::JoinHandle;

use super::world::client::{Answer, Connection, body};
use super::world::{World, id, limits};
use super::{ONE, TWO};

const AT_ONCE: usize = 16;
const CROWD: std::ops::RangeInclusive<u128> = 1..=190;
const FEW: std::ops::RangeInclusive<u128> = 191..=200;
const GONE: u128 = 300;

impl World {
    /// A microVM that sleeps, of this image.
    fn asleep(&self, number: u128, image: &str) {
        self.microvm(number, Suspended);
        self.host.belongs(id(number), image);
        self.host.guest(&id(number)).suspend();
    }

    /// A request on its way.
    fn call(&self, number: u128, mut connection: Connection) -> JoinHandle<Answer> {
        let request = self.authorized(number, "/");
        tokio::spawn(async move { connection.send(number, request, body("")).await })
    }
}

/// Takes every turn, so that whatever is called queues until they are given back.
async fn take_all(wakes: &Arc<Wakes>, at_once: usize) -> Vec<Turn> {
    let turns = (0..at_once).map(async |number| wakes.turn(&format!("taken-{number}"), "taken").await);
    join_all(turns).await.into_iter().map(|turn| turn.unwrap()).collect()
}

async fn until_waiting(wakes: &Wakes, count: usize) {
    until("they queue", || async { wakes.waiting() == count }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_are_called_at_once_and_all_are_answered() {
    let world = World::start(Limits { launch_wait_ms: 100_000, ..limits() }).await;
    let wakes = world.host.wake_in_turn(AT_ONCE, 1000);
    let taken = take_all(&wakes, AT_ONCE).await;
    let mut calls = Vec::new();
    for (image, numbers) in [("crowd", CROWD), ("few", FEW)] {
        for number in numbers.clone() {
            world.asleep(number, image);
            let Connection::Http2(sender) = world.connect(number, true).await else { unreachable!() };
            // Two callers each: they share one wake.
            for sender in [sender.clone(), sender] {
                calls.push(world.call(number, Connection::Http2(sender)));
            }
        }
        until_waiting(&wakes, usize::try_from(*numbers.end()).unwrap()).await;
    }
    // A client that goes away while it waits leaves the queue.
    world.asleep(GONE, "crowd");
    let gone = world.call(GONE, world.connect(GONE, true).await);
    until_waiting(&wakes, 201).await;
    gone.abort();
    until_waiting(&wakes, 200).await;

    drop(taken);
    for answer in join_all(calls).await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    }
    for number in CROWD.chain(FEW) {
        assert_eq!(world.host.guest(&id(number)).wakes.load(Ordering::SeqCst), 1, "{number}");
    }
    assert_eq!(world.host.guest(&id(GONE)).wakes.load(Ordering::SeqCst), 0);
    assert_eq!(world.app.requests.load(Ordering::SeqCst), 400);
    // The few came last, and every second turn was theirs; those under way together end in any order.
    let woken = world.host.woken();
    let few: Vec<_> = FEW.map(id).collect();
    let last = woken.iter().rposition(|one| few.contains(one)).unwrap();
    assert!(last < 2 * few.len() + AT_ONCE, "{last} of {}", woken.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_queue_or_waits_too_long_is_told_to_try_again() {
    let world = World::start(Limits { launch_wait_ms: 2000, connect_ms: 200, ..limits() }).await;
    let wakes = world.host.wake_in_turn(1, 1);
    let taken = take_all(&wakes, 1).await;
    for number in [ONE, TWO] {
        world.asleep(number, "app");
    }
    let waits = world.call(ONE, world.connect(ONE, false).await);
    until_waiting(&wakes, 1).await;
    let later = |answer: &Answer| {
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    };
    later(&world.get(TWO, "/").await);
    assert_eq!(wakes.waiting(), 1);
    later(&waits.await.unwrap());
    until_waiting(&wakes, 0).await;
    drop(taken);
    let answer = tokio::time::timeout(Duration::from_secs(10), world.get(ONE, "/")).await.unwrap();
    assert_eq!(answer.status, 200);
}
