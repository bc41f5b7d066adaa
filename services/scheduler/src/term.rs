//! One term of leadership: everything the leader knows, and every task it runs. A term is loaded when
//! leadership is won and dropped whole when it is lost; nothing of it survives into the next.
//!
//! Two locks, never held together with one another's waits: [`Memory`] for an instant, and one write lock per
//! microVM around its compare-and-set. What is in memory is what etcd said last, except running totals.
//! Connectors and own domains have locks of their own of the same two kinds, [`ConnectorStore`] and [`DomainStore`].

pub mod access_keys;
mod answers;
mod checkpoint;
mod commit;
pub mod connectors;
pub mod domains;
mod drain;
mod end;
pub mod hosts;
mod idleness;
pub mod invitations;
pub mod launch;
mod logs;
pub mod memory;
mod place;
mod recover;
mod snapshots;
mod store_room;
pub mod subscribers;
mod suspend;
mod sweep;
mod time;
pub mod tokens;
pub mod usage;
pub mod vouchers;
mod wake;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backoff::Backoff;
use clock::Clock;
use model::MicrovmId;
use records::{Event, Leadership, Store};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::adapters::agents::Agents;
use crate::adapters::microvms as codec;
use crate::adapters::token_keys::{TokenKeys, TokenKeysError};
use crate::config::Config;
use crate::domain::catalog::Catalog;
use crate::domain::microvm::{Intent, Microvm};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::vouches::Vouches;
use connectors::ConnectorStore;
use domains::DomainStore;
use memory::{Handle, Memory};
use model::state::MicrovmState;
use store_room::RoomSeen;
use time::LifeClock;
use usage::Totals;

/// Pauses between attempts to reach a host.
pub(crate) const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// What a term needs from the process around it.
#[derive(Debug, Clone)]
pub struct Context {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub store: Store,
    pub agents: Arc<Agents>,
    pub metrics: Metrics,
    /// What this process has promised hosts, in whatever term.
    pub vouches: Arc<Vouches>,
    /// Makes the ids of microVMs and the names of their endpoints.
    pub new_id: fn() -> Uuid,
}

#[derive(Debug)]
pub struct Term {
    pub(crate) context: Context,
    pub(crate) leadership: Leadership,
    pub(crate) token_keys: TokenKeys,
    lives: LifeClock,
    room: RoomSeen,
    memory: Mutex<Memory>,
    catalog: Mutex<Catalog>,
    catalog_changed: Notify,
    pub(crate) connectors: ConnectorStore,
    pub(crate) domains: DomainStore,
    /// Access keys are made and deleted one at a time.
    pub(crate) access: tokio::sync::Mutex<()>,
    /// Use is counted, and records are erased, by one task at a time.
    usage: tokio::sync::Mutex<Totals>,
    /// Invitations are made and redeemed one at a time.
    pub(crate) invitations: tokio::sync::Mutex<()>,
    /// Ended microVMs are cleared from S3 a few at a time.
    removals: tokio::sync::Semaphore,
    tasks: TaskTracker,
    over: CancellationToken,
    pub(crate) timers_changed: Notify,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the records")]
    Store(#[from] records::Error),
    #[error("cannot set up token keys")]
    Keys(#[from] TokenKeysError),
    #[error("leadership was lost while loading")]
    Lost,
}

impl Term {
    /// Reads everything, then starts the tasks that keep it true and finish what an earlier leader began.
    pub async fn begin(context: Context, leadership: Leadership) -> Result<Arc<Self>, LoadError> {
        let mark = context.store.get(time::MARK).await?.and_then(|found| time::read_mark(&found.value));
        let lives = LifeClock::begin(&context.clock, mark.as_ref(), context.config.trust_clock);
        let now = lives.now();
        let token_keys = TokenKeys::load(&context.store, &leadership, context.clock.now()).await?;
        let mut memory = Memory::new(context.config.retention());
        for (key, value) in context.store.list(codec::PREFIX).await?.0 {
            match codec::decode(&value.value) {
                Ok(microvm) => drop(memory.insert(Arc::new(microvm), value.revision, now)),
                // Never deleted by us: a newer scheduler may know what it means.
                Err(error) => {
                    tracing::error!(key, %error, "a record cannot be read and is left alone");
                    memory.unreadable.extend(key[codec::PREFIX.len()..].parse::<MicrovmId>());
                }
            }
        }
        for (key, mark) in context.store.list(drain::DRAINS).await?.0 {
            if let Ok(host) = key[drain::DRAINS.len()..].parse() {
                let host = memory.hosts.entry(&host, now);
                (host.draining, host.wake_elsewhere) = (true, drain::wakes_elsewhere(&mark.value));
            }
        }
        for (key, value) in context.store.list(vouchers::VOUCHERS).await?.0 {
            if let Ok(host) = key[vouchers::VOUCHERS.len()..].parse() {
                memory.hosts.set_vouchers(&host, vouchers::read(&value.value));
            }
        }
        let usage = Totals::load(&context.store).await?;
        let connectors =
            ConnectorStore::load(&context.store.list(crate::adapters::connectors::PREFIX).await?.0);
        let domains = DomainStore::load(&context.store.list(crate::adapters::domains::PREFIX).await?.0);
        let mut watches = [hosts::HOSTS, "images/", "versions/"].map(|prefix| context.store.watch(prefix));
        let term = Arc::new(Self {
            context,
            leadership,
            token_keys,
            lives,
            room: RoomSeen::default(),
            memory: Mutex::new(memory),
            catalog: Mutex::default(),
            catalog_changed: Notify::new(),
            connectors,
            domains,
            access: tokio::sync::Mutex::default(),
            usage: tokio::sync::Mutex::new(usage),
            invitations: tokio::sync::Mutex::default(),
            removals: tokio::sync::Semaphore::new(snapshots::REMOVALS_CONCURRENT),
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
            timers_changed: Notify::new(),
        });
        for (prefix, watch) in [hosts::HOSTS, "images/", "versions/"].into_iter().zip(&mut watches) {
            tokio::select! {
                biased;
                event = watch.next() => term.apply_records(prefix, event),
                () = term.leadership.lost() => return Err(LoadError::Lost),
            }
        }
        let [hosts, images, versions] = watches;
        term.clone().watch_records(hosts::HOSTS, hosts);
        term.clone().watch_records("images/", images);
        term.clone().watch_records("versions/", versions);
        // Before anything is launched: what ended or went while nobody led must not be found under a name by its successor.
        term.remove_dangling_domains().await;
        term.start_sweeps();
        term.continue_unfinished();
        Ok(term)
    }

    /// Stops every task at once and cuts every subscriber.
    pub async fn stop(&self) {
        self.over.cancel();
        self.memory().subscribers.close();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub fn is_over(&self) -> bool {
        self.over.is_cancelled() || !self.leadership.is_leader()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.context.config
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic inside the lock is a bug; the data of the panicked step is in
        // etcd, and refusing everything afterwards would help nobody.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn handle(&self, id: &MicrovmId) -> Result<Arc<Handle>, Refusal> {
        self.memory().get(id).ok_or_else(|| Refusal::MicrovmNotFound(id.clone()))
    }

    /// Runs a task of the term; it is dropped where it stands when the term is over.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        self.tasks.spawn(async move {
            tokio::select! { biased; () = over.cancelled() => {}, () = task => {} }
        });
    }

