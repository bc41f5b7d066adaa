//! Where keys come from, and when they stop working.

use std::time::{Duration, SystemTime};

use clock::Clock;
use records::Expect;
use testkit::until;

use crate::client::Signer;
use crate::world::{KEY, World, stored_key};

fn stored(id: &str, secret: &str, expires: Option<SystemTime>) -> Vec<u8> {
    stored_key((id, secret), |key| key.expire_time = expires.map(api::timestamp))
}

/// The class of the answer to a request under a key. Nothing behind the edge
/// answers: whoever is let in hears that.
async fn class(world: &World, id: &str, secret: &str) -> String {
    let request = Signer::new(id, secret).request("GET", "/2025-09-09/microvms", "");
    world.connection().send(request).await.class().to_owned()
}

const IN: &str = "InternalServerException";
const UNKNOWN: &str = "UnrecognizedClientException";

async fn becomes(world: &World, id: &str, secret: &str, expected: &str) {
    until(&format!("{id} is {expected}"), || async { class(world, id, secret).await == expected }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_etcd_come_and_go() {
    let world = World::start().await;
    let (one, two) = ("AKIASTOREDONE0000000", "AKIASTOREDTWO0000000");
    assert_eq!(class(&world, one, "one").await, UNKNOWN);
    let put = async |id: &str, value: Vec<u8>| {
        let key = format!("access-keys/{id}");
        world.store.put_if(&key, value, Expect::Absent, None).await.unwrap()
    };
    let revision = put(one, stored(one, "one", None)).await;
    becomes(&world, one, "one", IN).await;
    // Rotation: the next key works beside the first, then alone.
    put(two, stored(two, "two", None)).await;
    becomes(&world, two, "two", IN).await;
    assert_eq!(class(&world, one, "one").await, IN);
    assert_eq!(class(&world, one, "two").await, "InvalidSignatureException");
    let key = format!("access-keys/{one}");
    world.store.delete_if(&key, Expect::Revision(revision), None).await.unwrap();
    becomes(&world, one, "one", UNKNOWN).await;
    assert_eq!(class(&world, two, "two").await, IN);
    assert_eq!(class(&world, KEY.0, KEY.1).await, IN, "the others stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_expire() {
    let clock = Clock::manual(SystemTime::now());
    let world = World::at(clock.clone(), |_| ()).await;
    let id = "AKIASTOREDBRIEF00000";
    let expires = clock.now() + Duration::from_secs(60);
    let value = stored(id, "brief", Some(expires));
    let key = format!("access-keys/{id}");
    world.store.put_if(&key, value, Expect::Absent, None).await.unwrap();
    becomes(&world, id, "brief", IN).await;
    clock.advance(Duration::from_secs(59));
    assert_eq!(class(&world, id, "brief").await, IN);
    clock.advance(Duration::from_secs(1));
    assert_eq!(class(&world, id, "brief").await, "ExpiredTokenException");
    // Who cannot sign is not told that it ever worked.
    assert_eq!(class(&world, id, "guess").await, "InvalidSignatureException");
}
