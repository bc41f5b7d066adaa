//! The replicas of a service, of which one may lead, behind one call.
//!
//! One rule decides when a call goes to another replica ([`is_elsewhere`]): the replica says that it does not
//! lead, or it gave no answer of its own. A replica that does not lead names the leader, and the call goes
//! there next, whether the settings list that address or not. Every call may be made twice: what changes
//! something carries a client token or may be repeated.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use api::errors::{self, reason};

use crate::{Dialer, Role, Transport, request};

/// Addresses that are kept because a replica named them as the leader's. The oldest goes when another comes.
const FOLLOWED_MAX: usize = 2;
/// Shortest pause before the replicas are asked once more.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);

/// How long one call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallBounds {
    /// Longest wait for one replica. A replica that is silent for so long is left for the next one.
    pub attempt: Duration,
    /// Longest wait in all.
    pub total: Duration,
    /// How long the replicas are asked again while they answer UNAVAILABLE and name
    /// a delay, as during an election; zero for once each.
    pub retry: Duration,
}

impl CallBounds {
    /// Each replica at most once, `total` for all of them.
    #[must_use]
    pub fn once(total: Duration) -> Self {
        Self { attempt: total, total, retry: Duration::ZERO }
    }
}

/// Channels to the replicas of one service; clones share them.
#[derive(Debug, Clone)]
pub struct Replicas {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialer: Dialer,
    role: Role,
    /// Channels per address.
    connections: usize,
    /// Addresses from the settings, which stay.
    configured: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The configured replicas, then the followed ones, oldest first.
    replicas: Vec<Replica>,
    /// The replica that the next call asks first.
    current: usize,
    /// Calls so far, to share them out among the channels of a replica.
    calls: usize,
}

#[derive(Debug, Clone)]
struct Replica {
    address: Arc<str>,
    channels: Vec<Transport>,
}

impl Replicas {
    /// Prepares a channel to each address; none connects before it is used.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when an address is malformed.
    pub fn new(dialer: impl Into<Dialer>, addresses: &[String], role: Role) -> Result<Self, Status> {
        Self::with_connections(dialer, addresses, role, 1)
    }

    /// As [`Replicas::new`] with several channels to each replica, for many calls at
    /// once: all bytes of a channel pass through one task.
    pub fn with_connections(
        dialer: impl Into<Dialer>,
        addresses: &[String],
        role: Role,
        connections: usize,
    ) -> Result<Self, Status> {
        let dialer = dialer.into();
        let replicas: Vec<Replica> = addresses
            .iter()
            .map(|address| Replica::dial(&dialer, address, role, connections))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            shared: Arc::new(Shared {
                dialer,
                role,
                connections,
                configured: replicas.len(),
                state: Mutex::new(State { replicas, current: 0, calls: 0 }),
            }),
        })
    }

    /// Asks one replica after the other until one answers.
    ///
    /// # Errors
    /// What the last replica answered; DEADLINE_EXCEEDED when none did in time.
    pub async fn call<T, R, F, A>(&self, bounds: CallBounds, message: T, call: F) -> Result<R, Status>
    where
        T: Clone,
        F: Fn(Transport, Request<T>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let mut round = Round::new(self, bounds);
        loop {
            let channel = round.next()?;
            let answered = tokio::time::timeout(round.left(), call(channel, request(message.clone()))).await;
            match answered {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => round.refused(status).await?,
                Err(_) => round.refused(self.silent()).await?,
            }
        }
    }

    /// To be called with the error that ended a stream of the current replica: the
    /// next call begins elsewhere.
    pub fn leave(&self, status: &Status) {
        let mut state = self.state();
        let current = state.current;
        if let Some(address) = state.replicas.get(current).map(|replica| Arc::clone(&replica.address)) {
            self.move_on(&mut state, &address, errors::leader_of(status).as_deref());
        }
    }

    /// The answer in place of a replica's that did not come in time.
    fn silent(&self) -> Status {
        Status::deadline_exceeded(format!("the {} did not answer in time", self.shared.role))
    }

    /// Makes the leader that `from` named the current replica, else the one after
    /// `from` if `from` is current: another call may have moved on already.
    fn move_on(&self, state: &mut State, from: &str, leader: Option<&str>) {
        if let Some(leader) = leader.filter(|leader| *leader != from) {
            if let Some(index) = state.replicas.iter().position(|replica| *replica.address == *leader) {
                state.current = index;
                return;
            }
            // The address came over the wire, so it is dialled as any other: only a
            // server whose certificate has the role is accepted there.
            let shared = &self.shared;
            if let Ok(replica) = Replica::dial(&shared.dialer, leader, shared.role, shared.connections) {
                if state.replicas.len() >= shared.configured + FOLLOWED_MAX {
                    state.replicas.remove(shared.configured);
                }
                state.replicas.push(replica);
                state.current = state.replicas.len() - 1;
                return;
            }
        }
        if state.replicas.get(state.current).is_some_and(|replica| *replica.address == *from) {
            state.current = (state.current + 1) % state.replicas.len();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }
}