    /// Runs what must not stop half-way when a caller hangs up, and waits for it.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let span = tracing::Span::current();
        self.spawn(tracing::Instrument::instrument(
            async move {
                let _ = sender.send(task.await);
            },
            span,
        ));
        // The sender is dropped when the term is over.
        receiver.await.unwrap_or(Err(Refusal::NotLeading))
    }

    fn watch_records(self: Arc<Self>, prefix: &'static str, mut watch: records::Watch) {
        let term = Arc::clone(&self);
        self.spawn(async move {
            loop {
                let event = watch.next().await;
                term.apply_records(prefix, event);
            }
        });
    }

    fn apply_records(self: &Arc<Self>, prefix: &str, event: Event) {
        if prefix == hosts::HOSTS {
            return self.apply_host_records(event);
        }
        self.apply_catalog(prefix, event);
        self.catalog_changed.notify_waiters();
    }

    fn apply_catalog(&self, prefix: &str, event: Event) {
        let mut catalog = self.catalog();
        let entries = match event {
            Event::Put(key, value) => vec![(key, value)],
            Event::Delete(key) => return catalog.delete(&key),
            Event::Snapshot(entries) => {
                if prefix == "images/" {
                    catalog.clear_images();
                } else {
                    catalog.clear_versions();
                }
                entries
            }
        };
        for (key, value) in entries {
            if let Err(error) = catalog.put(&key, &value.value) {
                tracing::warn!(%error, "image record ignored");
            }
        }
    }

    /// An earlier leader may have died between a record and its host call.
    fn continue_unfinished(self: &Arc<Self>) {
        let unfinished: Vec<Arc<Handle>> = {
            let memory = self.memory();
            memory.handles().filter(|handle| is_unfinished(&handle.current())).cloned().collect()
        };
        for handle in unfinished {
            let term = Arc::clone(self);
            let record = handle.current();
            match record.intent {
                Intent::Live if record.state == MicrovmState::Suspended => {
                    self.spawn(async move { term.wake_moved(vec![handle]).await });
                }
                Intent::End => self.spawn(async move { term.end(handle).await }),
                // Same generation: a host that has it already answers with it.
                Intent::Live => self.spawn(async move { term.launch(handle).await }),
            }
        }
    }
}

fn is_unfinished(microvm: &Microvm) -> bool {
    let ending = microvm.intent == Intent::End && microvm.state != MicrovmState::Terminated;
    ending || microvm.state == MicrovmState::Pending || drain::is_moved_asleep(microvm)
}
