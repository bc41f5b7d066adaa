//! Guests that try to fill the kernel's tables, and to ask the host's resolvers for more than names.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use slot::{Egress, Pool, PoolSettings, Slot};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::world::{Guest, Internet, Program, World, tracked};
use crate::{ASK, SHORT, WAIT, resolver_at};

/// Port that takes connections and never closes one.
const HOLDING_PORT: u16 = 9090;
const HOLD_ALL: &str = "import socket,time
s=socket.create_server(('0.0.0.0',9090),backlog=512)
print('up',flush=True)
time.sleep(600)";
/// Begins many connections at once, says how many were made and how long that took, and holds them. What is
/// dropped has no answer to wait for, so this waits several times as long as a connection takes.
const OPEN_MANY: &str = "import select,socket,sys,time
began=time.monotonic()
poll=select.poll()
sockets={}
for _ in range(int(sys.argv[2])):
 s=socket.socket()
 s.setblocking(False)
 s.connect_ex((sys.argv[1],9090))
 sockets[s.fileno()]=s
 poll.register(s,select.POLLOUT)
made=0
while events:=poll.poll(400):
 for fd,_ in events:
  poll.unregister(fd)
  made+=sockets[fd].getsockopt(socket.SOL_SOCKET,socket.SO_ERROR)==0
print(made,time.monotonic()-began,flush=True)
time.sleep(600)";

/// Starts a program in a namespace and reads its first line.
fn start(namespace: &str, arguments: &[&str]) -> (Program, String) {
    let mut program = Program::start(namespace, arguments);
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    (program, first)
}

/// Begins connections from a guest: the program that holds them, how many there are, and the seconds it took.
fn open_many(guest: &Guest, address: &str, count: u32) -> (Program, u32, f64) {
    let (program, line) = start(&guest.name, &["python3", "-c", OPEN_MANY, address, &count.to_string()]);
    let (made, seconds) = line.split_once(' ').unwrap();
    (program, made.parse().unwrap(), seconds.parse().unwrap())
}

