//! The relay over real loopback sockets.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use super::*;

fn relay() -> (std::net::SocketAddr, Arc<Epoch>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let epoch = Epoch::new().unwrap();
    let relay = Relay::new(listener, std::net::Ipv4Addr::LOCALHOST.into(), Arc::clone(&epoch)).unwrap();
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
    echo_on(TcpListener::bind("127.0.0.1:0").unwrap())
}

fn echo_on(listener: TcpListener) -> u16 {
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
fn every_kind_of_loopback_listener_is_reached() {
    let (relay, _epoch) = relay();
    for listener in crate::loopback::tests::listeners() {
        let address = listener.local_addr().unwrap();
        let (mut stream, answer) = open(relay, echo_on(listener));
        assert_eq!(answer, Some(RelayAnswer::Connected), "{address}");
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert_eq!(received, "hellobye", "{address}");
    }
}

#[test]
fn an_answer_arrives_though_the_app_reads_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        // Closes with input unread, which resets the connection.
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(b"no").unwrap();
    });
    let (relay, _epoch) = relay();
    let (mut stream, _) = open(relay, port);
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&vec![0; 20_000_000]));
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "no");
    writing.join().unwrap().expect("what the app does not read is thrown away");
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
