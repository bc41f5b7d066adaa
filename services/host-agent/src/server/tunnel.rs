//! Tunnels: an edge asks for a guest port, waits for a launch or a wake when
//! there is one to wait for, and then the guest's bytes flow.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::common::v1::Phase as WirePhase;
use api::tunnel::v1::{OpenRequest, OpenStatus};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tunnel::{Channel, Ended, Responder, ServerStream};

use super::status::RETRY_AFTER;
use super::waiting::wait_in;
use crate::domain::local_state::{Admission, Ask, admit};
use crate::domain::{HostError, LocalState};
use crate::host::Host;
use crate::microvm::{Command, Gate, GateError, GuestStream, Handle, Pass, Portable, Successor, View};
use crate::microvms::Microvms;

type Session = tunnel::Session<Channel<ServerStream>, TcpStream>;

/// How often an open looks again because the gate closed under it.
const ROUNDS_MAX: usize = 8;
/// Longest wait for a guest's kernel to acknowledge the end of a connection; the kernel counts whole seconds.
const END_WAIT: Duration = Duration::from_secs(1);
/// How long an open waits for a lease, and a scheduler's word, that are about to be had: the agent has just started, or etcd
/// was away for a moment.
const LEASE_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for a launch or wake that somebody else began.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// Answers tunnel requests. Clones share the bounds.
#[derive(Clone)]
pub struct Tunnels {
    host: Arc<Host>,
    microvms: Arc<Microvms>,
    waiting: Arc<Semaphore>,
    /// Cancelled when the agent is told to stop: what is under way is finished, and the next agent has the rest.
    stopping: CancellationToken,
}

/// The guest's side of a tunnel.
struct Opened {
    handle: Handle,
    guest: GuestStream,
    /// What the guest is to be given first: of a stream that slept.
    for_guest: Vec<u8>,
    /// Of the launch or wake that was waited for.
    phases: Vec<WirePhase>,
}

struct Refusal {
    status: OpenStatus,
    message: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: OpenStatus, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    fn busy(message: &str) -> Self {
        Self { status: OpenStatus::Busy, message: message.to_owned(), retry_after: Some(RETRY_AFTER) }
    }

    fn ended(reason: &str) -> Self {
        Self::new(OpenStatus::Terminated, reason)
    }
}

impl Tunnels {
    pub fn new(host: Arc<Host>, microvms: Arc<Microvms>, stopping: CancellationToken) -> Self {
        let waiting = Arc::new(Semaphore::new(host.config.limits.waiting_opens));
        Self { host, microvms, waiting, stopping }
    }

