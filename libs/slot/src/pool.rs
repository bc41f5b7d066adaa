//! The pool: keeps slots ready, hands them out, removes them.
//!
//! ```text
//! making -> ready -> taken -> (recycle) -> gone
//!                      ^ adopt, after a restart
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backoff::Backoff;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::creation;
use crate::dialer::Dialer;
use crate::error::Error;
use crate::firewall::{self, Closed};
use crate::forwarding;
use crate::inside::{Inside, Namespace};
use crate::relay::{self, Relay};
use crate::room;
use crate::settings::{Egress, PoolSettings};
use crate::taken::Slot;

/// Pauses after a slot could not be made.
const RETRY_PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Keeps slots ready. Clones are handles to the same pool; with the last one
/// dropped the pool stops making slots, and only [`Pool::shutdown`] removes them.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    filler: Arc<Mutex<Option<JoinHandle<()>>>>,
    _stop_with_last_handle: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    settings: PoolSettings,
    closed: Closed,
    resolvers: Arc<[SocketAddr]>,
    inside: Inside,
    state: Mutex<State>,
    /// A slot became ready, or the pool closed.
    filled: Notify,
    /// A slot was taken or removed.
    wanted: Notify,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<(u32, Arc<Namespace>)>,
    /// Every index of which something may exist.
    used: BTreeSet<u32>,
    /// In use before the pool started, and not adopted yet.
    kept: BTreeSet<u32>,
    /// Callers waiting in `take`.
    waiting: usize,
    next: u32,
    closed: bool,
}

