//! The server over real sockets, with real terminals and this machine's /bin/sh in place of a container's.
#![allow(unsafe_code)] // a process that takes a terminal does so between fork and exec

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::unistd::{Pid, setsid};
use tungstenite::client::IntoClientRequest as _;

use super::*;

const WAIT: Duration = Duration::from_secs(20);

fn local_shell(terminal: &str) -> Result<Process, String> {
    let terminal = terminal.to_owned();
    let mut command = Command::new("/bin/sh");
    command.env("TERM", "xterm").env("PS1", "$ ").env_remove("ENV");
    // SAFETY: system calls only, on data made before the fork.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            pty::adopt(&terminal)
        });
    }
    let child = command.spawn().map_err(|error| error.to_string())?;
    Process::of(Pid::from_raw(child.id().cast_signed())).map_err(|error| error.to_string())
}

fn serve(start: impl Fn(&str) -> Result<Process, String> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shells = Shells::new(listener, address.ip(), Arc::new(start));
    thread::spawn(move || shells.run());
    address
}

fn connect(address: SocketAddr, path: &str) -> Result<WebSocket<TcpStream>, tungstenite::Error> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let request = format!("ws://{address}{path}").into_client_request().unwrap();
    match tungstenite::client::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::HandshakeError::Failure(error)) => Err(error),
        Err(interrupted) => panic!("{interrupted}"),
    }
}

/// A client and everything that its terminal has shown.
struct Client {
    socket: WebSocket<TcpStream>,
    shown: Vec<u8>,
}