    /// Answers one request and carries its bytes until either side ends it.
    pub async fn serve(self, request: OpenRequest, mut responder: Responder) {
        let opened = tokio::select! {
            biased;
            opened = self.open(&request) => opened,
            // A wake that was begun goes on: others may wait for it.
            () = responder.abandoned() => return,
            // The edge asks the next agent.
            () = self.stopping.cancelled() => return,
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                tracing::debug!(microvm = request.microvm_id, status = ?refusal.status, "tunnel refused");
                return responder.refuse(refusal.status, refusal.message, refusal.retry_after).await;
            }
        };
        let Opened { handle, guest, for_guest, phases } = opened;
        // Dying here, or an edge that does not get the answer, ends a stream that slept: it has left its gate.
        let Ok(tunnel) = responder.connect(phases).await else {
            return;
        };
        self.host.metrics.tunnel_opened();
        let mut session = tunnel::Session::new(tunnel, guest.stream);
        session.put_for_guest(for_guest);
        let mut standing = self.host.standing.subscribe();
        tokio::select! {
            () = self.carry(&handle, &request, session, guest.pass) => {}
            // Another host may run the microVM from now on.
            _ = standing.wait_for(|standing| standing.is_fenced()) => {}
        }
    }

    /// Carries bytes between the edge and the guest, across the guest's sleeps: the edge's side stays open, and what the
    /// client sends wakes the guest when its token lets it. Where the image has connections end, until its first sleep.
    async fn carry(&self, handle: &Handle, request: &OpenRequest, mut session: Session, mut pass: Pass) {
        let shell = request.shell;
        let _open = handle.activity.opened(shell);
        loop {
            let (activity, host) = (Arc::clone(&handle.activity), Arc::clone(&self.host));
            let count = move |bytes| activity.moved(bytes, shell, &host);
            let hold = CancellationToken::new();
            let ended = tokio::select! {
                ended = session.carry(count, &pass.closed, &hold) => ended,
                never = self.hold(&pass, &hold) => match never {},
            };
            match ended {
                // The agent stops, and the app owes no answer. What stands ends with it, as the guest runs on.
                Ended::Held if !pass.hold.is_cancelled() => return,
                Ended::Held if pass.end_at_hold => return end(session).await,
                Ended::Held => {}
                ended => {
                    tracing::debug!(microvm = %handle.id, ?ended, "a tunnel ended");
                    return;
                }
            }
            let stream_id = session.stop_edge().await.then(|| request.stream_id.as_slice().try_into().ok());
            let portable = stream_id
                .flatten()
                .map(|stream_id| Portable { stream_id, for_guest: session.for_guest().to_vec() });
            let Some(stream) = session.take_guest() else { return };
            let successor = pass.give_up(stream, portable);
            match self.await_successor(handle, &mut session, successor, request.wake).await {
                Some(Successor::Stream(guest)) => {
                    session.attach(guest.stream);
                    pass = guest.pass;
                }
                Some(Successor::Rest(rest)) => return session.finish(&rest).await,
                None => return,
            }
        }
    }

    /// Has a session come to a halt when its guest is about to sleep, or this agent to stop.
    async fn hold(&self, pass: &Pass, hold: &CancellationToken) -> Infallible {
        tokio::select! {
            () = pass.hold.cancelled() => {}
            () = self.stopping.cancelled() => {}
        }
        hold.cancel();
        std::future::pending().await
    }

    /// Waits until the guest is awake again, and wakes it when the client speaks. `None` when the client is gone, may not
    /// wake it, or the microVM has ended.
    async fn await_successor(
        &self,
        handle: &Handle,
        session: &mut Session,
        mut successor: oneshot::Receiver<Successor>,
        wake: bool,
    ) -> Option<Successor> {
        tokio::select! {
            biased;
            successor = &mut successor => return successor.ok(),
            // The edge takes the stream up again at the next agent.
            () = self.stopping.cancelled() => return None,
            spoke = session.client_speaks() => if !(spoke && wake) {
                return None;
            },
        }
        handle.activity.request(&self.host);
        if let Err(refusal) = self.wake(handle).await {
            tracing::debug!(microvm = %handle.id, refusal.message, "a client's bytes did not wake the microVM");
            return None;
        }
        successor.await.ok()
    }

    async fn open(&self, request: &OpenRequest) -> Result<Opened, Refusal> {
        let mut standing = self.host.standing.subscribe();
        let held = standing.wait_for(|standing| !standing.is_fenced());
        if tokio::time::timeout(LEASE_WAIT, held).await.is_err() {
            let why = "the host has lost its lease, or has not been told by a scheduler since what is stale";
            return Err(Refusal::new(OpenStatus::Fenced, why));
        }
        let port = guest_port(request)?;
        let Some(handle) = self.microvms.get(&request.microvm_id) else {
            return Err(match self.microvms.end_reason(&request.microvm_id) {
                Some(reason) => Refusal::ended(&reason),
                None => Refusal::new(OpenStatus::NotHere, "this host does not hold the microVM"),
            });
        };
        if request.generation > handle.view.borrow().generation {
            return Err(Refusal::new(OpenStatus::NotHere, "this host holds an older placement"));
        }
        if handle.is_stale() {
            return Err(Refusal::new(OpenStatus::NotHere, "the microVM has been placed elsewhere"));
        }
        if handle.no_ingress {
            return Err(Refusal::new(OpenStatus::NoIngress, "the microVM has no ingress"));
        }
        handle.activity.request(&self.host);
        let mut waited = false;
        for _ in 0..ROUNDS_MAX {
            let gate = self.reach(&handle, request.wake, &mut waited).await?;
            let reached = if request.resume {
                gate.claim(&request.stream_id)
            } else {
                gate.connect(port).await.map(|guest| (guest, Vec::new()))
            };
            match reached {
                Ok((guest, for_guest)) => {
                    let phases = if waited { last_phases(&handle) } else { Vec::new() };
                    return Ok(Opened { handle, guest, for_guest, phases });
                }
                Err(GateError::Closed) => {}
                Err(failure) => return Err(unreached(&failure, port)),
            }
        }
        Err(unreached(&GateError::Closed, port))
    }

    /// The gate of a running guest, waking it or waiting for it as the state and the request say.
    async fn reach(&self, handle: &Handle, wake: bool, waited: &mut bool) -> Result<Arc<Gate>, Refusal> {
        let ask = if wake { Ask::OpenWaking } else { Ask::Open };
        let mut permit = None;
        let mut view = handle.view.clone();
        loop {
            let (state, gate) = {
                let view = view.borrow_and_update();
                (view.state, view.gate.clone())
            };
            if let (LocalState::Running, Some(gate)) = (state, gate) {
                return Ok(gate);
            }
            let admission = admit(state, ask);
            match admission {
                Admission::Asleep => {
                    return Err(Refusal::new(OpenStatus::Suspended, "the microVM is suspended"));
                }
                Admission::Ended => return Err(ended(handle)),
                _ => {}
            }
            if permit.is_none() {
                permit = Some(wait_in(&handle.waiting, &self.waiting).map_err(Refusal::busy)?);
            }
            *waited = true;
            if admission == Admission::Begin {
                self.wake(handle).await?;
            } else {
                wait(&mut view, handle).await?;
            }
        }
    }

    /// Wakes the microVM here, which is the host's own decision; not while it is being drained, since the scheduler then
    /// knows a better place.
    async fn wake(&self, handle: &Handle) -> Result<(), Refusal> {
        if self.microvms.is_draining() {
            return Err(Refusal::new(OpenStatus::NoRoom, "the host is being drained"));
        }
        // A caller that hangs up before its turn has come leaves the queue.
        let mut view = handle.view.clone();
        let turn = tokio::select! {
            biased;
            turn = self.host.wakes.turn(&handle.id, &handle.image) => {
                turn.map_err(|full| Refusal::new(OpenStatus::NoRoom, full.to_string()))?
            }
            _ = view.wait_for(|view| matches!(view.state, LocalState::Terminating | LocalState::Gone)) => {
                return Err(ended(handle));
            }
        };
        let woken = handle.clone();
        // Its own task: a caller that hangs up must not stop a wake that others have joined.
        let woken = tokio::spawn(async move { woken.command(Command::Resume(None, Some(turn)), None).await });
        let woken = woken.await;
        match woken {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(HostError::Capacity(message))) => Err(Refusal::new(OpenStatus::NoRoom, message)),
            Ok(Err(HostError::Ended { .. })) => Err(ended(handle)),
            Ok(Err(failure)) => Err(Refusal::new(OpenStatus::WakeFailed, failure.to_string())),
            Err(error) => Err(Refusal::new(OpenStatus::WakeFailed, format!("the wake died: {error}"))),
        }
    }
}

