//! The load: sessions, each of which has one microVM of the counting app at a time and asks it, puts it to sleep, wakes it
//! and now and then ends it; and the one who reads the records.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::microvm::v1::*;
use client::{Call, Context};
use rpc::{CallBounds, Replicas, Role};
use tokio_util::sync::CancellationToken;

use super::ask::{Asker, Unanswered};
use super::check::{Checker, Count, Invariant};
use super::schedule::chance;
use super::trouble::Trouble;
use crate::chance::Chance;
use crate::image::PAGE_SIZE;
use crate::target;

/// Longest wait for one attempt of a request: a second one, by another edge than one that stands still, is answered within
/// [`ANSWER_MAX`].
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
/// The same during upkeep, when the first attempt is to be answered however long it is held.
const HELD_MAX: Duration = Duration::from_secs(60);
/// A request of a healthy host must have been answered within this, over all attempts.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a request is tried; by then every part that a fault took is back.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A replica that is silent for so long is left for another one: calls that move a microVM take less on a machine of their own.
const SILENT: Duration = Duration::from_secs(20);
const CALL: CallBounds =
    CallBounds { attempt: SILENT, total: Duration::from_secs(60), retry: Duration::from_secs(30) };
/// Life of a token; it is made anew after half of it.
const TOKEN_LIFE: Duration = Duration::from_secs(1200);
/// Longest pause between two acts of a session, in milliseconds.
const PAUSE_MS_MAX: u64 = 800;
const POLL: Duration = Duration::from_secs(1);
/// How often a recovery point is made, so that a lost host's microVMs go on elsewhere.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// What all sessions share.
pub struct Load {
    pub schedulers: Replicas,
    context: Context,
    image: String,
    checker: Mutex<Checker>,
    pub trouble: Trouble,
    pub stop: CancellationToken,
}

/// What became of the load, in numbers.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Done {
    pub launches: u64,
    pub requests: u64,
    pub suspends: u64,
    pub resumes: u64,
    /// Calls of these that were refused or got no answer; requests are tried again.
    pub failed: u64,
    /// Longest time from a request to its answer while its host was healthy, in milliseconds.
    pub healthy_ms_max: u64,
    /// The same during upkeep.
    pub upkeep_ms_max: u64,
}

impl Done {
    pub fn add(&mut self, other: Self) {
        self.launches += other.launches;
        self.requests += other.requests;
        self.suspends += other.suspends;
        self.resumes += other.resumes;
        self.failed += other.failed;
        self.healthy_ms_max = self.healthy_ms_max.max(other.healthy_ms_max);
        self.upkeep_ms_max = self.upkeep_ms_max.max(other.upkeep_ms_max);
    }
}

struct Held {
    id: String,
    endpoint: String,
    token: String,
    token_time: Instant,
    has_answered: bool,
}

impl Load {
    pub fn new(context: &Context, image: &str) -> anyhow::Result<Self> {
        Ok(Self {
            schedulers: context.replicas(Role::Scheduler)?,
            context: context.clone(),
            image: image.to_owned(),
            checker: Mutex::default(),
            trouble: Trouble::default(),
            stop: CancellationToken::new(),
        })
    }

    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn launch_request(&self, client_token: String) -> RunMicrovmRequest {
        RunMicrovmRequest {
            image_identifier: self.image.clone(),
            idle_policy: Some(target::never_idle()),
            checkpoint_interval: Some(api::duration_proto(CHECKPOINT_INTERVAL)),
            client_token,
            ..RunMicrovmRequest::default()
        }
    }

    /// Makes a call, which upkeep may hold and may not fail.
    async fn call<M: Call>(&self, message: M) -> Result<M::Answer, tonic::Status> {
        let upkeep = self.trouble.is_upkeep();
        let what = std::any::type_name::<M>().rsplit("::").next().unwrap_or_default();
        let started = Instant::now();
        let answer = message.send(&self.schedulers, CALL).await;
        if upkeep || self.trouble.is_upkeep() {
            let failure = answer.as_ref().err().map(|status| status.message().to_owned());
            self.check_upkeep(what, started.elapsed(), failure);
        }
        answer
    }

    /// Of what was on its way during upkeep.
    fn check_upkeep(&self, what: &str, took: Duration, failure: Option<String>) {
        let fault = self.trouble.now();
        self.checker().check(Invariant::Upkeep, failure.is_none(), || {
            format!("{what} failed after {took:?} ({fault}): {}", failure.unwrap_or_default())
        });
    }

    /// Reads records and totals until told to stop.
    pub async fn watch(&self) {
        while !self.stop.is_cancelled() {
            // What cannot be read now, the next round reads.
            let _ = self.look().await;
            tokio::select! { () = self.stop.cancelled() => {}, () = tokio::time::sleep(POLL) => {} }
        }
    }