impl Replica {
    fn dial(dialer: &Dialer, address: &str, role: Role, connections: usize) -> Result<Self, Status> {
        let channels = (0..connections).map(|_| dialer.dial(address, role)).collect::<Result<_, _>>()?;
        Ok(Self { address: address.into(), channels })
    }
}

/// Whether another replica may have the answer that this one has not: it does not
/// lead, or the error has no reason and so was not made by a replica at all.
fn is_elsewhere(status: &Status) -> bool {
    match errors::reason_of(status) {
        Some(reason) => reason == reason::NOT_LEADER || errors::nobody_can_lead(status),
        None => matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
    }
}

/// One call's way through the replicas.
struct Round<'a> {
    replicas: &'a Replicas,
    bounds: CallBounds,
    started: Instant,
    /// The address that is being asked.
    asked: Arc<str>,
    /// Addresses that were asked since the last pause.
    tried: Vec<Arc<str>>,
    /// The delay that one of them named: it is there, and an election may be under way, also when the leader that it names
    /// is silent.
    delay: Option<Duration>,
}

impl<'a> Round<'a> {
    fn new(replicas: &'a Replicas, bounds: CallBounds) -> Self {
        Self { replicas, bounds, started: Instant::now(), asked: "".into(), tried: Vec::new(), delay: None }
    }

    /// Wait for the next answer.
    fn left(&self) -> Duration {
        self.bounds.attempt.min(self.bounds.total.saturating_sub(self.started.elapsed()))
    }

    /// A channel to the replica to ask: the current one, or the first after it that was not asked yet.
    fn next(&mut self) -> Result<Transport, Status> {
        let mut state = self.replicas.state();
        let count = state.replicas.len();
        let (current, calls) = (state.current, state.calls);
        state.calls = calls.wrapping_add(1);
        let untried = (0..count)
            .map(|offset| &state.replicas[(current + offset) % count])
            .find(|replica| !self.tried.contains(&replica.address));
        match untried {
            Some(replica) => {
                self.asked = Arc::clone(&replica.address);
                Ok(replica.channels[calls % replica.channels.len()].clone())
            }
            None => Err(Status::unavailable(format!("no {} is known", self.replicas.shared.role))),
        }
    }

    /// Decides about an error: `Ok` when [`Round::next`] has another replica to ask.
    fn refused(&mut self, status: Status) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async move {
            let over = self.bounds.total <= self.started.elapsed();
            self.delay = retry_delay(&status).or(self.delay);
            if is_elsewhere(&status) {
                self.tried.push(Arc::clone(&self.asked));
                let mut state = self.replicas.state();
                self.replicas.move_on(&mut state, &self.asked, errors::leader_of(&status).as_deref());
                // Leaders that name each other must not keep a call going for ever.
                let tries_max = self.replicas.shared.configured + FOLLOWED_MAX;
                let untried = |replica: &Replica| !self.tried.contains(&replica.address);
                if !over && self.tried.len() < tries_max && state.replicas.iter().any(untried) {
                    return Ok(());
                }
            }
            if over {
                return Err(self.replicas.silent());
            }
            // Every replica was asked, and one that is there wants to be asked later.
            let delay = if is_elsewhere(&status) { self.delay.take() } else { retry_delay(&status) };
            match delay {
                Some(delay) if self.started.elapsed() + delay < self.bounds.retry => {
                    tokio::time::sleep(delay).await;
                    self.tried.clear();
                    Ok(())
                }
                _ => Err(status),
            }
        })
    }
}

fn retry_delay(status: &Status) -> Option<Duration> {
    if status.code() != Code::Unavailable {
        return None;
    }
    let info = status.get_details_retry_info()?;
    Some(info.retry_delay.unwrap_or_default().max(RETRY_PAUSE_MIN))
}
