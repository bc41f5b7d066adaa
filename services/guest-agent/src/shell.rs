//! Shells: a WebSocket server on the guest's own address, one terminal with one root shell per connection.
//!
//! ```text
//! host ── GET /shell, Upgrade ──>                    one thread per connection
//!      <── text {"type":"session_init", ...} ──
//!      <── binary: bytes of the terminal ──>         see `session`
//!      ── text {"type":"resize", ...} ──>
//!      <── close 1000 "shell exited" ──
//! ```
//!
//! Who may have a shell the edge-proxy has decided: only the host is let in here. How a shell gets into the app's
//! container is the caller's affair (`app::enter`).
//!
//! A quiet session has no time-out. Its TCP connection may outlive any number of snapshots.

use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::http::{StatusCode, header};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket, accept_hdr_with_config};

mod control;
pub mod process;
pub mod pty;
mod session;

use process::Process;
use pty::Pty;
use session::Session;

/// The one path that is served.
const PATH: &str = "/shell";

/// Most shells at a time; more are closed with the reason.
const SESSIONS_MAX: usize = 16;

/// Most connections at a time, those among them that get no shell. More are dropped.
const CONNECTIONS_MAX: usize = 32;

/// How long the client may be silent in its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest message from a client, in bytes: what is pasted at once.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a connection's read buffer.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// Bytes that may wait for the client: a reading of the terminal, and what the protocol itself answers.
const UNSENT_BYTES_MAX: usize = 4 * pty::READ_BYTES;

/// How long the listener rests when the kernel gives it no connection (no descriptors, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Starts a shell on the terminal of that path. The error is a sentence for the user.
type Start = dyn Fn(&str) -> Result<Process, String> + Send + Sync;

/// The server; its thread accepts, each connection has a thread of its own.
pub struct Shells {
    listener: TcpListener,
    host: IpAddr,
    start: Arc<Start>,
    connections: Arc<AtomicUsize>,
    sessions: Arc<AtomicUsize>,
}

impl Shells {
    /// A server on a bound listener that serves only `host`.
    pub fn new(listener: TcpListener, host: IpAddr, start: Arc<Start>) -> Self {
        Self { listener, host, start, connections: Arc::default(), sessions: Arc::default() }
    }

    /// Serves for ever.
    pub fn run(self) {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) if peer.ip() == self.host => self.serve(stream),
                Ok(_) => {}
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn serve(&self, stream: TcpStream) {
        let Some(connection) = Taken::one(&self.connections, CONNECTIONS_MAX) else {
            return;
        };
        let (start, sessions) = (Arc::clone(&self.start), Arc::clone(&self.sessions));
        let thread = thread::Builder::new().name("shell".to_owned());
        // Without a thread the connection is dropped, and the client may come again.
        let _ = thread.spawn(move || {
            let _connection = connection;
            if let Some(socket) = shake_hands(stream) {
                open(socket, &*start, &sessions);
            }
        });
    }
}

/// One of a bounded number, until it is dropped.
struct Taken(Arc<AtomicUsize>);

impl Taken {
    fn one(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let taken = count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < most).then_some(count + 1));
        taken.ok().map(|_| Self(Arc::clone(count)))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The opening handshake; `None` for a client that does not speak WebSocket or asks for another path.
fn shake_hands(stream: TcpStream) -> Option<WebSocket<TcpStream>> {
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT)).ok()?;
    stream.set_nodelay(true).ok()?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(pty::READ_BYTES)
        .max_write_buffer_size(UNSENT_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    #[allow(clippy::result_large_err, reason = "the library's signature")]
    let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        if request.uri().path() == PATH { Ok(response) } else { Err(no_such_path()) }
    };
    accept_hdr_with_config(stream, check, Some(config)).ok()
}

fn no_such_path() -> ErrorResponse {
    let text = format!("The shell is at {PATH}.\n");
    let mut response = ErrorResponse::new(None);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::CONTENT_LENGTH, text.len().into());
    *response.body_mut() = Some(text);
    response
}

/// Gives a connection its shell, or says why it gets none.
fn open(mut socket: WebSocket<TcpStream>, start: &Start, sessions: &Arc<AtomicUsize>) {
    let Some(_session) = Taken::one(sessions, SESSIONS_MAX) else {
        let reason = format!("the microVM has {SESSIONS_MAX} shells open, the most it may have");
        return session::close(socket, CloseCode::Again, &reason);
    };
    match begin(&mut socket, start) {
        Ok((pty, process)) => Session::new(socket, pty, process).run(),
        Err(reason) => {
            let text = format!("{reason}\r\n").into_bytes();
            if socket.send(Message::binary(text)).is_ok() {
                session::close(socket, CloseCode::Error, &reason);
            }
        }
    }
}

fn begin(socket: &mut WebSocket<TcpStream>, start: &Start) -> Result<(Pty, Process), String> {
    let failed = |step: &'static str| move |error: io::Error| format!("{step}: {error}");
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed("make a session id"))?;
    let hello = format!(r#"{{"type":"session_init","session_id":"{}"}}"#, id.trim_end());
    socket.send(Message::text(hello)).map_err(|error| format!("greet the client: {error}"))?;
    let (pty, terminal) = Pty::open().map_err(failed("make a terminal"))?;
    let process = start(&terminal)?;
    socket.get_ref().set_nonblocking(true).map_err(failed("set up the connection"))?;
    Ok((pty, process))
}

#[cfg(test)]
mod tests;