impl Pool {
    /// Puts the machine in order and starts filling: slots of this prefix not
    /// named in `in_use` are removed, the pool's table is replaced.
    ///
    /// # Errors
    /// When the settings are unusable or the kernel refuses (not root, no `ip` or `nft`).
    pub async fn start(settings: PoolSettings, in_use: &[String]) -> Result<Self, Error> {
        settings.check()?;
        let kept: BTreeSet<u32> = in_use.iter().filter_map(|name| settings.index_of(name)).collect();
        let existing = creation::existing(&settings);
        for index in existing.difference(&kept) {
            creation::destroy(&settings, *index).await?;
        }
        let kept: BTreeSet<u32> = kept.intersection(&existing).copied().collect();

        let closed = prepare_machine(&settings, &kept).await?;
        let resolvers = if settings.resolvers.is_empty() {
            relay::system_resolvers()
        } else {
            settings.resolvers.clone()
        };
        let inside =
            Inside::start().map_err(|source| Error::Namespace { name: "of the host".to_owned(), source })?;
        let state = State { used: kept.clone(), kept, ..State::default() };
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            settings,
            closed,
            resolvers: resolvers.into(),
            inside,
            state: Mutex::new(state),
            filled: Notify::new(),
            wanted: Notify::new(),
            stop: stop.clone(),
        });
        let filler = tokio::spawn(shared.clone().fill());
        Ok(Self {
            shared,
            filler: Arc::new(Mutex::new(Some(filler))),
            _stop_with_last_handle: Arc::new(stop.drop_guard()),
        })
    }

    /// Takes a ready slot, waiting a bounded time for one. Its rules are in force
    /// when this returns; on any error the slot is removed.
    pub async fn take(&self, egress: Egress) -> Result<Slot, Error> {
        let waited = self.shared.settings.take_timeout();
        let reserved = tokio::time::timeout(waited, self.shared.next_ready())
            .await
            .map_err(|_| Error::Exhausted { waited })??;
        self.open(reserved, egress).await
    }

    /// Takes a ready slot, if there is one at once, for an engine that waits for its microVM.
    #[must_use]
    pub fn reserve(&self) -> Option<Reserved> {
        let reserved = self.shared.pop_ready();
        self.shared.wanted.notify_one();
        reserved
    }

    /// Gives a reserved slot to a microVM. Its rules are in force when this returns; on any error the slot is removed.
    ///
    /// # Errors
    /// When the rules or the resolver relay cannot be set up.
    pub async fn open(&self, reserved: Reserved, egress: Egress) -> Result<Slot, Error> {
        // A slot is made with the rules of the commonest egress.
        let change = (egress != Egress::Internet).then(|| firewall::change_egress(&egress));
        let slot = self.prepare(reserved.index, reserved.namespace.clone(), egress, change).await?;
        reserved.disarm();
        Ok(slot)
    }

    /// True when no slot is ready and none will be made until one is given back.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        let state = self.shared.state();
        state.ready.is_empty() && state.used.len() >= self.shared.settings.total as usize
    }

    /// Takes over a slot that was named in `in_use` at the start, with its rules brought up to date.
    ///
    /// # Errors
    /// [`Error::NotInUse`] when it was not, does not exist or was adopted before.
    pub async fn adopt(&self, name: &str, egress: Egress) -> Result<Slot, Error> {
        let index = self.shared.settings.index_of(name);
        let index = index.filter(|index| self.shared.state().kept.remove(index));
        let index = index.ok_or_else(|| Error::NotInUse { name: name.to_owned() })?;
        let opened =
            Namespace::open(name).map_err(|source| Error::Namespace { name: name.to_owned(), source });
        let rules = firewall::slot_table(&self.shared.settings, &self.shared.closed, &egress);
        let adopted = match opened {
            Ok(namespace) => self.prepare(index, Arc::new(namespace), egress, Some(rules)).await,
            Err(error) => Err(error),
        };
        if adopted.is_err() {
            // Its engine may still run: it stays known, for another attempt.
            self.shared.state().kept.insert(index);
        }
        adopted
    }

    /// Destroys a slot and makes room for a fresh one. The engine process must have been reaped: a process
    /// that still holds the tap would keep the namespace alive.
    ///
    /// # Errors
    /// When something of it remains; its index is then not used again until the next start, which removes it.
    pub async fn recycle(&self, slot: Slot) -> Result<(), Error> {
        let Slot { index, dialer, relay, .. } = slot;
        if let Some(relay) = relay {
            relay.stop().await;
        }
        drop(dialer);
        self.shared.remove(index).await
    }

    /// Number of slots ready and taken.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.ready.len(), state.used.len() - state.ready.len())
    }

    /// Stops and removes every slot, the rules and the forwarding. With `keep_in_use`, slots that are taken
    /// stay and keep working, and so do the rules that guard them.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is removed anyway.
    pub async fn shutdown(&self, keep_in_use: bool) -> Result<(), Error> {
        let shared = &self.shared;
        shared.state().closed = true;
        shared.stop.cancel();
        shared.filled.notify_waiters();
        let filler = self.filler.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(filler) = filler {
            // It ends after the slot it is making; a panic there was reported.
            let _ = filler.await;
        }
        let ready: Vec<u32> =
            std::mem::take(&mut shared.state().ready).into_iter().map(|(index, _)| index).collect();
        let mut first_error = None;
        let doomed =
            if keep_in_use { ready } else { creation::existing(&shared.settings).into_iter().collect() };
        for index in doomed {
            if let Err(error) = shared.remove(index).await {
                first_error.get_or_insert(error);
            }
        }
        if creation::existing(&shared.settings).is_empty() {
            creation::apply(&firewall::without_root_tables(&shared.settings)).await?;
            if shared.settings.forwarding {
                let tables = creation::root_tables().await?;
                if let Err(error) = room::give_back(&tables) {
                    tracing::warn!(%error, "the connection table keeps the room that was made for slots");
                }
                if tables.is_empty() {
                    forwarding::put_back().map_err(Error::Forwarding)?;
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn prepare(
        &self,
        index: u32,
        namespace: Arc<Namespace>,
        egress: Egress,
        change: Option<serde_json::Value>,
    ) -> Result<Slot, Error> {
        let name = namespace.name.clone();
        if let Some(change) = change {
            creation::apply_inside(&name, &change).await?;
        }
        let dialer = Dialer::new(namespace, self.shared.inside.clone());
        let relay = match &egress {
            Egress::Internet | Egress::Policy(_) => {
                let started = Relay::start(&dialer, self.shared.resolvers.clone()).await;
                Some(started.map_err(|source| Error::Namespace { name: name.clone(), source })?)
            }
            Egress::None => None,
        };
        Ok(Slot { index, name, egress, dialer, relay })
    }
}

/// Rules, room and forwarding in the root namespace; slots `kept` are in use. Returns what is closed to guests.
async fn prepare_machine(settings: &PoolSettings, kept: &BTreeSet<u32>) -> Result<Closed, Error> {
    let (devices, own): (Vec<_>, Vec<_>) = creation::own_networks().await?.into_iter().unzip();
    let closed = Closed::new(settings, &own);
    let apart = match settings.forwarding {
        true => forwarding::look(&devices).map_err(Error::Forwarding)?,
        false => Vec::new(),
    };
    // Rules before forwarding: the other way round there is a moment without a filter.
    creation::apply_text(&firewall::timeouts_table(settings)).await?;
    creation::apply(&firewall::root_table(settings, &closed, &apart)).await?;
    creation::forget_connections(settings.outer_without(kept)).await;
    if settings.forwarding {
        let (tables, entries) = (creation::root_tables().await?, settings.tracked_max());
        if let Err(error) = room::make(&settings.table(), entries, &tables) {
            tracing::warn!(%error, entries, "cannot make room in the connection table: guests share the host's");
        }
        forwarding::switch_on().map_err(Error::Forwarding)?;
    }
    Ok(closed)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two of its changes, so a panic
        // elsewhere while it was held does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop_ready(self: &Arc<Self>) -> Option<Reserved> {
        let (index, namespace) = self.state().ready.pop_front()?;
        Some(Reserved { shared: Some(self.clone()), index, namespace })
    }

    async fn next_ready(self: &Arc<Self>) -> Result<Reserved, Error> {
        let _waiting = Waiting::count(self);
        loop {
            let filled = self.filled.notified();
            tokio::pin!(filled);
            filled.as_mut().enable();
            if self.state().closed {
                return Err(Error::Closed);
            }
            if let Some(ready) = self.pop_ready() {
                return Ok(ready);
            }
            self.wanted.notify_one();
            filled.await;
        }
    }

    /// Keeps the ready slots at their number until the pool stops.
    async fn fill(self: Arc<Self>) {
        let mut backoff = RETRY_PAUSES;
        while !self.stop.is_cancelled() {
            let Some(index) = self.state().allocate(&self.settings) else {
                tokio::select! {
                    () = self.wanted.notified() => {}
                    () = self.stop.cancelled() => {}
                }
                continue;
            };
            match creation::create(&self.settings, index, &self.closed, &self.inside).await {
                Ok(namespace) => {
                    backoff.reset();
                    self.state().ready.push_back((index, namespace));
                    self.filled.notify_waiters();
                }
                Err(error) => {
                    self.state().used.remove(&index);
                    let pause = backoff.next_pause();
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot make a slot");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.cancelled() => {}
                    }
                }
            }
        }
    }

    async fn remove(&self, index: u32) -> Result<(), Error> {
        creation::destroy(&self.settings, index).await?;
        {
            let mut state = self.state();
            state.used.remove(&index);
            state.kept.remove(&index);
        }
        self.wanted.notify_one();
        Ok(())
    }
}

impl State {
    /// Reserves an index when another slot is wanted. Indexes go round, so that an outer address rests before
    /// it is used again, and answers that are still under way to it go astray.
    fn allocate(&mut self, settings: &PoolSettings) -> Option<u32> {
        let target = (settings.ready as usize).max(self.waiting);
        if self.closed || self.ready.len() >= target || self.used.len() >= settings.total as usize {
            return None;
        }
        let index = (0..settings.total)
            .map(|step| (self.next + step) % settings.total)
            .find(|index| !self.used.contains(index))?;
        self.used.insert(index);
        self.next = (index + 1) % settings.total;
        Some(index)
    }
}

/// Counts a caller of `take` while it waits.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn count(shared: &'a Shared) -> Self {
        shared.state().waiting += 1;
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
        // A slot was taken, most likely: there is one to make.
        self.0.wanted.notify_one();
    }
}

/// A slot that was taken from the ready ones and is no microVM's yet; removed when dropped, also by a caller that stops
/// waiting half-way.
#[derive(Debug)]
pub struct Reserved {
    shared: Option<Arc<Shared>>,
    index: u32,
    namespace: Arc<Namespace>,
}

impl Reserved {
    /// Name of its namespace under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.namespace.name
    }

    /// Removes it. What lived in it must have been reaped.
    ///
    /// # Errors
    /// When something of it remains; its index is then not used again until the next start, which removes it.
    pub async fn remove(mut self) -> Result<(), Error> {
        match self.shared.take() {
            Some(shared) => shared.remove(self.index).await,
            None => Ok(()),
        }
    }

    fn disarm(mut self) {
        self.shared = None;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let index = self.index;
        tokio::spawn(async move {
            if let Err(error) = shared.remove(index).await {
                tracing::error!(%error, "cannot remove a slot that could not be handed out");
            }
        });
    }
}
