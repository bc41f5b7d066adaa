//! Who uses the fleet: callers of its API through the product's client, requests to endpoints, and time that passes without any.
//!
//! The way of a request is a stand-in for the edge: it goes where the record says, or where it said some time ago.

use std::sync::Arc;
use std::time::Duration;

use api::host::v1::{DrainHostRequest, UndrainHostRequest};
use api::microvm::v1::{
    CheckpointMicrovmRequest, GetMicrovmRequest, MicrovmState, ResumeMicrovmRequest, RunMicrovmRequest,
    SuspendMicrovmRequest, TerminateMicrovmRequest,
};
use client::Call;
use host_agent::simulated::{Cause, HostError, LocalState};
use rpc::{CallBounds, Replicas, Role};
use tonic::Status;

use super::agent::Agent;
use super::driver::Order;
use super::net::dialer;
use super::plan::FAULTS;
use super::world::{Node, Process, Shared, lock};
use crate::chance::Chance;

/// How long a caller waits for an answer.
const CALL: CallBounds = CallBounds {
    attempt: Duration::from_secs(20),
    total: Duration::from_secs(40),
    retry: Duration::from_secs(10),
};
/// MicroVMs that one client launches at most.
const LAUNCHES_MAX: usize = 5;
/// Of a thousand launches, how many ask for checkpoints.
const POINTS: u64 = 300;
/// Attempts of the last request to a microVM, when all is well again.
const PROBES_MAX: usize = 20;

pub struct Client {
    world: Shared,
    schedulers: Replicas,
    chance: Chance,
    index: u64,
    ids: Vec<String>,
    launched: usize,
    /// Where it found a microVM before.
    routes: std::collections::BTreeMap<String, usize>,
}

impl Client {
    pub fn new(world: &Shared, index: u64) -> Result<Self, Status> {
        let process = Process::new(Node::Clients);
        let addresses: Vec<String> =
            (0..world.plan.schedulers).map(|index| Node::Scheduler(index).address()).collect();
        let schedulers = Replicas::new(dialer(world, &process, Role::Admin), &addresses, Role::Scheduler)?;
        Ok(Self {
            world: Arc::clone(world),
            schedulers,
            chance: Chance::new(world.plan.seed, 100 + index),
            index,
            ids: Vec::new(),
            launched: 0,
            routes: Default::default(),
        })
    }

    async fn call<T: Call>(&self, name: &str, message: T) -> Result<T::Answer, Status> {
        {
            let mut checker = lock(&self.world.checker);
            checker.calls_open += 1;
            checker.calls += 1;
        }
        let who = format_args!("client-{}", self.index).to_string();
        self.world.tell(&who, format_args!("asks: {name}"));
        let answer = message.send(&self.schedulers, CALL).await;
        lock(&self.world.checker).calls_open -= 1;
        match &answer {
            Ok(_) => self.world.tell(&who, format_args!("{name}: done")),
            Err(status) => {
                self.world.tell(&who, format_args!("{name}: {:?} {}", status.code(), status.message()))
            }
        }
        answer
    }

    /// Does this and that until faults have stopped.
    pub async fn run(mut self) {
        while self.world.began.elapsed() < FAULTS {
            let pause = self.chance.millis(20..1_500);
            tokio::time::sleep(pause).await;
            let id = self.chance.one(&self.ids).cloned();
            match (self.chance.within(0..100), id) {
                (0..25, _) | (_, None) => self.launch().await,
                (25..65, Some(id)) => drop(self.request(&id).await),
                (65..82, Some(id)) => self.suspend(&id).await,
                (82..92, Some(id)) => {
                    let message = ResumeMicrovmRequest { microvm_id: id.clone() };
                    let _ = self.call(&format!("resume {id}"), message).await;
                }
                (92..94, Some(id)) => {
                    let message = CheckpointMicrovmRequest { microvm_id: id.clone() };
                    let _ = self.call(&format!("checkpoint {id}"), message).await;
                }
                (94..96, Some(id)) => {
                    let message = GetMicrovmRequest { microvm_id: id.clone(), with_idleness: false };
                    let _ = self.call(&format!("get {id}"), message).await;
                }
                (_, Some(id)) => {
                    let message = TerminateMicrovmRequest { microvm_id: id.clone() };
                    let _ = self.call(&format!("terminate {id}"), message).await;
                }
            }
        }
    }

    async fn launch(&mut self) {
        if self.launched >= LAUNCHES_MAX {
            return;
        }
        self.launched += 1;
        let life = if self.chance.per_mille(150) { self.chance.within(20..60) } else { 3600 };
        let points = self.chance.per_mille(POINTS).then(|| Duration::from_secs(self.chance.within(5..20)));
        let message = RunMicrovmRequest {
            image_identifier: "app".to_owned(),
            client_token: format!("client-{}-launch-{}", self.index, self.launched),
            maximum_duration: Some(api::duration_proto(Duration::from_secs(life))),
            checkpoint_interval: points.map(api::duration_proto),
            ..RunMicrovmRequest::default()
        };
        let mut ids = std::collections::BTreeSet::new();
        // The same request again finds the same microVM.
        for _ in 0..2 {
            let Ok(answer) = self.call("run", message.clone()).await else { continue };
            ids.extend(answer.microvm.map(|microvm| microvm.microvm_id));
            if !self.chance.per_mille(300) {
                break;
            }
        }
        if ids.len() > 1 {
            self.world
                .broken("every request has exactly one answer", format_args!("one launch made {ids:?}"));
        }
        self.ids.extend(ids);
    }

