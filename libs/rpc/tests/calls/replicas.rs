//! Finding the leader among real servers.

use std::time::Duration;

use api::errors;
use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::{HeartbeatRequest, HeartbeatResponse};
use rpc::{CallBounds, Replicas, Role};
use testkit::Script;
use tonic::{Code, Status};

use super::World;

const BOUNDS: CallBounds =
    CallBounds { attempt: Duration::from_secs(5), total: Duration::from_secs(10), retry: Duration::ZERO };
const SOON: Duration = Duration::from_millis(1);

/// A replica whose answer a test can change, and which counts how often it was asked.
struct Replica {
    script: Script,
    address: String,
}

impl Replica {
    async fn start(world: &World) -> Self {
        Self::start_as(world, Role::Scheduler).await
    }

    async fn start_as(world: &World, role: Role) -> Self {
        let script = Script::start(&world.identity(role), &[Role::HostAgent]).await;
        let replica = Self { address: script.address.to_string(), script };
        replica.leads();
        replica
    }

    fn leads(&self) {
        self.script.answer("Heartbeat", Ok(HeartbeatResponse::default()));
    }

    fn refuses(&self, status: Status) {
        self.script.answer::<HeartbeatResponse>("Heartbeat", Err(status));
    }

    fn follows(&self, leader: &str) {
        self.refuses(errors::not_leader(leader, SOON));
    }

    fn asked(&self) -> usize {
        self.script.take().len()
    }
}

async fn heartbeat(replicas: &Replicas, bounds: CallBounds) -> Result<HeartbeatResponse, Status> {
    let call = |channel, request| async move { HostServiceClient::new(channel).heartbeat(request).await };
    replicas.call(bounds, HeartbeatRequest::default(), call).await
}

fn replicas(world: &World, addresses: &[&str]) -> Replicas {
    let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
    Replicas::new(world.identity(Role::HostAgent), &addresses, Role::Scheduler).unwrap()
}

#[tokio::test]
async fn the_leader_is_found_and_remembered() {
    let world = World::new();
    let (first, second) = (Replica::start(&world).await, Replica::start(&world).await);
    first.follows("");
    let both = replicas(&world, &[&first.address, &second.address]);
    for _ in 0..3 {
        heartbeat(&both, BOUNDS).await.unwrap();
    }
    assert_eq!((first.asked(), second.asked()), (1, 3));

    // The leader changes; a stream's end says so as well as a call's.
    first.leads();
    second.follows(&first.address);
    both.leave(&errors::not_leader(&first.address, SOON));
    heartbeat(&both, BOUNDS).await.unwrap();
    assert_eq!((first.asked(), second.asked()), (1, 0));
}

#[tokio::test]
async fn an_address_that_no_setting_lists_is_followed_if_the_role_is_right() {
    let world = World::new();
    let (first, second) = (Replica::start(&world).await, Replica::start(&world).await);
    first.follows(&second.address);
    let one = replicas(&world, &[&first.address]);
    heartbeat(&one, BOUNDS).await.unwrap();
    heartbeat(&one, BOUNDS).await.unwrap();
    assert_eq!((first.asked(), second.asked()), (1, 2));

    // A server without the scheduler's role, a stranger and nonsense are not asked.
    let host = Replica::start_as(&world, Role::HostAgent).await;
    let stranger = Replica::start(&World::new()).await;
    for address in [host.address.as_str(), stranger.address.as_str(), "no address", "127.0.0.1:1"] {
        first.follows(address);
        let one = replicas(&world, &[&first.address]);
        let status = heartbeat(&one, BOUNDS).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{address}");
    }
    assert_eq!(stranger.asked(), 0);
}

#[tokio::test]
async fn replicas_that_name_each_other_end_a_call() {
    let world = World::new();
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(Replica::start(&world).await);
    }
    for index in 0..all.len() {
        all[index].follows(&all[(index + 1) % all.len()].address);
    }
    let one = replicas(&world, &[&all[0].address]);
    let status = heartbeat(&one, BOUNDS).await.unwrap_err();
    assert_eq!(errors::reason_of(&status).as_deref(), Some("NOT_LEADER"));
    assert_eq!(all.iter().map(Replica::asked).sum::<usize>(), 3, "one configured, two followed");
}

#[tokio::test]
async fn only_an_answer_that_may_differ_elsewhere_moves_on() {
    let world = World::new();
    let (first, second) = (Replica::start(&world).await, Replica::start(&world).await);
    second.leads();
    for (status, moves) in [
        (Status::unavailable("connection refused"), true),
        (Status::deadline_exceeded("slow"), true),
        (errors::unavailable("STORE_UNAVAILABLE", "etcd", SOON), false),
        (errors::nobody_leads("etcd", SOON), true),
        (errors::unavailable("NOT_HERE", "the host is away", SOON), false),
        (errors::not_found("microVM", "x"), false),
        (Status::internal("a bug"), false),
    ] {
        first.refuses(status.clone());
        let both = replicas(&world, &[&first.address, &second.address]);
        let answered = heartbeat(&both, BOUNDS).await;
        assert_eq!(answered.is_ok(), moves, "{status:?}");
    }
}

#[tokio::test]
async fn an_election_is_waited_for_within_the_bounds() {
    let world = World::new();
    let (first, second) = (Replica::start(&world).await, Replica::start(&world).await);
    first.follows("");
    second.follows("");
    let both = replicas(&world, &[&first.address, &second.address]);
    let status = heartbeat(&both, BOUNDS).await.unwrap_err();
    assert_eq!(errors::reason_of(&status).as_deref(), Some("NOT_LEADER"));
    assert_eq!((first.asked(), second.asked()), (1, 1));

    let patient = CallBounds { retry: Duration::from_secs(8), ..BOUNDS };
    let (waiting, elected) = tokio::join!(heartbeat(&both, patient), async {
        while second.asked() == 0 {
            tokio::time::sleep(SOON).await;
        }
        second.leads();
    });
    let ((), _) = (elected, waiting.unwrap());

    first.follows("");
    second.follows("");
    let brief = CallBounds { retry: Duration::from_millis(250), ..BOUNDS };
    assert_eq!(heartbeat(&both, brief).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_silent_replica_is_left_and_the_total_holds() {
    let world = World::new();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = Replica::start(&world).await;
    let silent = silent.local_addr().unwrap().to_string();
    let both = replicas(&world, &[&silent, &second.address]);
    let bounds = CallBounds { attempt: Duration::from_millis(100), ..BOUNDS };
    heartbeat(&both, bounds).await.unwrap();

    let alone = replicas(&world, &[&silent]);
    let status = heartbeat(&alone, CallBounds::once(Duration::from_millis(100))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "the scheduler did not answer in time");
    let none = replicas(&world, &[]);
    assert_eq!(heartbeat(&none, BOUNDS).await.unwrap_err().code(), Code::Unavailable);
}