impl Client {
    fn open(address: SocketAddr) -> Self {
        let mut socket = connect(address, PATH).unwrap();
        let first = socket.read().unwrap();
        let hello: serde_json::Value = serde_json::from_str(first.to_text().unwrap()).unwrap();
        assert!(first.is_text() && hello["type"] == "session_init", "{hello}");
        assert_eq!(hello["session_id"].as_str().unwrap().len(), 36);
        Self { socket, shown: Vec::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.socket.send(Message::binary(text.as_bytes().to_vec())).unwrap();
    }

    fn control(&mut self, text: &str) {
        self.socket.send(Message::text(text.to_owned())).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Reads until the terminal has shown a text; what it has shown up to then, which is forgotten.
    fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.text().find(text) {
                let shown = self.text()[..at + text.len()].to_owned();
                self.shown.drain(..shown.len());
                return shown;
            }
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.shown.extend_from_slice(&bytes),
                other => panic!("waited for {text:?}, got {other:?} after {:?}", self.text()),
            }
        }
    }

    /// Reads to the close; its code and reason.
    fn end(&mut self) -> (CloseCode, String) {
        loop {
            match self.socket.read().unwrap() {
                Message::Binary(bytes) => self.shown.extend_from_slice(&bytes),
                Message::Close(Some(frame)) => {
                    // The server closes the connection once it has our answer.
                    let after = self.socket.read();
                    assert!(matches!(after, Err(tungstenite::Error::ConnectionClosed)), "{after:?}");
                    return (frame.code, frame.reason.to_string());
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn pid(&mut self) -> String {
        self.type_in("echo pid=$$,\n");
        // The echo of what was typed has no digit there.
        loop {
            self.until("pid=");
            let found = self.until(",");
            if let Ok(pid) = found.trim_end_matches(',').parse::<u32>() {
                return pid.to_string();
            }
        }
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_session_ends_with_its_shell_and_loses_nothing_that_it_wrote() {
    let mut client = Client::open(serve(local_shell));
    client.type_in("echo $((40+2))-there\n");
    client.until("42-there");
    // Text that is no control message is typed in too.
    client.control("echo $((50+2))-typed\n");
    client.until("52-typed");
    client.type_in("echo last-$((1+1)); exit\n");
    assert_eq!(client.end(), (CloseCode::Normal, "shell exited".to_owned()));
    assert!(client.text().contains("last-2"), "{}", client.text());
}

#[test]
fn a_terminal_has_no_size_until_it_gets_one() {
    let mut client = Client::open(serve(local_shell));
    client.type_in("stty size; tty; echo term=$TERM\n");
    client.until("0 0\r\n");
    client.until("/dev/pts/");
    client.until("term=xterm\r\n");
    client.control(r#"{"type":"resize","cols":120,"rows":40}"#);
    client.type_in("stty size\n");
    client.until("40 120\r\n");
}

#[test]
fn messages_that_arrive_together_are_all_typed() {
    let mut client = Client::open(serve(local_shell));
    // Nothing is shown between them, which would have the session look at its socket again.
    client.type_in("stty -echo; echo ready=$((1+1)); read -r line; echo got=$line\n");
    client.until("ready=2");
    for text in ["one ", "and another", "\n"] {
        client.socket.write(Message::binary(text.as_bytes().to_vec())).unwrap();
    }
    client.socket.flush().unwrap();
    client.until("got=one and another");
}

#[test]
fn keys_reach_the_foreground_job() {
    let mut client = Client::open(serve(local_shell));
    for (key, ask, answer) in [("\x03", "echo status=$?\n", "status=130"), ("\x1a", "jobs\n", "Stopped")] {
        client.type_in("sh -c 'echo ready=$((1+1)); exec sleep 1000'\n");
        client.until("ready=2");
        client.type_in(key);
        client.type_in(ask);
        client.until(answer);
    }
}

#[test]
fn a_client_that_vanishes_takes_its_shell_with_it() {
    let address = serve(local_shell);
    for politely in [false, true] {
        let mut client = Client::open(address);
        let pid = client.pid();
        let directory = format!("/proc/{pid}");
        assert!(Path::new(&directory).exists());
        if politely {
            client.socket.close(None).unwrap();
            while client.socket.read().is_ok() {}
        }
        drop(client);
        // Gone for good: a child that nobody has reaped would still be there.
        eventually("the shell to be reaped", || !Path::new(&directory).exists());
    }
}

#[test]
fn a_client_that_vanishes_is_noticed_while_its_input_waits() {
    let mut client = Client::open(serve(local_shell));
    let pid = client.pid();
    client.type_in("stty raw -echo; echo ready=$((1+1)); exec sleep 1000\n");
    client.until("ready=2");
    client.socket.send(Message::binary(vec![b'x'; 512 * 1024])).unwrap();
    drop(client);
    eventually("the shell to be reaped", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn shells_are_bounded_and_separate() {
    let address = serve(local_shell);
    let mut clients: Vec<Client> = (0..SESSIONS_MAX).map(|_| Client::open(address)).collect();
    let mut pids: Vec<String> = clients.iter_mut().map(Client::pid).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), SESSIONS_MAX);
    let mut refused = connect(address, PATH).unwrap();
    let Message::Close(Some(frame)) = refused.read().unwrap() else {
        panic!("one more than the most was let in");
    };
    assert_eq!(frame.code, CloseCode::Again);
    assert_eq!(frame.reason.as_str(), "the microVM has 16 shells open, the most it may have");
    drop(clients.pop());
    eventually("room for another", || {
        let mut socket = connect(address, PATH).unwrap();
        socket.read().unwrap().is_text()
    });
}

#[test]
fn output_and_input_wait_for_whoever_takes_them() {
    let mut client = Client::open(serve(local_shell));
    client.type_in("head -c 5000000 /dev/zero | tr '\\0' '\\170'; echo; echo done=$((1+1))\n");
    let shown = client.until("done=2");
    assert_eq!(shown.matches('x').count(), 5_000_000);
    client.type_in("stty raw -echo; echo ready=$((1+1)); sleep 0.3; head -c 300000 | wc -c; stty sane\n");
    client.until("ready=2");
    for _ in 0..3 {
        client.type_in(&"y".repeat(100_000));
    }
    client.until("300000");
}

#[test]
fn why_there_is_no_shell_is_shown_and_said() {
    let mut client = Client::open(serve(|_| Err("the image has neither".to_owned())));
    assert_eq!(client.end(), (CloseCode::Error, "the image has neither".to_owned()));
    assert_eq!(client.text(), "the image has neither\r\n");
}

#[test]
fn too_long_a_message_ends_the_session() {
    let mut client = Client::open(serve(local_shell));
    let _ = client.socket.send(Message::binary(vec![b' '; MESSAGE_BYTES_MAX + 1]));
    let code = loop {
        match client.socket.read().unwrap() {
            Message::Close(Some(frame)) => break frame.code,
            Message::Binary(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, CloseCode::Size);
}

#[test]
fn only_the_shells_path_is_served_and_only_as_a_websocket() {
    let address = serve(local_shell);
    assert!(connect(address, "/shell?cols=80").is_ok());
    match connect(address, "/other") {
        Err(tungstenite::Error::Http(response)) => {
            assert_eq!(response.status(), StatusCode::NOT_FOUND);
            assert_eq!(response.headers()["content-length"], "24");
        }
        other => panic!("{:?}", other.map(drop)),
    }
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /shell HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(plain.read_to_end(&mut Vec::new()).unwrap_or(0), 0, "closed without an answer");
}

#[test]
fn others_than_the_host_are_not_let_in() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shells = Shells::new(listener, "192.0.2.1".parse().unwrap(), Arc::new(local_shell));
    thread::spawn(move || shells.run());
    assert!(connect(address, PATH).is_err());
}
