//! Real namespaces, devices and rules. Needs root, `ip`, `nft` and `python3`.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use slot::{Dialer, Egress, Error, Pool, PoolSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

mod policies;
mod tables;
mod world;

use world::{Guest, Internet, Program, World};

const SHORT: Duration = Duration::from_millis(300);
const WAIT: Duration = Duration::from_secs(5);

async fn echo_once(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
}

async fn echoes(dialer: &Dialer, address: SocketAddr) {
    let mut stream = dialer.connect(address, WAIT).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn life_of_a_pool() {
    let world = World::new('a', 0);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    assert!(world.has_table());
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
    // There is room for the connections of all eight slots beside the host's own.
    let room = || std::fs::read_to_string("/run/torpor-conntrack-max").unwrap();
    let share = format!("torpor_tpt_a {}\n", 8 * (2048 + 6 * 500));
    assert!(room().contains(&share), "{}", room());
    let slot = pool.take(Egress::Internet).await.unwrap();
    assert!(Path::new("/run/netns").join(slot.name()).exists());

    // A listener in the slot is reached from inside it, and gone with it.
    let address: SocketAddr = "169.254.100.1:9000".parse().unwrap();
    let listener = slot.dialer().listen(address).await.unwrap();
    let echo = tokio::spawn(echo_once(listener));
    echoes(&slot.dialer(), address).await;
    echo.await.unwrap();
    // A process being spawned still shares the listener for the moment before it executes its program, and until then
    // a connection is made, or reset.
    let deadline = Instant::now() + WAIT;
    while slot.connect(address, WAIT).await.map_err(|error| error.kind()).map(drop)
        != Err(ErrorKind::ConnectionRefused)
    {
        assert!(Instant::now() < deadline, "the listener is still there");
    }
    // Nobody is behind the tap.
    assert!(slot.connect("169.254.100.2:1024".parse().unwrap(), SHORT).await.is_err());

    let name = slot.name().to_owned();
    pool.recycle(slot).await.unwrap();
    assert!(!world.names().contains(&name));
    pool.shutdown(false).await.unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    assert!(!world.has_table());
    assert!(!room().contains(&share), "{}", room());
    assert!(matches!(pool.take(Egress::None).await, Err(Error::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_is_quick() {
    let world = World::new('b', 1);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    let slot = pool.take(Egress::Internet).await.unwrap();
    let address: SocketAddr = "169.254.100.1:9000".parse().unwrap();
    let listener = slot.dialer().listen(address).await.unwrap();
    let accepting = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let mut times = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        drop(slot.connect(address, WAIT).await.unwrap());
        times.push(started.elapsed());
    }
    times.sort();
    println!("connect: median {:?}, p99 {:?}", times[250], times[495]);
    // 0.1 ms on an idle machine; the bound only catches a wait that crept in.
    assert!(times[250] < Duration::from_millis(5), "median {:?}", times[250]);
    accepting.abort();
    pool.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_reach_neither_host_nor_each_other() {
    let world = World::new('c', 2);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    let one = pool.take(Egress::Internet).await.unwrap();
    let other = pool.take(Egress::Internet).await.unwrap();
    let guest = Guest::attach(&one);

    // The host and the other slot listen wherever a guest might look.
    let host = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = host.local_addr().unwrap().port();
    let neighbour = other.dialer().listen(SocketAddr::from(([0, 0, 0, 0], port))).await.unwrap();
    let gateway = one.dialer().listen(SocketAddr::from(([0, 0, 0, 0], port))).await.unwrap();
    let outer = |index: u32, side: u32| format!("10.203.2.{}", index * 4 + side);
    let listing = Command::new("hostname").arg("-I").output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let own = listing.split_whitespace().filter(|address| !address.contains(':')).map(str::to_owned);
    let mut addresses: Vec<String> = own.collect();
    addresses.extend([1, 2].map(|side| outer(one.index(), side)));
    addresses.extend([1, 2].map(|side| outer(other.index(), side)));
    addresses.extend(["127.0.0.1", "169.254.100.1", "169.254.169.254"].map(str::to_owned));
    for address in &addresses {
        assert!(guest.is_kept_from(address, port), "the guest reached {address}");
    }
    // Even from the slot itself, past its own rules, the host stays closed.
    for address in [outer(one.index(), 1), outer(other.index(), 1), outer(other.index(), 2)] {
        let target = format!("{address}:{port}").parse().unwrap();
        assert!(one.connect(target, SHORT).await.is_err(), "the slot reached {address}");
    }
    for listener in [&host, &neighbour, &gateway] {
        assert!(tokio::time::timeout(Duration::from_millis(20), listener.accept()).await.is_err());
    }
    // The host does reach the guest, which answers.
    let serve = "import socket;s=socket.create_server(('169.254.100.2',8080))\nwhile True: s.accept()";
    let _server = Program::start(&guest.name, &["python3", "-c", serve]);
    let deadline = Instant::now() + WAIT;
    while let Err(error) = one.connect("169.254.100.2:8080".parse().unwrap(), SHORT).await {
        assert!(Instant::now() < deadline, "the host cannot reach the guest: {error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(guest);
    pool.shutdown(false).await.unwrap();
}

/// Stands in for the host's resolver: sends every question back with the answer bit.
async fn resolver() -> SocketAddr {
    resolver_at("127.0.0.1:0".parse().unwrap()).await
}

async fn resolver_at(address: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind(address).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            buffer[2] |= 0x80;
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    address
}

const ASK: &str = "import socket,sys
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[2]))
s.sendto(bytes([1,2,1,0,0,1,0,0,0,0,0,0,0,0,1,0,1]),(sys.argv[1],53))
print(s.recv(512)[2])";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_resolve_through_the_relay_unless_egress_is_closed() {
    let world = World::new('d', 3);
    let settings = PoolSettings { resolvers: vec![resolver().await], ..world.0.clone() };
    let pool = Pool::start(settings, &[]).await.unwrap();
    let open = pool.take(Egress::Internet).await.unwrap();
    let closed = pool.take(Egress::None).await.unwrap();
    let (open_guest, closed_guest) = (Guest::attach(&open), Guest::attach(&closed));
    let (answered, bits) = open_guest.run(&["python3", "-c", ASK, "169.254.100.1", "5"]);
    assert!(answered);
    assert_eq!(bits.trim(), "129");
    assert!(!closed_guest.run(&["python3", "-c", ASK, "169.254.100.1", "0.7"]).0);
    // Other UDP is closed, whatever the port.
    assert!(!open_guest.run(&["python3", "-c", ASK, "8.8.8.8", "0.7"]).0);
    drop((open_guest, closed_guest));
    pool.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_to_public_addresses_is_translated_unless_egress_is_closed() {
    // One address that the host is on a link with, and one that it routes to.
    let world = World::new('e', 4);
    let mut internet = Internet::new(&world, 0, &["198.41.9.1"]);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    let open = pool.take(Egress::Internet).await.unwrap();
    let closed = pool.take(Egress::None).await.unwrap();
    let (open_guest, closed_guest) = (Guest::attach(&open), Guest::attach(&closed));
    assert!(open_guest.reaches("198.41.9.1", 8080), "the guest cannot reach the internet");
    let from = internet.lines.next().unwrap().unwrap();
    assert_eq!(from, "198.41.0.1", "not translated");
    assert!(closed_guest.is_kept_from("198.41.9.1", 8080));
    // A network the host is on is closed, though its addresses are public.
    assert!(open_guest.is_kept_from("198.41.0.2", 8080));
    drop((open_guest, closed_guest));
    pool.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_adopts_what_is_in_use_and_removes_the_rest() {
    let world = World::new('f', 5);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    let kept = pool.take(Egress::Internet).await.unwrap();
    let lost = pool.take(Egress::Internet).await.unwrap();
    let (kept_name, lost_name) = (kept.name().to_owned(), lost.name().to_owned());
    // A crash: everything is dropped where it stands.
    drop((kept, lost, pool));

    let in_use = [kept_name.clone(), "tpt-f-777".to_owned(), "other-1".to_owned()];
    let pool = Pool::start(world.0.clone(), &in_use).await.unwrap();
    for name in ["tpt-f-777", "other-1", &lost_name] {
        assert!(matches!(pool.adopt(name, Egress::None).await, Err(Error::NotInUse { .. })), "{name}");
    }
    let kept = pool.adopt(&kept_name, Egress::Internet).await.unwrap();
    assert!(matches!(pool.adopt(&kept_name, Egress::None).await, Err(Error::NotInUse { .. })));
    let address = "169.254.100.1:9000".parse().unwrap();
    let echo = tokio::spawn(echo_once(kept.dialer().listen(address).await.unwrap()));
    echoes(&kept.dialer(), address).await;
    echo.await.unwrap();
    // Stopping with microVMs alive keeps their slots and their rules.
    drop(kept);
    pool.shutdown(true).await.unwrap();
    assert!(world.names().contains(&kept_name));
    assert!(world.has_table());
    let pool = Pool::start(world.0.clone(), &[kept_name]).await.unwrap();
    pool.shutdown(false).await.unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    assert!(!world.has_table());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_is_bounded_and_refills() {
    let world = World::new('g', 6);
    let settings = PoolSettings { ready: 0, total: 2, take_timeout_ms: 3000, ..world.0.clone() };
    let pool = Pool::start(settings, &[]).await.unwrap();
    let first = pool.take(Egress::None).await.unwrap();
    let second = pool.take(Egress::None).await.unwrap();
    assert!(matches!(pool.take(Egress::None).await, Err(Error::Exhausted { .. })));
    let waiting = pool.clone();
    let waiting = tokio::spawn(async move { waiting.take(Egress::None).await });
    pool.recycle(first).await.unwrap();
    let third = waiting.await.unwrap().unwrap();
    assert_ne!(third.name(), second.name());
    pool.shutdown(false).await.unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
}
