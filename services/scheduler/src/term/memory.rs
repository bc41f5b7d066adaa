//! Every record in memory, with the indexes that calls need. All changes go through [`Memory::insert`],
//! [`Memory::publish`] and [`Memory::forget`], which keep indexes, bookings and timers in step.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use model::state::MicrovmState;
use model::{HostId, ImageName, MicrovmId, VersionNumber};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::drain::Unmoved;
use super::subscribers::{Change, Subscribers};
use crate::domain::hosts::Hosts;
use crate::domain::idempotency::{Digest, TokenUse};
use crate::domain::microvm::Microvm;
use crate::domain::paging::Position;
use crate::domain::timers::{self, Timers};
use crate::refusal::Refusal;

/// Most calls that wait for one microVM's operation.
const WAITING_MAX: usize = 16;

/// Most records a page looks at while a filter passes them over: the leader's memory is locked meanwhile.
const PAGE_LOOKS_MAX: usize = 10_000;

/// Of what is gone through in the table's order: the same in each run, so that a simulation can be repeated. The keys are ids that
/// this program draws, so nobody can choose such that collide.
type SameOrder = BuildHasherDefault<DefaultHasher>;

/// One microVM: its record and the locks around it.
#[derive(Debug)]
pub struct Handle {
    pub id: MicrovmId,
    record: watch::Sender<Arc<Microvm>>,
    /// Revision in etcd; whoever holds the lock may write.
    pub revision: Arc<Mutex<i64>>,
    /// One launch, suspend, wake or end at a time.
    operation: Mutex<()>,
    waiting: AtomicUsize,
    /// Set when the end is decided: what runs gives way.
    pub ending: CancellationToken,
}

impl Handle {
    pub fn current(&self) -> Arc<Microvm> {
        Arc::clone(&self.record.borrow())
    }

    /// Waits for its turn to operate on the microVM.
    pub async fn operate(&self) -> Result<MutexGuard<'_, ()>, Refusal> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Busy(format!("the MicroVM {}", self.id)));
        }
        let _waiting = Waiting(&self.waiting);
        Ok(self.operation.lock().await)
    }

    /// Its turn to end the microVM; never refused.
    pub async fn operate_end(&self) -> MutexGuard<'_, ()> {
        self.operation.lock().await
    }

    /// True when nothing operates on it.
    pub fn is_idle(&self) -> bool {
        self.operation.try_lock().is_ok()
    }

    /// Runs an operation until it is done or the microVM's end is decided. An operation that gives way is
    /// dropped where it stands; what its host does of it meanwhile is undone by the end.
    pub async fn unless_ending<T>(
        &self,
        operation: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        tokio::select! {
            biased;
            done = operation => done,
            () = self.ending.cancelled() => Err(Refusal::Terminated(self.id.clone())),
        }
    }

    /// Waits until the record is as wanted.
    pub async fn until(&self, wanted: impl FnMut(&Arc<Microvm>) -> bool) -> Arc<Microvm> {
        let mut records = self.record.subscribe();
        match records.wait_for(wanted).await {
            Ok(record) => Arc::clone(&record),
            Err(_) => self.current(),
        }
    }
}

/// Counts a waiting call for as long as it waits, also when it gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub struct Memory {
    microvms: HashMap<MicrovmId, Arc<Handle>, SameOrder>,
    by_start: BTreeSet<Position>,
    by_image: HashMap<ImageName, BTreeSet<Position>>,
    by_host: HashMap<HostId, HashSet<MicrovmId, SameOrder>>,
    tokens: HashMap<Digest, MicrovmId>,
    ended: BTreeSet<(SystemTime, MicrovmId)>,
    retention: Duration,
    /// Baseline memory of the microVMs that have not ended, MiB.
    allocated_mib: u64,
    /// MicroVMs whose records cannot be read: nobody may touch them.
    pub unreadable: HashSet<MicrovmId>,
    /// Why microVMs of draining hosts have not moved.
    pub(crate) unmoved: HashMap<MicrovmId, Unmoved>,
    /// Hosts of which microVMs are just being moved.
    pub draining: HashSet<HostId>,
    pub hosts: Hosts,
    pub timers: Timers,
    pub subscribers: Subscribers,
}

