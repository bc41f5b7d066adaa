//! Finds the host of a microVM and opens a tunnel to it, through launches, wakes and moves. Every wait is
//! bounded: a launch or wake by `launch_wait`, the search for a host that takes the tunnel by `connect`, for
//! each host that the microVM is placed on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::tunnel::v1::{OpenRequest, OpenResponse, OpenStatus};
use backoff::Backoff;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunnel::{Channel, ClientStream, OpenError};
use uuid::Uuid;

use crate::adapters::scheduler::Scheduler;
use crate::config::Limits;
use crate::domain::attempt::{self, Move, Outcome};
use crate::domain::port::Door;
use crate::domain::refusal::Refusal;
use crate::domain::route::{Route, RouteState, Table};
use crate::domain::timing::Phase;

/// Pauses before another look at an unchanged route.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(25), Duration::from_secs(1));
/// Longest wait for the route of a microVM that the scheduler has just woken.
const NEWS_WAIT: Duration = Duration::from_secs(1);
/// When a host that is busy does not say for how long.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// A stream to a port of a guest, across its sleeps and moves.
pub type GuestStream = tunnel::Stream<ClientStream>;

pub struct Dialed {
    pub stream: GuestStream,
    /// Generation of the placement it leads to.
    pub generation: u64,
    /// Phases of the launch or wake that was waited for; empty when none was.
    pub phases: Vec<Phase>,
}

pub struct Dialer {
    /// What is known of every microVM.
    pub table: Arc<Table>,
    /// For microVMs that have no host.
    pub scheduler: Arc<Scheduler>,
    pub client: tunnel::Client,
    pub limits: Limits,
}

/// What a tunnel is asked for.
#[derive(Debug, Clone)]
struct Wanted {
    label: Uuid,
    door: Door,
    request_id: String,
    stream_id: Uuid,
    /// Takes up a stream that slept.
    resume: bool,
}

/// A tunnel as a host has opened it.
struct Found {
    channel: Channel<ClientStream>,
    generation: u64,
    phases: Vec<Phase>,
}

/// How a stream finds its guest again.
struct Way {
    dialer: Arc<Dialer>,
    wanted: Wanted,
    /// Of the placement it leads to.
    generation: Arc<AtomicU64>,
}

/// One search: its clocks and its place in the changes.
struct Search {
    label: Uuid,
    changes: watch::Receiver<()>,
    give_up: Instant,
    /// Of the placement that is looked at.
    generation: u64,
    /// Set by the first refusal of the host that it is placed on.
    stop_looking: Option<Instant>,
    pauses: Backoff,
    /// How the last host that was asked answered.
    last: Option<Outcome>,
}

impl Dialer {
    /// Opens a stream.
    pub async fn dial(
        self: &Arc<Self>,
        label: Uuid,
        door: Door,
        request_id: &str,
    ) -> Result<Dialed, Refusal> {
        let wanted = Wanted {
            label,
            door,
            request_id: request_id.to_owned(),
            stream_id: Uuid::new_v4(),
            resume: false,
        };
        let Found { channel, generation, phases } = self.find(&wanted).await?;
        let wanted = Wanted { resume: true, ..wanted };
        let way = Way { dialer: self.clone(), wanted, generation: Arc::new(AtomicU64::new(generation)) };
        Ok(Dialed { stream: GuestStream::new(channel, Box::new(way)), generation, phases })
    }

