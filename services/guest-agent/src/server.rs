//! The control connection: one host-agent at a time, frames in, frames out.
//!
//! Process 1's own thread polls the listener and the current connection. Identity repairs, which are on every
//! wake's path, are done right there; whatever may wait goes to a few worker threads that exist beforehand,
//! because starting a thread on a cold CPU costs more than the work.
//!
//! A newer connection replaces the older: after a restore the older one's peer is
//! gone for good. Closing it sends packets, so that waits for a quiet moment.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use api::guest::v1::{
    AppExited, KeepAwake, RepairIdentityRequest, RepairIdentityResponse, SetClockResponse, StreamLogsRequest,
};
use guest_link::CONTROL_PORT;
use guest_link::frame::{Body, Frame};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::app::App;
use crate::awake::{self, Door};
use crate::boot::network::{self, HOST};
use crate::boot::{Booted, Error, ExtraModules, Settings, Step as _};
use crate::console::say;
use crate::identity::{self, Identity, ResolverFile};
use crate::netlink;
use crate::relay::{Epoch, Relay};
use crate::shell::Shells;

mod connection;
mod forwarder;
mod jobs;

use connection::{Connection, Receiver};
use forwarder::Forwarder;
use jobs::{Job, Jobs};

/// How long the host may refuse to take an answer before its connection is closed.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing must have arrived before a replaced connection is closed.
const QUIET: Duration = Duration::from_secs(1);

/// What the workers and the app's end need of the server.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    app: Arc<App>,
    extra_modules: ExtraModules,
    resolver: ResolverFile,
    /// The connection that events go to.
    current: Mutex<Option<Arc<Connection>>>,
    /// Connections that the next restore will leave without a peer.
    doomed: Mutex<Vec<netlink::Connection>>,
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doomed(&self) -> MutexGuard<'_, Vec<netlink::Connection>> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on that the app wants to stay awake; false when no host is connected.
    fn report_keep_awake(&self, request: KeepAwake) -> bool {
        let Some(connection) = self.current().clone() else { return false };
        connection.send(&Frame { exchange: 0, body: Some(Body::KeepAwake(request)) });
        true
    }

    /// Tells the current connection; later ones are told when they come.
    fn report_exit(&self, exited: AppExited) {
        let current = self.current().clone();
        if let Some(connection) = current {
            connection.send(&Frame { exchange: 0, body: Some(Body::AppExited(exited)) });
        }
    }
}

pub struct Server {
    listener: TcpListener,
    identity: Identity,
    shared: Arc<Shared>,
    jobs: Jobs,
    forwarder: Forwarder,
    relay_epoch: Arc<Epoch>,
    /// The connection before the current one, until a quiet moment.
    stale: Option<Arc<Connection>>,
    /// Whether the current connection has been told what it must know.
    greeted: bool,
}

impl Server {
    /// Binds the ports and starts the threads.
    pub fn start(booted: Booted) -> Result<Self, Error> {
        let Booted { settings, identity, resolver, extra_modules } = booted;
        let listener =
            network::listen(settings.agent_port, SEND_TIMEOUT).step("listen on the agent's port")?;
        let relay_listener =
            network::listen(settings.relay_port, SEND_TIMEOUT).step("listen on the relay's port")?;
        let relay_epoch = Epoch::new().step("make the relay's wake-up")?;
        let relay =
            Relay::new(relay_listener, HOST.into(), Arc::clone(&relay_epoch)).step("start the relay")?;
        spawn("relay", move || match relay.run() {
            Ok(()) => {}
            Err(error) => say(&format!("the relay ended: {error}")),
        })?;
        let app = Arc::new(App::default());
        let shell_listener =
            network::listen(settings.shell_port, SEND_TIMEOUT).step("listen on the shells' port")?;
        let shells = Shells::new(shell_listener, HOST.into(), {
            let app = Arc::clone(&app);
            Arc::new(move |terminal: &str| app.open_shell(terminal))
        });
        spawn("shells", move || shells.run())?;
        let forwarder = Forwarder::start(Arc::clone(&app.logs)).step("start the log forwarder")?;
        let shared = Arc::new(Shared {
            settings,
            app,
            extra_modules,
            resolver,
            current: Mutex::default(),
            doomed: Mutex::default(),
        });
        let door = Door::open(Path::new(awake::SOCKET), {
            let shared = Arc::clone(&shared);
            move |request| shared.report_keep_awake(request)
        });
        let door = door.step("open the keep-awake socket")?;
        spawn("keep-awake", move || door.run())?;
        let jobs = Jobs::start(&shared).step("start the workers")?;
        Ok(Self { listener, identity, shared, jobs, forwarder, relay_epoch, stale: None, greeted: false })
    }

    /// Serves for ever. An error of its own sockets ends it, and with it the microVM.
    pub fn run(mut self) -> std::process::ExitCode {
        let error = loop {
            if let Err(error) = self.turn() {
                break error;
            }
        };
        say(&format!("the control port failed: {error}"));
        std::process::ExitCode::FAILURE
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut receiver: Option<Receiver> = None;
        loop {
            let connecting = match &receiver {
                None => self.wait(None)?.0,
                Some(current) => {
                    let (connecting, readable) = self.wait(Some(current.connection()))?;
                    if readable && !connecting {
                        receiver = self.serve(receiver.take());
                    }
                    connecting
                }
            };
            if connecting && let Some(connection) = self.accept()? {
                receiver = self.serve(Some(Receiver::new(connection)));
            }
        }
    }