impl Memory {
    /// Nothing yet. `retention` is how long terminated records are kept.
    pub fn new(retention: Duration) -> Self {
        Self {
            microvms: HashMap::default(),
            by_start: BTreeSet::new(),
            by_image: HashMap::new(),
            by_host: HashMap::new(),
            tokens: HashMap::new(),
            ended: BTreeSet::new(),
            retention,
            allocated_mib: 0,
            unreadable: HashSet::new(),
            unmoved: HashMap::new(),
            draining: HashSet::new(),
            hosts: Hosts::default(),
            timers: Timers::default(),
            subscribers: Subscribers::default(),
        }
    }

    pub fn get(&self, id: &MicrovmId) -> Option<Arc<Handle>> {
        self.microvms.get(id).cloned()
    }

    /// The microVM launched with a token, and how the token was used.
    pub fn by_token(&self, token: &Digest) -> Option<(Arc<Handle>, TokenUse)> {
        let handle = self.get(self.tokens.get(token)?)?;
        let used = handle.current().token?;
        Some((handle, used))
    }

    pub fn handles(&self) -> impl Iterator<Item = &Arc<Handle>> {
        self.microvms.values()
    }

    /// The microVMs placed on a host and not ended.
    pub fn on_host(&self, host: &HostId) -> Vec<Arc<Handle>> {
        let ids = self.by_host.get(host).into_iter().flatten();
        ids.filter_map(|id| self.get(id)).collect()
    }

    /// MicroVMs that have not ended.
    pub fn living(&self) -> usize {
        self.microvms.len() - self.ended.len()
    }

    /// Baseline memory of the microVMs that have not ended, suspended ones included, MiB.
    pub fn allocated_mib(&self) -> u64 {
        self.allocated_mib
    }