    async fn find(&self, wanted: &Wanted) -> Result<Found, Refusal> {
        let label = wanted.label;
        let mut search = Search {
            label,
            changes: self.table.changes(label),
            give_up: Instant::now() + self.limits.launch_wait(),
            generation: 0,
            stop_looking: None,
            pauses: PAUSES,
            last: None,
        };
        loop {
            search.changes.mark_unchanged();
            let route = self.table.get(label).ok_or(Refusal::MicrovmConnectFailed)?.route;
            if route.generation > search.generation {
                // Elsewhere the search begins anew.
                (search.generation, search.stop_looking) = (route.generation, None);
            }
            match attempt::for_route(&route) {
                Move::Refuse(refusal) => return Err(refusal),
                Move::Wait => self.wait_for_host(&mut search).await?,
                Move::Resume => self.resume(&mut search, &route, &wanted.request_id).await?,
                Move::Open => match self.open(&search, &route, wanted).await {
                    Ok(found) => return Ok(found),
                    Err(outcome) => {
                        tracing::debug!(microvm_id = %route.microvm_id, ?outcome, "no tunnel");
                        match attempt::after(outcome) {
                            Some(refusal) => return Err(refusal),
                            None => {
                                search.last = Some(outcome);
                                self.look_again(&mut search, &route).await?;
                            }
                        }
                    }
                },
            }
        }
    }

    async fn wait_for_host(&self, search: &mut Search) -> Result<(), Refusal> {
        let left = search.give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Neither a launch that takes this long nor a host that is away is the end of the microVM.
            return Err(Refusal::NotReady);
        }
        let _ = tokio::time::timeout(left, search.changes.changed()).await;
        Ok(())
    }

    async fn resume(&self, search: &mut Search, route: &Route, request_id: &str) -> Result<(), Refusal> {
        let left = search.give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::NotReady);
        }
        match self.scheduler.resume(&route.microvm_id, left).await {
            Ok(()) => self.await_news(search, route).await,
            Err(tonic::Code::Unavailable | tonic::Code::FailedPrecondition | tonic::Code::Aborted) => {
                self.still_looking(search).map_err(|_| Refusal::NotReady)?;
                search.pause().await;
            }
            Err(code) => {
                tracing::warn!(microvm_id = %route.microvm_id, request_id, ?code, "not woken");
                return Err(Refusal::Asleep);
            }
        }
        Ok(())
    }

    /// After a host that does not take the tunnel.
    async fn look_again(&self, search: &mut Search, route: &Route) -> Result<(), Refusal> {
        self.still_looking(search)?;
        if route.state == RouteState::Suspended && route.wake {
            // Its host is gone, perhaps for good, or full; the scheduler knows whether another may have it. Whatever it says,
            // the route tells.
            let left = search.give_up.saturating_duration_since(Instant::now());
            match self.scheduler.resume(&route.microvm_id, left).await {
                Ok(()) => {
                    self.await_news(search, route).await;
                    return Ok(());
                }
                Err(code) => {
                    tracing::debug!(microvm_id = %route.microvm_id, ?code, "not placed elsewhere");
                }
            }
        }
        search.pause().await;
        Ok(())
    }

    /// After the scheduler has woken the microVM: what it says of the route is on its way, or here. To ask the host of before
    /// again would only have it woken once more.
    async fn await_news(&self, search: &mut Search, before: &Route) {
        let news = async {
            while self.table.get(search.label).is_some_and(|entry| *entry.route == *before) {
                let _ = search.changes.changed().await;
            }
        };
        let _ = tokio::time::timeout(NEWS_WAIT, news).await;
    }

    fn still_looking(&self, search: &mut Search) -> Result<(), Refusal> {
        let now = Instant::now();
        let stop = *search.stop_looking.get_or_insert(now + self.limits.connect());
        if now < stop && now < search.give_up {
            return Ok(());
        }
        Err(match search.last {
            Some(Outcome::Fenced) => Refusal::StoreAway,
            // No host had the request, and the microVM has not ended: it may answer a moment later, here or elsewhere.
            _ => Refusal::NotReady,
        })
    }

    async fn open(&self, search: &Search, route: &Route, wanted: &Wanted) -> Result<Found, Outcome> {
        let address = route.tunnel_address.as_deref().ok_or(Outcome::Elsewhere)?;
        let request = OpenRequest {
            microvm_id: route.microvm_id.to_string(),
            generation: route.generation,
            port: if let Door::Port(port) = wanted.door { port.into() } else { 0 },
            shell: wanted.door == Door::Shell,
            wake: route.wake,
            request_id: wanted.request_id.clone(),
            stream_id: wanted.stream_id.as_bytes().to_vec(),
            resume: wanted.resume,
            traceparent: telemetry::current_traceparent().unwrap_or_default(),
        };
        let left = search.give_up.saturating_duration_since(Instant::now());
        let opened = tokio::select! {
            biased;
            opened = self.client.open((&route.host, address), &request, left) => opened,
            // A host that is lost, or only silent, is not waited for once another has the microVM.
            () = self.table.placed_after(wanted.label, route.generation) => return Err(Outcome::Elsewhere),
        };
        let (response, channel) = opened.map_err(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot open a tunnel");
            match error {
                OpenError::Connect { .. } | OpenError::Broken { .. } => Outcome::Unreachable,
                OpenError::TimedOut { .. } => Outcome::TooLate,
            }
        })?;
        match refused(&response) {
            Some(outcome) => Err(outcome),
            None => Ok(Found { channel, generation: route.generation, phases: phases(&response) }),
        }
    }
}

