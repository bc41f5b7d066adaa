//! The relay over real loopback sockets.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use super::*;

fn relay() -> (std::net::SocketAddr, Arc<Epoch>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let epoch = Epoch::new().unwrap();
    let relay = Relay::new(listener, Ipv4Addr::LOCALHOST.into(), Arc::clone(&epoch)).unwrap();
    thread::spawn(move || relay.run());
    (address, epoch)
}

fn open(relay: std::net::SocketAddr, port: u16) -> (TcpStream, Option<RelayAnswer>) {
    let mut stream = TcpStream::connect(relay).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&port.to_be_bytes()).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    (stream, RelayAnswer::from_byte(answer[0]))
}

/// Echoes one connection until its input ends, then says goodbye.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut input, mut output) = (&stream, &stream);
                let _ = io::copy(&mut input, &mut output);
                let _ = output.write_all(b"bye");
            });
        }
    });
    port
}

#[test]
fn bytes_and_half_closes_pass_both_ways() {
    let (relay, _epoch) = relay();
    let (mut stream, answer) = open(relay, echo());
    assert_eq!(answer, Some(RelayAnswer::Connected));
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let to_send = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&to_send).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == [sent.as_slice(), b"bye"].concat());
}

#[test]
fn a_port_without_listener_is_refused() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (relay, _epoch) = relay();
    let (mut stream, answer) = open(relay, unused);
    assert_eq!(answer, Some(RelayAnswer::Refused));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn connections_are_bounded_and_an_epoch_ends_them() {
    let (relay, epoch) = relay();
    let port = echo();
    let mut held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| open(relay, port)).collect();
    assert!(held.iter().all(|(_, answer)| *answer == Some(RelayAnswer::Connected)));
    let (_, answer) = open(relay, port);
    assert_eq!(answer, Some(RelayAnswer::Busy));
    epoch.advance();
    epoch.sweep();
    for (stream, _) in &mut held {
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert_eq!(open(relay, port).1, Some(RelayAnswer::Connected));
}