fn from(world: &World, slot: &Slot) -> String {
    format!("src={} ", world.outer(slot))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_with_many_connections_takes_its_share_and_leaves_nothing() {
    let world = World::new('k', 10);
    let address = "198.41.25.1";
    let _internet = Internet::new(&world, 4, &[address]);
    let (_server, _) = start(&format!("{}-far", world.0.prefix), &["python3", "-c", HOLD_ALL]);
    let settings = PoolSettings { connections_max: 32, ..world.0.clone() };
    let pool = Pool::start(settings.clone(), &[]).await.unwrap();
    let one = pool.take(Egress::Internet).await.unwrap();
    let other = pool.take(Egress::Internet).await.unwrap();
    let (guest, other_guest) = (Guest::attach(&one), Guest::attach(&other));

    let (_held, made, _) = open_many(&guest, address, 100);
    assert_eq!(made, 32);
    assert_eq!(tracked(None, &from(&world, &one)).len(), 32);
    assert_eq!(tracked(Some(one.name()), "dport=9090").len(), 32);
    assert!(guest.is_kept_from(address, HOLDING_PORT));
    // Nobody else notices.
    assert!(other_guest.reaches(address, 8080));
    TcpStream::connect_timeout(&format!("{address}:8080").parse().unwrap(), WAIT).unwrap();
    // What has been closed, by the server in this case, is forgotten soon, in both tables.
    let closed = |line: &String| {
        line.contains("TIME_WAIT").then(|| line.split_whitespace().nth(4).unwrap().to_owned())
    };
    for (namespace, part) in [(None, from(&world, &other)), (Some(other.name()), "dport=8080".to_owned())] {
        for seconds in tracked(namespace, &part).iter().filter_map(closed) {
            assert!(seconds.parse::<u32>().unwrap() <= 5, "{namespace:?} {seconds}");
        }
    }

    let part = from(&world, &one);
    pool.recycle(one).await.unwrap();
    assert_eq!(tracked(None, &part), Vec::<String>::new());
    // And what a crash in the middle of a removal left, at the next start; without touching a slot in use.
    let lost = pool.take(Egress::Internet).await.unwrap();
    let lost_guest = Guest::attach(&lost);
    let (_lost_held, made, _) = open_many(&lost_guest, address, 5);
    let (_other_held, others, _) = open_many(&other_guest, address, 7);
    assert_eq!((made, others), (5, 7));
    let lost_part = from(&world, &lost);
    assert_eq!(tracked(None, &lost_part).len(), 5);
    let (lost_name, other_name, other_part) =
        (lost.name().to_owned(), other.name().to_owned(), from(&world, &other));
    let veth = lost_name.replace("tpt-k-", "tpt-k-v");
    drop((lost, other, pool));
    for arguments in [["link", "del", &veth], ["netns", "del", &lost_name]] {
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
    }
    let pool = Pool::start(settings, &[other_name]).await.unwrap();
    assert_eq!(tracked(None, &lost_part), Vec::<String>::new());
    assert!(tracked(None, &other_part).len() >= 7);
    drop((guest, other_guest, lost_guest));
    pool.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_begins_connections_no_faster_than_it_may() {
    let world = World::new('l', 11);
    let address = "198.41.26.1";
    let _internet = Internet::new(&world, 5, &[address]);
    let (_server, _) = start(&format!("{}-far", world.0.prefix), &["python3", "-c", HOLD_ALL]);
    let settings = PoolSettings { connections_per_second: 2, ..world.0.clone() };
    let pool = Pool::start(settings, &[]).await.unwrap();
    let slot = pool.take(Egress::Internet).await.unwrap();
    let guest = Guest::attach(&slot);
    let (_held, made, seconds) = open_many(&guest, address, 100);
    assert!(made > 0 && f64::from(made) <= 2.0 + 2.0 * (seconds + 1.0), "{made} in {seconds} s");
    // Past the slot's own rules, by sockets in the slot itself, it is no different.
    let (began, mut attempts) = (Instant::now(), JoinSet::new());
    for _ in 0..12 {
        let dialer = slot.dialer();
        let server = format!("{address}:{HOLDING_PORT}").parse().unwrap();
        attempts.spawn(async move { dialer.connect(server, SHORT).await.is_ok() });
    }
    let made = attempts.join_all().await.into_iter().filter(|made| *made).count();
    let seconds = began.elapsed().as_secs_f64();
    assert!(made as f64 <= 2.0 + 2.0 * (seconds + 1.0), "{made} in {seconds} s");
    drop(guest);
    pool.shutdown(false).await.unwrap();
}

/// Plays the guest on the tap itself: asks for the gateway's hardware address in its own name until it is answered, which it is
/// once the link is up, then in many names and at last in its own, and says which were answered since.
const FORGE: &str = "import fcntl,os,select,socket,struct
tap=os.open('/dev/net/tun',os.O_RDWR)
fcntl.ioctl(tap,0x400454ca,struct.pack('16sH22x',b'tap0',0x5002))
def ask(sender,mac):
 address=socket.inet_aton
 head=b'\\xff'*6+mac+b'\\x08\\x06'+struct.pack('>HHBBH',1,0x800,6,4,1)
 os.write(tap,bytes(10)+head+mac+address(sender)+bytes(6)+address('169.254.100.1'))
answered=set()
def own():
 answered.clear()
 for n in range(20):
  ask('169.254.100.2',b'\\x06\\0\\xa9\\xfe\\x64\\2')
  while select.select([tap],[],[],.5)[0]:
   frame=os.read(tap,2048)[10:]
   if frame[12:14]==b'\\x08\\x06' and frame[20:22]==b'\\0\\2':
    answered.add(socket.inet_ntoa(frame[38:42]))
  if '169.254.100.2' in answered: return
own()
for n in range(100):
 ask('10.9.8.%d'%n,b'\\x06\\0\\0\\0\\0'+bytes([n]))
for sender in ['169.254.100.0','169.254.100.1','169.254.100.3','198.41.9.9']:
 ask(sender,b'\\x06\\0\\0\\0\\1\\1')
own()
print(*sorted(answered))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_adds_no_neighbours() {
    let world = World::new('m', 12);
    let pool = Pool::start(world.0.clone(), &[]).await.unwrap();
    let slot = pool.take(Egress::Internet).await.unwrap();
    let output =
        Command::new("ip").args(["netns", "exec", slot.name(), "python3", "-c", FORGE]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "169.254.100.2");
    let neighbours = |arguments: &[&str]| {
        let output =
            Command::new("ip").args(arguments).args(["neigh", "show", "nud", "all"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let inside = neighbours(&["-n", slot.name()]);
    let entries: Vec<&str> =
        inside.lines().filter(|line| line.contains("tap0") || line.contains("uplink")).collect();
    assert_eq!(entries.len(), 2, "{inside}");
    assert!(entries.iter().all(|entry| entry.trim().ends_with("PERMANENT")), "{inside}");
    let veth = slot.name().replace("tpt-m-", "tpt-m-v");
    let outside = neighbours(&[]);
    let entries: Vec<&str> = outside.lines().filter(|line| line.contains(&format!("dev {veth} "))).collect();
    assert!(entries.len() == 1 && entries[0].trim().ends_with("PERMANENT"), "{entries:?}");
    pool.shutdown(false).await.unwrap();
}

/// Sends messages by TCP, each list of them on a connection of its own, and says how many answers came on each.
const ASK_BY_TCP: &str = "import socket,struct
def message(flags,kind):
 return bytes([1,2,flags,0,0,1,0,0,0,0,0,0])+b'\\7example\\0'+struct.pack('>HH',kind,1)
def answers(messages):
 count=0
 with socket.create_connection(('169.254.100.1',53),5) as s:
  for m in messages:
   s.sendall(struct.pack('>H',len(m))+m)
   head=s.recv(2)
   if not head: break
   body=s.recv(struct.unpack('>H',head)[0],socket.MSG_WAITALL)
   count+=body[2]>=0x80
 return count
plain=message(1,1)
print(answers([plain,plain]),answers([message(1,252),plain]),answers([message(0x28,6),plain]))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_passes_on_questions_only_and_they_are_not_tracked() {
    let world = World::new('n', 13);
    // TCP first: clients all around use up ports of TCP, hardly any of UDP.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let by_udp = resolver_at(listener.local_addr().unwrap()).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            while let Ok(length) = stream.read_u16().await {
                let mut message = vec![0; length.into()];
                stream.read_exact(&mut message).await.unwrap();
                message[2] |= 0x80;
                stream.write_all(&[&length.to_be_bytes()[..], &message].concat()).await.unwrap();
            }
        }
    });
    let settings = PoolSettings { resolvers: vec![by_udp], ..world.0.clone() };
    let pool = Pool::start(settings, &[]).await.unwrap();
    let slot = pool.take(Egress::Internet).await.unwrap();
    let guest = Guest::attach(&slot);
    let (_, answers) = guest.run(&["python3", "-c", ASK_BY_TCP]);
    assert_eq!(answers.trim(), "2 0 0");
    assert!(guest.run(&["python3", "-c", ASK, "169.254.100.1", "5"]).0);
    assert_eq!(tracked(Some(slot.name()), "port=53 "), Vec::<String>::new());
    drop(guest);
    pool.shutdown(false).await.unwrap();
}
