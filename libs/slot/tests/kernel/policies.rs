//! Policies under a real kernel.

use slot::{Egress, POLICY_NETWORKS_MAX, Policy, Pool, PoolSettings};

use crate::world::{Guest, Internet, World};
use crate::{ASK, resolver};

const PORT: u16 = 8080;
const ADDRESSES: [&str; 4] = ["198.41.20.1", "198.41.20.129", "198.41.21.1", "10.77.5.1"];

fn policy(allow: &[&str], deny: &[&str]) -> Egress {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    Egress::Policy(Policy::parse(&owned(allow), &owned(deny)).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_reach_what_their_policy_lets_them() {
    let world = World::new('h', 7);
    let _internet = Internet::new(&world, 1, &ADDRESSES);
    let settings = PoolSettings {
        resolvers: vec![resolver().await],
        openable: vec!["10.77.0.0/16".parse().unwrap()],
        ..world.0.clone()
    };
    let pool = Pool::start(settings, &[]).await.unwrap();
    for (egress, expected) in [
        (Egress::Internet, &ADDRESSES[..3]),
        (policy(&["198.41.20.0/24"], &["198.41.20.128/25"]), &ADDRESSES[..1]),
        (policy(&["198.41.21.1/32", "10.77.5.0/24"], &[]), &ADDRESSES[2..]),
        (policy(&[], &["198.41.20.0/24"]), &ADDRESSES[2..3]),
        (policy(&["0.0.0.0/0"], &["10.0.0.0/8"]), &ADDRESSES[..3]),
        (policy(&["0.0.0.0/0"], &["0.0.0.0/0"]), &[]),
        (policy(&["2001:db8::/32"], &[]), &[]),
    ] {
        let slot = pool.take(egress.clone()).await.unwrap();
        let guest = Guest::attach(&slot);
        for address in ADDRESSES {
            let as_expected = match expected.contains(&address) {
                true => guest.reaches(address, PORT),
                false => guest.is_kept_from(address, PORT),
            };
            assert!(as_expected, "{address}: {egress:?}");
        }
        let (answered, _) = guest.run(&["python3", "-c", ASK, "169.254.100.1", "5"]);
        assert!(answered, "names are asked under every policy: {egress:?}");
        drop(guest);
        pool.recycle(slot).await.unwrap();
    }
    pool.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_policy_opens_the_host_or_another_slot() {
    let world = World::new('i', 8);
    let _internet = Internet::new(&world, 2, &["198.41.22.1"]);
    let settings = PoolSettings { openable: vec!["0.0.0.0/0".parse().unwrap()], ..world.0.clone() };
    let pool = Pool::start(settings, &[]).await.unwrap();
    let one = pool.take(policy(&["0.0.0.0/0"], &[])).await.unwrap();
    let other = pool.take(policy(&["0.0.0.0/0"], &[])).await.unwrap();
    let guest = Guest::attach(&one);
    let host = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = host.local_addr().unwrap().port();
    let everywhere = std::net::SocketAddr::from(([0, 0, 0, 0], port));
    let _neighbour = other.dialer().listen(everywhere).await.unwrap();
    let _gateway = one.dialer().listen(everywhere).await.unwrap();
    let outer = |index: u32, side: u32| format!("10.203.8.{}", index * 4 + side);
    for address in [
        "198.41.2.1".to_owned(),
        "127.0.0.1".to_owned(),
        "169.254.100.1".to_owned(),
        "169.254.169.254".to_owned(),
        outer(one.index(), 1),
        outer(one.index(), 2),
        outer(other.index(), 1),
        outer(other.index(), 2),
    ] {
        assert!(guest.is_kept_from(&address, port), "the guest reached {address}");
    }
    assert!(guest.reaches("198.41.22.1", PORT), "the policy opens nothing at all");
    drop(guest);
    pool.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_outlives_a_restart_and_full_lists_are_taken() {
    let world = World::new('j', 9);
    let _internet = Internet::new(&world, 3, &["198.41.23.1", "198.41.24.1"]);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    let filler =
        |first: u8| (1..POLICY_NETWORKS_MAX).map(move |n| format!("{first}.{}.{}.0/24", n / 256, n % 256));
    let mut allow: Vec<String> = filler(45).collect();
    allow.push("198.41.23.0/24".to_owned());
    let mut deny: Vec<String> = filler(46).collect();
    deny.push("198.41.24.0/24".to_owned());
    let policy = Egress::Policy(Policy::parse(&allow, &deny).unwrap());
    let slot = pool.take(policy.clone()).await.unwrap();
    let (guest, name) = (Guest::attach(&slot), slot.name().to_owned());
    let only_allowed = |when: &str| {
        assert!(guest.reaches("198.41.23.1", PORT), "{when}");
        assert!(guest.is_kept_from("198.41.24.1", PORT), "{when}");
    };
    only_allowed("taken");
    // A crash: everything is dropped where it stands, the rules stay.
    drop((slot, pool));
    only_allowed("without a pool");
    let pool = Pool::start(world.0.clone(), std::slice::from_ref(&name)).await.unwrap();
    only_allowed("before it is adopted");
    let slot = pool.adopt(&name, policy.clone()).await.unwrap();
    assert_eq!(slot.egress(), &policy);
    only_allowed("adopted");
    // The next guest in a slot of that index has rules of its own.
    pool.recycle(slot).await.unwrap();
    drop(guest);
    pool.shutdown(false).await.unwrap();
    assert_eq!(
        world
            .names()
            .into_iter()
            .filter(|name| !name.ends_with("-far") && !name.ends_with("-net"))
            .collect::<Vec<_>>(),
        Vec::<String>::new()
    );
}
