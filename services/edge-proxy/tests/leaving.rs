//! Requests when an edge stops, and when a host is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::microvm::v1::MicrovmState::Running;
use testkit::until;

use super::world::client::{Connection, body};
use super::world::host::Conduct;
use super::world::{WAIT, World, host_name, id, limits, raw};
use super::{ONE, TWO};

/// A request may be on its way when the edge is told to stop: over a connection that was kept, over one that has carried none
/// yet, and over one that the edge has not even accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_connected_when_the_edge_stops_has_one_more_answer() {
    let mut world = World::start(limits()).await;
    world.microvm(ONE, Running);
    let mut kept = world.connect(ONE, false).await;
    assert_eq!(kept.send(ONE, world.authorized(ONE, "/"), body("")).await.status, 200);
    let fresh = world.connect(ONE, false).await;
    let bare = world.tcp().await.unwrap();
    world.shutdown.cancel();
    until("no new clients", || async { world.tcp().await.is_err() }).await;
    let late = world.tls_over(bare, host_name(ONE), false, |_| ()).await.unwrap();
    for mut connection in [kept, fresh, Connection::over(late, false).await] {
        let answer = connection.send(ONE, world.authorized(ONE, "/"), body("")).await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    }
    tokio::time::timeout(WAIT, &mut world.serving).await.expect("still draining").unwrap();
}

/// A host that is lost says nothing, and neither do the connections to it: the scheduler's word that the microVM is elsewhere has to
/// do, for a request that the app was to answer as for one that waits for its tunnel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_a_lost_host_go_where_their_microvm_goes_on() {
    let world = World::start(limits()).await;
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let silent = raw::app(move |mut stream| {
        let count = count.clone();
        async move {
            raw::head(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
            raw::rest(&mut stream).await;
        }
    });
    let silent = silent.await;
    for (number, method, status) in [(ONE, "GET", 200), (TWO, "POST", 502)] {
        let mut placed = world.microvm(number, Running);
        world.host.redirect(id(number), silent);
        let before = told.load(Ordering::SeqCst);
        let lose = async {
            until("the app has the request", || async { told.load(Ordering::SeqCst) > before }).await;
            world.host.redirect(id(number), world.app.address);
            placed.microvm.as_mut().unwrap().generation = 2;
            world.scheduler.tell(placed.clone());
        };
        let request = world.authorized(number, "/").method(method);
        let mut connection = world.connect(number, false).await;
        let (answer, ()) = tokio::join!(connection.send(number, request, body("")), lose);
        assert_eq!(answer.status, status, "{method}");
        // Of the host that it is placed on now nothing comes before it wakes, and then it is on another.
        world.host.conduct(id(number), Conduct::Wake(WAIT * 10));
        let asked = world.host.requests().len();
        let lose = async {
            until("a tunnel is asked for", || async { world.host.requests().len() > asked }).await;
            world.host.conduct(id(number), Conduct::Serve);
            placed.microvm.as_mut().unwrap().generation = 3;
            world.scheduler.tell(placed.clone());
        };
        let request = world.authorized(number, "/").method(method).header("x-aws-proxy-port", "9000");
        let mut connection = world.connect(number, false).await;
        let (answer, ()) = tokio::join!(connection.send(number, request, body("")), lose);
        assert_eq!(answer.status, 200, "{method}");
    }
}