    /// One page of microVMs, newest first, and where the next one begins when more
    /// may follow. A page may be short, even empty, when few of many match.
    pub fn page(
        &self,
        image: Option<&ImageName>,
        version: Option<VersionNumber>,
        after: Option<Position>,
        size: usize,
    ) -> (Vec<Arc<Microvm>>, Option<Position>) {
        let empty = BTreeSet::new();
        let index = match image {
            Some(image) => self.by_image.get(image).unwrap_or(&empty),
            None => &self.by_start,
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Vec::new();
        let mut last: Option<&Position> = None;
        for (looked_at, position) in index.range((from, Bound::Unbounded)).enumerate() {
            if page.len() == size || looked_at == PAGE_LOOKS_MAX {
                return (page, last.cloned());
            }
            last = Some(position);
            let Some(microvm) = self.microvms.get(&position.id).map(|handle| handle.current()) else {
                continue;
            };
            if version.is_none_or(|version| version == microvm.spec.version) {
                page.push(microvm);
            }
        }
        (page, None)
    }

    /// Takes in a record. Announces nothing: it may not be durable yet.
    pub fn insert(&mut self, microvm: Arc<Microvm>, revision: i64, now: SystemTime) -> Arc<Handle> {
        let id = microvm.id.clone();
        let position = Position::new(microvm.start_time, id.clone());
        self.by_image.entry(microvm.spec.image.name.clone()).or_default().insert(position.clone());
        self.by_start.insert(position);
        if let Some(used) = microvm.token {
            self.tokens.insert(used.token, id.clone());
        }
        self.account(None, Some(&microvm), now);
        let handle = Arc::new(Handle {
            id: id.clone(),
            record: watch::Sender::new(microvm),
            revision: Arc::new(Mutex::new(revision)),
            operation: Mutex::new(()),
            waiting: AtomicUsize::new(0),
            ending: CancellationToken::new(),
        });
        self.microvms.insert(id, Arc::clone(&handle));
        handle
    }

    /// Replaces a record and tells everybody.
    pub fn publish(&mut self, handle: &Handle, microvm: Arc<Microvm>, now: SystemTime) {
        let before = handle.current();
        if before.placement != microvm.placement {
            self.unmoved.remove(&microvm.id);
        }
        self.account(Some(&before), Some(&microvm), now);
        handle.record.send_replace(microvm);
        self.announce(handle);
    }

    /// Replaces a record for its running totals only; nobody is told.
    pub fn publish_totals(&mut self, handle: &Handle, microvm: Arc<Microvm>) {
        handle.record.send_if_modified(|record| {
            *record = microvm;
            false
        });
    }

    /// Tells subscribers how a microVM stands.
    pub fn announce(&mut self, handle: &Handle) {
        let microvm = handle.current();
        let change = Change { tunnel_address: self.tunnel_address(&microvm), microvm, deleted: false };
        self.subscribers.notify(&change);
    }

    pub fn forget(&mut self, id: &MicrovmId, now: SystemTime) {
        let Some(handle) = self.microvms.remove(id) else {
            return;
        };
        let microvm = handle.current();
        let position = Position::new(microvm.start_time, id.clone());
        self.by_start.remove(&position);
        if let Some(index) = self.by_image.get_mut(&microvm.spec.image.name) {
            index.remove(&position);
            if index.is_empty() {
                self.by_image.remove(&microvm.spec.image.name);
            }
        }
        if let Some(used) = microvm.token
            && self.tokens.get(&used.token) == Some(id)
        {
            self.tokens.remove(&used.token);
        }
        self.unmoved.remove(id);
        self.account(Some(&microvm), None, now);
        self.subscribers.notify(&Change { microvm, tunnel_address: String::new(), deleted: true });
    }

    /// Current microVMs with their tunnel addresses, and a queue of what changes from this instant on.
    pub fn subscribe(
        &mut self,
        only: Option<&MicrovmId>,
    ) -> (Vec<Change>, tokio::sync::mpsc::Receiver<Change>) {
        let handles: Vec<Arc<Handle>> = match only {
            Some(id) => self.get(id).into_iter().collect(),
            None => self.microvms.values().cloned().collect(),
        };
        let changes = handles.iter().map(|handle| {
            let microvm = handle.current();
            Change { tunnel_address: self.tunnel_address(&microvm), microvm, deleted: false }
        });
        let current = changes.collect();
        (current, self.subscribers.add(only.cloned()))
    }

    /// The oldest ended microVMs beyond `keep`.
    pub fn surplus(&self, keep: usize, limit: usize) -> Vec<MicrovmId> {
        let surplus = self.ended.len().saturating_sub(keep).min(limit);
        self.ended.iter().take(surplus).map(|(_, id)| id.clone()).collect()
    }

    /// Keeps bookings, host index, ended set and timers in step with one record.
    fn account(&mut self, before: Option<&Microvm>, after: Option<&Microvm>, now: SystemTime) {
        if let Some(before) = before {
            let host = &before.placement.host;
            if let Some(holding) = before.holding() {
                self.hosts.book(host, holding, false, now);
            }
            if let Some(ids) = self.by_host.get_mut(host) {
                ids.remove(&before.id);
                if ids.is_empty() {
                    self.by_host.remove(host);
                }
            }
            match before.terminate_time {
                Some(ended) => drop(self.ended.remove(&(ended, before.id.clone()))),
                None => self.allocated_mib -= u64::from(before.spec.baseline_mib),
            }
            self.timers.set(&before.id, None);
        }
        if let Some(after) = after {
            let host = &after.placement.host;
            if let Some(holding) = after.holding() {
                self.hosts.book(host, holding, true, now);
            }
            match after.terminate_time {
                Some(ended) => drop(self.ended.insert((ended, after.id.clone()))),
                None => {
                    self.allocated_mib += u64::from(after.spec.baseline_mib);
                    // A host that did not come back counts as gone from now on.
                    self.hosts.entry(host, now);
                    self.by_host.entry(host.clone()).or_default().insert(after.id.clone());
                }
            }
            let due = timers::next(after, self.retention).map(|(deadline, _)| deadline);
            self.timers.set(&after.id, due);
        }
    }

    fn tunnel_address(&self, microvm: &Microvm) -> String {
        if microvm.state == MicrovmState::Terminated {
            return String::new();
        }
        let host = self.hosts.get(&microvm.placement.host);
        host.map_or_else(String::new, |host| host.spec.tunnel_address.clone())
    }
}