    async fn suspend(&mut self, id: &str) {
        let message = SuspendMicrovmRequest { microvm_id: id.to_owned() };
        let Ok(answer) = self.call(&format!("suspend {id}"), message).await else { return };
        let state = answer.microvm.map(|microvm| microvm.state());
        if !matches!(
            state,
            Some(
                MicrovmState::Suspended
                    | MicrovmState::Running
                    | MicrovmState::Terminating
                    | MicrovmState::Terminated
            )
        ) {
            self.world.broken("an acknowledged suspend is one", format_args!("{id} is {state:?}"));
        }
    }

    /// One request to a microVM's endpoint.
    async fn request(&mut self, id: &str) -> Result<u64, String> {
        let record = self.world.record(id).ok_or("no record")?;
        let now = record.placement.host.as_str().trim_start_matches("host-").parse().unwrap_or(0);
        // Routes are watched, and news may be late.
        let before = self.routes.get(id).copied().filter(|_| self.chance.per_mille(300));
        let index = before.unwrap_or(now);
        self.routes.insert(id.to_owned(), index);
        let node = Node::Host(index);
        let fate = self.world.fate(Node::Clients, node);
        tokio::time::sleep(fate.there).await;
        let agent = lock(&self.world.agents).get(&index).cloned();
        let reached =
            agent.filter(|_| !fate.refused && !fate.lost && self.world.reaches(Node::Clients, node));
        let answered = match reached {
            None => Err("the host is not reached".to_owned()),
            Some(agent) => agent.request(id).await.map_err(|failure| failure.to_string()),
        };
        self.world.tell(format_args!("client-{}", self.index), format_args!("request to {id}: {answered:?}"));
        answered
    }

    /// Drains a host for a while.
    pub async fn drain(self, host: usize, time: Duration) {
        let host_id = Node::Host(host).to_string();
        // What it is told is no matter: a drain without an answer may be one.
        let _ = self.call("drain", DrainHostRequest { host_id: host_id.clone(), ..Default::default() }).await;
        tokio::time::sleep(time).await;
        loop {
            let undrained = self.call("undrain", UndrainHostRequest { host_id: host_id.clone() }).await;
            if undrained.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// When all is well again, every microVM answers, with all that it had acknowledged.
    pub async fn probe(mut self) {
        for (id, record) in self.world.records() {
            if record.has_ended() {
                continue;
            }
            let index = record.placement.host.as_str().trim_start_matches("host-").parse().unwrap_or(0);
            let lost = self.world.machines.get(index).is_none_or(|machine| machine.is_gone());
            if lost && !record.has_remote_copy() {
                continue;
            }
            let mut last = String::new();
            for _ in 0..PROBES_MAX {
                let ended = self.world.record(&id).is_none_or(|record| record.has_ended());
                match self.request(&id).await {
                    Ok(_) => last.clear(),
                    Err(failure) => last = failure,
                }
                if ended || last.is_empty() {
                    last.clear();
                    break;
                }
                let message = ResumeMicrovmRequest { microvm_id: id.clone() };
                let _ = self.call(&format!("resume {id}"), message).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if !last.is_empty() {
                self.world.broken("every microVM answers in the end", format_args!("{id} does not: {last}"));
            }
        }
    }
}

impl Agent {
    /// A request for a microVM, which is woken for it.
    pub async fn request(self: &Arc<Self>, id: &str) -> Result<u64, HostError> {
        for _ in 0..3 {
            if self.is_fenced() || self.process.killed.is_cancelled() {
                return Err(HostError::Conflict("the host is fenced".to_owned()));
            }
            let cell = self.get(id).ok_or_else(|| HostError::NotHere { id: id.to_owned() })?;
            if cell.with(|held| held.stale >= held.journal.generation) {
                return Err(HostError::NotHere { id: id.to_owned() });
            }
            match cell.state() {
                LocalState::Running => {
                    self.world.check_alone(id);
                    lock(&self.world.checker).served += 1;
                    let process = cell.with(|held| held.process).unwrap_or(0);
                    let counter = self.machine.engine(process, |engine| {
                        engine.guest.counter += 1;
                        engine.cpu_seconds += 0.125;
                        engine.guest.counter
                    });
                    return counter.ok_or_else(|| HostError::Engine("the engine is gone".to_owned()));
                }
                LocalState::Suspended if self.is_draining() => {
                    return Err(HostError::Conflict("the host is drained".to_owned()));
                }
                _ => {
                    self.command(&cell, Order::Resume(None), None).await?;
                }
            }
        }
        Err(HostError::Conflict(format!("{id} does not stay awake")))
    }

    /// Nobody calls for a while, now and then.
    pub async fn fall_asleep(self: Arc<Self>) {
        loop {
            let pause = self.world.draw(|chance| chance.millis(1_000..12_000));
            tokio::time::sleep(pause).await;
            if self.world.began.elapsed() > FAULTS {
                return;
            }
            let awake: Vec<_> = {
                let live = lock(&self.live);
                live.values().filter(|cell| cell.state() == LocalState::Running).cloned().collect()
            };
            let Some(cell) = self.world.draw(|chance| chance.one(&awake).cloned()) else { continue };
            let cause = Cause::idle("nobody called".to_owned());
            let _ = self.command(&cell, Order::Suspend(cause), None).await;
        }
    }
}