/// Ends a connection that does not sleep with its guest. The guest's kernel has acknowledged the end when this is over: it would
/// wake with a connection that nobody else knows of.
async fn end(session: Session) {
    let Some(stream) = session.end().await.and_then(|stream| stream.into_std().ok()) else { return };
    let closed = tokio::task::spawn_blocking(move || {
        // A socket that cannot be told to wait is closed all the same.
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(END_WAIT));
    });
    let _ = closed.await;
}

/// The port in the guest; of no meaning to a stream that is taken up again. The guest-agent's own are closed to apps' callers: a connection to its control port would take the
/// host's place, and its relay opens ports that the caller's token may not cover.
fn guest_port(request: &OpenRequest) -> Result<u16, Refusal> {
    if request.shell || request.resume {
        return Ok(guest_link::SHELL_PORT);
    }
    let port = u16::try_from(request.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Refusal::new(OpenStatus::Invalid, "the port must be 1 to 65535"))?;
    if guest_link::AGENT_PORTS.contains(&port) {
        return Err(Refusal::new(OpenStatus::PortClosed, format!("port {port} is the platform's")));
    }
    Ok(port)
}

/// What a guest that runs and cannot be reached means to the edge.
fn unreached(failure: &GateError, port: u16) -> Refusal {
    match failure {
        GateError::Refused => Refusal::new(OpenStatus::PortClosed, format!("nothing listens on port {port}")),
        GateError::Silent => Refusal::new(OpenStatus::PortClosed, "the guest does not answer"),
        GateError::Busy => Refusal::busy("too many connections to the microVM"),
        GateError::Closed => Refusal::busy("the microVM keeps changing its state"),
        GateError::Gone => Refusal::new(OpenStatus::StreamGone, "no stream of that name slept here"),
    }
}

/// What it means to the edge that the host has dropped a microVM, or is about to.
fn ended(handle: &Handle) -> Refusal {
    let view = handle.view.borrow();
    if view.discarded {
        return Refusal::new(OpenStatus::NotHere, "the microVM is placed elsewhere");
    }
    Refusal::ended(&view.observed.state_reason)
}

async fn wait(view: &mut watch::Receiver<View>, handle: &Handle) -> Result<(), Refusal> {
    match tokio::time::timeout(WAIT_MAX, view.changed()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ended(handle)),
        Err(_) => Err(Refusal::busy("the microVM took too long")),
    }
}

/// The steps of the launch or wake that was just waited for.
fn last_phases(handle: &Handle) -> Vec<WirePhase> {
    let view = handle.view.borrow();
    view.observed
        .last_transition
        .as_ref()
        .filter(|transition| transition.kind != "suspend")
        .map(|transition| transition.phases.clone())
        .unwrap_or_default()
}