    async fn look(&self) -> Result<(), tonic::Status> {
        let known = self.checker().ids();
        let (mut records, mut page_token) = (Vec::new(), String::new());
        loop {
            let page = self.call(ListMicrovmsRequest {
                page_size: PAGE_SIZE as u32,
                page_token,
                image_identifier: self.image.clone(),
                image_version: String::new(),
                unlaunchable: false,
            });
            let page = page.await?;
            records.extend(page.microvms);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let rows = self.call(GetUsageRequest { days: 1 }).await?.rows;
        let mut checker = self.checker();
        for record in &records {
            checker.record(record, self.trouble.is_healthy(&record.host_id));
        }
        checker.listed(&known, |id| records.iter().any(|record| record.microvm_id == id));
        checker.totals(&rows);
        Ok(())
    }

    /// Ends every microVM of the run that has not ended.
    pub async fn end_all(&self) -> anyhow::Result<()> {
        let ids = self.checker().ids();
        for microvm_id in ids {
            self.checker().ending(&microvm_id);
            let ended = self.call(TerminateMicrovmRequest { microvm_id: microvm_id.clone() }).await;
            match ended {
                Err(status) if status.code() != tonic::Code::NotFound => {
                    return Err(status).with_context(|| format!("{microvm_id} is left over"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// One client with one microVM at a time.
pub struct Session {
    load: Arc<Load>,
    chance: Chance,
    asker: Asker,
    held: Option<Held>,
    /// Token of a launch that was not acknowledged. It may have been done all the same, so the next one asks for the same.
    launching: Option<String>,
    done: Done,
}

impl Session {
    pub fn new(load: &Arc<Load>, number: usize, seed: u64) -> Self {
        let asker = Asker::new(&load.context, number);
        // The first stream of a seed is the schedule's.
        let chance = chance(seed, number as u64 + 2);
        Self { load: Arc::clone(load), chance, asker, held: None, launching: None, done: Done::default() }
    }

    /// Acts until told to stop.
    pub async fn run(mut self) -> Done {
        let load = Arc::clone(&self.load);
        while !load.stop.is_cancelled() {
            let pause = Duration::from_millis(self.chance.within(0..PAUSE_MS_MAX));
            tokio::select! { () = load.stop.cancelled() => break, () = tokio::time::sleep(pause) => {} }
            let what = self.chance.within(0..100);
            let did = match self.held.take() {
                None => self.launch().await,
                Some(held) if what < 70 => self.request(held).await,
                Some(held) if what < 90 => self.suspend(held).await,
                Some(held) if what < 95 => self.resume(held).await,
                Some(held) => self.end(&held).await,
            };
            self.done.failed += u64::from(did.is_err());
        }
        self.done
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let load = &self.load;
        let client_token = self.launching.get_or_insert_with(|| uuid::Uuid::new_v4().to_string());
        let request = load.launch_request(client_token.clone());
        let microvm = load.call(request).await?.microvm.context("no microVM")?;
        load.checker().launched(&microvm.microvm_id);
        self.launching = None;
        self.done.launches += 1;
        let token = token(load, &microvm.microvm_id).await;
        let (id, endpoint) = (microvm.microvm_id, microvm.endpoint);
        let Ok(token) = token else {
            // Nobody will ask it anything.
            load.checker().ending(&id);
            let _ = load.call(TerminateMicrovmRequest { microvm_id: id }).await;
            anyhow::bail!("no token");
        };
        self.request(Held { id, endpoint, token, token_time: Instant::now(), has_answered: false }).await
    }

    async fn suspend(&mut self, held: Held) -> anyhow::Result<()> {
        let asked = self.load.call(SuspendMicrovmRequest { microvm_id: held.id.clone() }).await;
        if let Ok(answer) = &asked {
            let record = answer.microvm.clone().unwrap_or_default();
            self.load.checker().suspended(&held.id, &record);
            self.done.suspends += 1;
        }
        self.held = Some(held);
        asked.map(drop).map_err(Into::into)
    }

    async fn resume(&mut self, held: Held) -> anyhow::Result<()> {
        let asked = self.load.call(ResumeMicrovmRequest { microvm_id: held.id.clone() }).await;
        self.done.resumes += u64::from(asked.is_ok());
        self.held = Some(held);
        asked.map(drop).map_err(Into::into)
    }

    async fn end(&mut self, held: &Held) -> anyhow::Result<()> {
        self.load.checker().ending(&held.id);
        self.load.trouble.left(&held.id);
        self.load.call(TerminateMicrovmRequest { microvm_id: held.id.clone() }).await?;
        Ok(())
    }

    /// Asks the app until it answers. A request that nobody answers is counted, and the microVM left.
    async fn request(&mut self, mut held: Held) -> anyhow::Result<()> {
        let load = Arc::clone(&self.load);
        if held.token_time.elapsed() > TOKEN_LIFE / 2
            && let Ok(fresh) = token(&load, &held.id).await
        {
            (held.token, held.token_time) = (fresh, Instant::now());
        }
        let started = Instant::now();
        // Until it has answered once, its launch is waited for, and may fetch the image.
        let mut healthy = held.has_answered && load.is_healthy(&held.id);
        let host = load.host(&held.id);
        let (mut last, mut first) = (anyhow::anyhow!("the first attempt"), true);
        let fault = load.trouble.now();
        self.done.requests += 1;
        while started.elapsed() < REQUEST_TIMEOUT && !load.stop.is_cancelled() {
            load.trouble.asked(&held.id);
            match self.attempt(&held, std::mem::take(&mut first)).await {
                Ok(count) => {
                    // A wake that found no room goes to another host, and fetches there what it needs.
                    healthy &= load.is_healthy(&held.id) && load.host(&held.id) == host;
                    held.has_answered = true;
                    load.trouble.answered(&held.id);
                    if healthy {
                        self.in_time(&held.id, started.elapsed(), &format!("{fault}, {last:#}"));
                    }
                    self.answered(&held.id, count).await;
                    self.held = Some(held);
                    return Ok(());
                }
                Err(error) => last = error,
            }
            healthy &= load.is_healthy(&held.id);
            if load.has_ended(&held.id) {
                load.trouble.left(&held.id);
                anyhow::bail!("{} has ended", held.id);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        if !load.stop.is_cancelled() {
            let (id, waited) = (&held.id, started.elapsed());
            load.checker().check(Invariant::OneAnswer, false, || {
                format!("{id} did not answer in {waited:?}: {last:#}")
            });
        }
        Err(last)
    }

    async fn answered(&mut self, id: &str, count: u64) {
        let load = &self.load;
        let counted = load.checker().answered(id, count);
        if counted == Count::Lower {
            // The record tells why, as soon as it can be read.
            while !load.stop.is_cancelled() {
                if let Ok(answer) =
                    load.call(GetMicrovmRequest { microvm_id: id.to_owned(), with_idleness: false }).await
                    && let Some(record) = answer.microvm
                {
                    load.checker().lower(id, count, &record);
                    break;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// A microVM whose host no fault has taken has answered. `why` says what was the matter when it was asked, and what the
    /// attempt before the answer met.
    fn in_time(&mut self, id: &str, took: Duration, why: &str) {
        let evidence = || format!("{id} answered after {took:?}: {why}");
        self.load.checker().check(Invariant::Answered, took <= ANSWER_MAX, evidence);
        self.done.healthy_ms_max = self.done.healthy_ms_max.max(ms(took));
    }

    /// One attempt. During upkeep the first has to do, however long it is held.
    async fn attempt(&mut self, held: &Held, first: bool) -> anyhow::Result<u64> {
        let load = Arc::clone(&self.load);
        let (upkeep, started) = (load.trouble.is_upkeep(), Instant::now());
        let wait = if upkeep { HELD_MAX } else { ATTEMPT_TIMEOUT };
        let answer = self.asker.ask(&held.endpoint, &held.token, wait).await;
        if first && (upkeep || load.trouble.is_upkeep()) {
            let took = started.elapsed();
            let failure = answer.as_ref().err().map(|unanswered| format!("{:#}", unanswered.error));
            load.check_upkeep(&format!("a request to {}", held.id), took, failure);
            self.done.upkeep_ms_max = self.done.upkeep_ms_max.max(ms(took));
        }
        answer.map_err(|Unanswered { error, may_have_come }| {
            if may_have_come {
                load.checker().unanswered(&held.id);
            }
            error
        })
    }
}

impl Load {
    fn is_healthy(&self, id: &str) -> bool {
        let place = self.checker().place(id);
        // Before its record was read, any host may be its.
        place.is_some_and(|(host, _)| !host.is_empty() && self.trouble.is_healthy(&host))
    }

    fn host(&self, id: &str) -> Option<String> {
        self.checker().place(id).map(|(host, _)| host)
    }

    fn has_ended(&self, id: &str) -> bool {
        self.checker().place(id).is_some_and(|(_, state)| state == MicrovmState::Terminated)
    }
}

async fn token(load: &Load, id: &str) -> anyhow::Result<String> {
    let request = CreateMicrovmAuthTokenRequest {
        microvm_id: id.to_owned(),
        expiration: Some(api::duration_proto(TOKEN_LIFE)),
        allowed_ports: vec![PortScope { scope: Some(port_scope::Scope::AllPorts(AllPorts {})) }],
        ..Default::default()
    };
    let answer = load.call(request).await?;
    answer.auth_token.into_values().next().context("an answer without a token")
}

pub fn ms(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