impl tunnel::Reattach<ClientStream> for Way {
    fn reattach(&self, wake: CancellationToken) -> BoxFuture<'static, io::Result<Channel<ClientStream>>> {
        let (dialer, wanted, generation) =
            (self.dialer.clone(), self.wanted.clone(), self.generation.clone());
        Box::pin(async move {
            let mut changes = dialer.table.changes(wanted.label);
            let asleep = || {
                let route = dialer.table.get(wanted.label).map(|entry| entry.route.state);
                matches!(route, Some(RouteState::Suspended | RouteState::Pending))
            };
            while asleep() && !wake.is_cancelled() {
                tokio::select! {
                    _ = changes.changed() => {}
                    () = wake.cancelled() => {}
                }
            }
            let found = dialer.find(&wanted).await.map_err(|refusal| {
                tracing::debug!(stream_id = %wanted.stream_id, ?refusal, "a stream did not survive a sleep");
                io::Error::from(io::ErrorKind::ConnectionReset)
            })?;
            generation.store(found.generation, Ordering::Relaxed);
            Ok(found.channel)
        })
    }

    fn moved(&self) -> BoxFuture<'static, ()> {
        let generation = self.generation.load(Ordering::Relaxed);
        Box::pin(self.dialer.table.placed_after(self.wanted.label, generation))
    }
}

impl Search {
    /// Waits for a change of the route, or a growing while.
    async fn pause(&mut self) {
        let _ = tokio::time::timeout(self.pauses.next_pause(), self.changes.changed()).await;
    }
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("label", &self.label).finish_non_exhaustive()
    }
}

fn refused(response: &OpenResponse) -> Option<Outcome> {
    let retry_after = response.retry_after.as_ref().and_then(|after| api::duration(after).ok());
    Some(match response.status() {
        OpenStatus::Connected => return None,
        OpenStatus::NotHere => Outcome::Elsewhere,
        OpenStatus::Fenced => Outcome::Fenced,
        OpenStatus::Suspended => Outcome::Suspended,
        OpenStatus::WakeFailed => Outcome::WakeFailed,
        OpenStatus::NoRoom => Outcome::NoRoom,
        OpenStatus::StreamGone => Outcome::StreamGone,
        OpenStatus::PortClosed => Outcome::PortClosed,
        OpenStatus::Terminated => Outcome::Ended,
        OpenStatus::Busy => Outcome::Busy(retry_after.unwrap_or(BUSY_FOR)),
        OpenStatus::NoIngress => Outcome::NoIngress,
        OpenStatus::Invalid | OpenStatus::Unspecified => Outcome::Invalid,
    })
}

fn phases(response: &OpenResponse) -> Vec<Phase> {
    let duration =
        |value: &Option<_>| value.as_ref().and_then(|value| api::duration(value).ok()).unwrap_or_default();
    let phase = |phase: &api::common::v1::Phase| Phase {
        name: phase.name.clone(),
        start: duration(&phase.start),
        duration: duration(&phase.duration),
    };
    response.phases.iter().map(phase).collect()
}