    /// Waits for a new connection or input on the current one.
    fn wait(&mut self, current: Option<&Connection>) -> io::Result<(bool, bool)> {
        let listener = PollFd::new(self.listener.as_fd(), PollFlags::POLLIN);
        let mut set = match current {
            None => vec![listener],
            Some(connection) => vec![listener, PollFd::new(connection.as_fd(), PollFlags::POLLIN)],
        };
        let quiet = PollTimeout::try_from(QUIET).expect("a second fits");
        let timeout = if self.stale.is_some() { quiet } else { PollTimeout::NONE };
        let polled = match poll(&mut set, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => return Ok((false, false)),
            Err(error) => return Err(error.into()),
        };
        let ready =
            |index: usize| set.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        let (connecting, readable) = (ready(0), ready(1));
        if polled == 0 {
            self.close_stale();
        }
        Ok((connecting, readable))
    }

    /// Takes the new connection in place of the current one.
    fn accept(&mut self) -> io::Result<Option<Arc<Connection>>> {
        let (stream, peer) = match self.listener.accept() {
            Ok(accepted) => accepted,
            // The peer has given up again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if peer.ip() != IpAddr::from(HOST) {
            return Ok(None);
        }
        let connection = Arc::new(Connection::new(stream));
        let replaced = self.shared.current().replace(Arc::clone(&connection));
        if let Some(replaced) = &replaced {
            replaced.retire();
        }
        self.close_stale();
        self.stale = replaced;
        self.greeted = false;
        Ok(Some(connection))
    }

    fn close_stale(&mut self) {
        if let Some(stale) = self.stale.take() {
            stale.close();
        }
    }

    /// Handles what has arrived; `None` when the connection is over.
    fn serve(&mut self, receiver: Option<Receiver>) -> Option<Receiver> {
        let mut receiver = receiver?;
        let connection = Arc::clone(receiver.connection());
        let open = receiver.receive(|frame| self.handle(&connection, frame));
        match open {
            Ok(true) => return Some(receiver),
            Ok(false) => {}
            Err(error) => say(&format!("dropped the control connection: {error}")),
        }
        connection.close();
        let mut current = self.shared.current();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &connection)) {
            *current = None;
        }
        None
    }

    fn handle(&mut self, connection: &Arc<Connection>, frame: Frame) {
        let exchange = frame.exchange;
        match frame.body {
            Some(Body::RepairIdentityRequest(request)) => self.repair(connection, exchange, &request),
            Some(Body::SetClockRequest(request)) => match identity::set_clock(request.wall_clock.as_ref()) {
                Ok(()) => {
                    let body = Some(Body::SetClockResponse(SetClockResponse {}));
                    connection.send(&Frame { exchange, body });
                }
                Err(error) => {
                    let invalid = matches!(error, identity::Error::Invalid(_));
                    connection.fail(exchange, &error.to_string(), invalid);
                }
            },
            Some(Body::StreamLogsRequest(StreamLogsRequest { from_sequence })) => {
                self.forwarder.follow(Arc::clone(connection), from_sequence);
            }
            Some(body) => self.jobs.put(Job { connection: Arc::clone(connection), exchange, body }),
            None => connection.fail(exchange, "the frame has no message this agent knows", true),
        }
        if !self.greeted {
            self.greeted = true;
            if let Some(exited) = self.shared.app.exited() {
                connection.send(&Frame { exchange: 0, body: Some(Body::AppExited(exited)) });
            }
        }
    }

    /// The wake path: repair, answer, and only then tidy up.
    fn repair(&mut self, connection: &Arc<Connection>, exchange: u32, request: &RepairIdentityRequest) {
        let repaired = match self.identity.repair(request, self.shared.app.owner()) {
            Ok(repaired) => repaired,
            Err(error) => {
                let invalid = matches!(error, identity::Error::Invalid(_));
                return connection.fail(exchange, &error.to_string(), invalid);
            }
        };
        // What was open when the image was made is dead in every clone. Of what was open when a microVM fell asleep the host
        // carries across what it opened itself; the rest had peers that have given up or will be met from another place.
        let first = repaired && request.restore_count == FIRST_RESTORE;
        let lost = repaired && request.connections_lost;
        if first || lost {
            // Before the answer: whatever the host opens after it belongs to the new epoch.
            self.relay_epoch.advance();
        }
        // As early as can be: what is opened from here on is new.
        let doomed = match (repaired, first, lost) {
            (true, true, _) => std::mem::take(&mut *self.shared.doomed()),
            (true, false, true) => netlink::outside_connections_but(CONTROL_PORT).unwrap_or_default(),
            (true, false, false) => netlink::outbound_connections(HOST).unwrap_or_default(),
            (false, ..) => Vec::new(),
        };
        let answer = Body::RepairIdentityResponse(RepairIdentityResponse { repaired });
        connection.send(&Frame { exchange, body: Some(answer) });
        if first || lost {
            self.relay_epoch.sweep();
        }
        // A kernel without SOCK_DESTROY leaves them to their own time-outs.
        let _ = netlink::abort(&doomed);
    }
}

/// Number of the restore that makes a clone of an image.
const FIRST_RESTORE: u64 = 1;

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new().name(name.to_owned()).spawn(run).step(format!("start the {name} thread")).map(drop)
}
