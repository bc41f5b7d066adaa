use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::*;

/// Closes without a word to the other end, as the end of a slot does.
fn vanish(socket: TcpStream) {
    set(socket.as_fd(), TCP_REPAIR, &REPAIR_ON).unwrap();
}

fn open(socket: &TcpStream) -> FrozenTcp {
    let Frozen::Open(frozen) = freeze(socket).unwrap() else { panic!("the other end has closed") };
    frozen
}

/// Both ends of a connection.
fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn thawed(frozen: &FrozenTcp) -> TcpStream {
    let fresh = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)).unwrap();
    frozen.thaw_into(&fresh).unwrap();
    TcpStream::from(fresh)
}

fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// A network of this test's own, in which the other end can be made to stand still: nothing it sends arrives.
fn own_network() {
    // SAFETY: changes this thread only, and it is the test's.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
    run("ip", &["link", "set", "lo", "up"]);
    run("nft", &["add table ip t; add chain ip t lost { type filter hook input priority 0; }"]);
}

#[test]
fn a_thawed_connection_goes_on_with_every_byte_in_its_queues() {
    own_network();
    let (mut ours, mut guests) = connected();
    // Small buffers, so that much of what is written was never sent.
    rustix::net::sockopt::set_socket_recv_buffer_size(&guests, 8192).unwrap();
    ours.set_nonblocking(true).unwrap();
    let (mut written, mut read, mut received) = (Vec::new(), Vec::new(), Vec::new());
    let mut lost = 0;
    for round in 0..5u8 {
        guests.write_all(&[round; 5000]).unwrap();
        let mut write = || {
            let chunk = [round; 4096];
            match ours.write(&chunk) {
                Ok(count) => written.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => panic!("{error}"),
            }
            true
        };
        // Some arrives. What is sent from the rule on is lost on its way and never acknowledged, and fills the peer's window, so that the
        // rest is not sent at all.
        write();
        run("nft", &["add rule ip t lost drop"]);
        while write() {}
        let frozen = open(&ours);
        assert!(frozen.unsent > 0, "nothing waits for the peer's window");
        lost += frozen.send_queue.len() - frozen.unsent;
        assert_eq!(frozen.receive_queue, [round; 5000]);
        // A copy changes nothing: it can be made again, and the connection goes on.
        assert_eq!(open(&ours).send_queue, frozen.send_queue);
        vanish(ours);
        let stored = serde_json::to_vec(&frozen).unwrap();
        ours = thawed(&serde_json::from_slice(&stored).unwrap());
        run("nft", &["flush chain ip t lost"]);
        let mut chunk = [0; 5000];
        ours.read_exact(&mut chunk).unwrap();
        received.extend_from_slice(&chunk);
        ours.set_nonblocking(true).unwrap();
        // Most of what is on the way; what stays is frozen again in the next round.
        let mut some = vec![0; written.len() - read.len() - 1000];
        guests.read_exact(&mut some).unwrap();
        read.extend_from_slice(&some);
    }
    // In some rounds what was left of the last one has filled the window already.
    assert!(lost > 0, "nothing was sent and not acknowledged");
    rustix::net::shutdown(&ours, rustix::net::Shutdown::Write).unwrap();
    assert_eq!(freeze(&ours).unwrap_err().kind(), io::ErrorKind::NotConnected);
    guests.read_to_end(&mut read).unwrap();
    assert!(read == written, "{} of {} bytes, or others", read.len(), written.len());
    assert_eq!(received, (0..5u8).flat_map(|round| [round; 5000]).collect::<Vec<u8>>());
}

#[test]
fn little_that_was_lost_is_sent_again_without_a_timeout() {
    own_network();
    let (mut ours, mut guests) = connected();
    ours.set_nodelay(true).unwrap();
    // The first message arrives and its acknowledgement does not; the second does not arrive.
    let port = guests.local_addr().unwrap().port().to_string();
    run("nft", &["add rule ip t lost tcp sport", &port, "drop"]);
    ours.write_all(b"one").unwrap();
    guests.read_exact(&mut [0; 3]).unwrap();
    run("nft", &["add rule ip t lost drop"]);
    ours.write_all(b"two").unwrap();
    let frozen = open(&ours);
    assert_eq!((frozen.send_queue.as_slice(), frozen.unsent), (b"onetwo".as_slice(), 0));
    vanish(ours);
    run("nft", &["flush chain ip t lost"]);
    let mut ours = thawed(&frozen);
    let mut read = [0; 3];
    guests.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"two");
    // The way back is open, too.
    guests.write_all(b"yes").unwrap();
    ours.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"yes");
    let info: libc::tcp_info = get(ours.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO).unwrap();
    assert_eq!(info.tcpi_total_retrans, 0);
}

#[test]
fn what_a_guest_said_before_it_closed_is_there() {
    let (mut ours, mut guests) = connected();
    guests.write_all(b"an answer").unwrap();
    drop(guests);
    // The end arrives behind the bytes.
    ours.read_exact(&mut [0; 3]).unwrap(); // "an "
    let begun = std::time::Instant::now();
    let mut frozen = freeze(&ours).unwrap();
    while matches!(frozen, Frozen::Open(_)) && begun.elapsed() < std::time::Duration::from_secs(60) {
        std::thread::yield_now();
        frozen = freeze(&ours).unwrap();
    }
    assert_eq!(frozen, Frozen::Closed(b"answer".to_vec()));
    // A copy changes nothing.
    let mut rest = String::new();
    ours.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "answer");
    assert_eq!(freeze(&ours).unwrap(), Frozen::Closed(Vec::new()));
}
