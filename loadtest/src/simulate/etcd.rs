//! etcd, as far as its clients can tell: one revision after the other, transactions, leases, watches, compaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use records::backend::{
    Backend, CALL_TIMEOUT, Change, Changes, Condition, Keeper, News, Outcome, Page, Pair, Range, Step,
    Transaction, within,
};
use records::{Error, Result, StoreSize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::checker::RECORDS;
use super::net::silence;
use super::plan::Plant;
use super::world::{Node, Process, Shared, lock};

/// How often a watch looks whether its connection is still there.
const WATCH_LOOK: Duration = Duration::from_secs(2);
/// How often leases are looked at.
const LEASE_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
struct Entry {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    lease: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    life: Duration,
    end: Instant,
}

#[derive(Debug, Default)]
struct State {
    revision: i64,
    entries: BTreeMap<Vec<u8>, Entry>,
    leases: BTreeMap<i64, Lease>,
    leases_granted: i64,
    /// Every change since the revision that was compacted last.
    history: Vec<(i64, Change)>,
    compacted: i64,
}

/// What etcd holds.
pub struct Keys {
    state: Mutex<State>,
    /// Wakes watches in the order in which they wait.
    changed: Notify,
}

impl Default for Keys {
    fn default() -> Self {
        Self { state: Mutex::new(State { revision: 1, ..State::default() }), changed: Notify::new() }
    }
}

impl State {
    fn pair(&self, key: &[u8], values: bool) -> Option<Pair> {
        let entry = self.entries.get(key)?;
        let value = if values { entry.value.clone() } else { Vec::new() };
        Some(Pair { key: key.to_vec(), value, created: entry.created, modified: entry.modified })
    }

    fn has_lease_of(&self, step: &Step) -> bool {
        match step {
            Step::Put { lease: Some(lease), .. } => self.leases.contains_key(lease),
            Step::Put { .. } | Step::Delete { .. } => true,
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Created { key, at } => self.entries.get(key).map_or(0, |entry| entry.created) == *at,
            Condition::Modified { key, at } => self.entries.get(key).map_or(0, |entry| entry.modified) == *at,
        }
    }
}

impl Keys {
    /// The value of a key as it is now.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        lock(&self.state).entries.get(key.as_bytes()).map(|entry| entry.value.clone())
    }

    /// Every key under a prefix with its value.
    pub fn under(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let state = lock(&self.state);
        let from = state.entries.range(prefix.as_bytes().to_vec()..);
        from.take_while(|(key, _)| key.starts_with(prefix.as_bytes()))
            .map(|(key, entry)| (String::from_utf8_lossy(key).into_owned(), entry.value.clone()))
            .collect()
    }

    /// Sets a key before anything runs.
    pub fn set(&self, key: &str, value: Vec<u8>) {
        let mut state = lock(&self.state);
        state.revision += 1;
        let revision = state.revision;
        let entry = Entry { value, created: revision, modified: revision, lease: None };
        state.entries.insert(key.as_bytes().to_vec(), entry);
    }

    /// Forgets every older revision.
    pub fn compact_now(&self) {
        let mut state = lock(&self.state);
        state.compacted = state.revision;
        state.history.clear();
    }
}

/// Has leases end when their time is over, for ever.
pub async fn expire_leases(world: Shared) {
    loop {
        tokio::time::sleep(LEASE_LOOK).await;
        if lock(&world.net).is_down(Node::Etcd) {
            continue;
        }
        let early = world.is_planted(Plant::LeaseEndsEarly);
        let over: Vec<i64> = {
            let state = lock(&world.keys.state);
            let end = |lease: &Lease| if early { lease.end - lease.life.mul_f32(0.8) } else { lease.end };
            state.leases.iter().filter(|(_, one)| end(one) <= Instant::now()).map(|(id, _)| *id).collect()
        };
        for id in over {
            world.tell("etcd", format_args!("lease {id} has ended"));
            end_lease(&world, id);
        }
    }
}

fn end_lease(world: &Shared, id: i64) {
    let keys: Vec<Vec<u8>> = {
        let mut state = lock(&world.keys.state);
        state.leases.remove(&id);
        let tied = state.entries.iter().filter(|(_, entry)| entry.lease == Some(id));
        tied.map(|(key, _)| key.clone()).collect()
    };
    if !keys.is_empty() {
        apply(world, keys.into_iter().map(|key| Step::Delete { key }).collect());
    }
}

/// Does the steps as one revision.
fn apply(world: &Shared, steps: Vec<Step>) -> i64 {
    let mut state = lock(&world.keys.state);
    state.revision += 1;
    let revision = state.revision;
    for step in steps {
        match step {
            Step::Put { key, value, lease } => {
                let before = state.entries.get(&key);
                world.check_write(&key, before.map(|entry| entry.value.as_slice()), Some(&value));
                let created = before.map_or(revision, |entry| entry.created);
                let pair = Pair { key: key.clone(), value: value.clone(), created, modified: revision };
                state.history.push((revision, Change::Put(pair)));
                state.entries.insert(key, Entry { value, created, modified: revision, lease });
            }
            Step::Delete { key } => {
                if let Some(entry) = state.entries.remove(&key) {
                    world.check_write(&key, Some(&entry.value), None);
                    state.history.push((revision, Change::Delete(key)));
                }
            }
        }
    }
    drop(state);
    world.keys.changed.notify_waiters();
    revision
}

/// One process's connection to etcd.
pub struct Connection {
    world: Shared,
    process: Process,
}

impl Connection {
    pub fn new(world: &Shared, process: &Process) -> Self {
        Self { world: Arc::clone(world), process: process.clone() }
    }

    /// Makes a call, which may get lost, or its answer.
    async fn call<T: 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        within(what, CALL_TIMEOUT, self.call_now(what, act)).await
    }

    async fn call_now<T: 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (world, from) = (&self.world, self.process.node);
        world.step(&self.process).await;
        let fate = world.fate(from, Node::Etcd);
        tokio::time::sleep(fate.there).await;
        if fate.refused {
            return Err(Error::Unavailable { determinate: true, detail: "connection refused".to_owned() });
        }
        if fate.lost || !world.reaches(from, Node::Etcd) {
            world.tell(from, format_args!("{what} to etcd is lost"));
            if let Some(late) = fate.late {
                let world = Arc::clone(world);
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    if world.reaches(from, Node::Etcd) {
                        world.tell("etcd", format_args!("hears {what} of {from}, late"));
                        drop(act(&world));
                    }
                });
            }
            return silence().await;
        }
        world.step(&self.process).await;
        let answer = act(world);
        tokio::time::sleep(fate.back).await;
        if fate.answer_lost || !world.reaches(from, Node::Etcd) {
            world.tell(from, format_args!("etcd's answer to {what} is lost"));
            return silence().await;
        }
        world.step(&self.process).await;
        answer
    }
}

fn transact(world: &Shared, from: Node, transaction: Transaction) -> Result<Outcome> {
    let Transaction { conditions, steps, reads, values, repeatable: _ } = transaction;
    let (holds, leased) = {
        let state = lock(&world.keys.state);
        let holds = conditions.iter().all(|condition| state.holds(condition));
        (
            holds || world.is_planted(Plant::ConditionsIgnored),
            steps.iter().all(|step| state.has_lease_of(step)),
        )
    };
    let of_records = steps.iter().any(|step| starts_with(step, RECORDS));
    if !holds {
        world.tell(from, "etcd refuses a transaction");
        let state = lock(&world.keys.state);
        return Ok(Outcome::Refused(reads.iter().map(|key| state.pair(key, values)).collect()));
    }
    if !leased {
        return Err(Error::Refused { detail: "NotFound: etcdserver: requested lease not found".to_owned() });
    }
    for step in &steps {
        match step {
            Step::Put { key, .. } => world.tell(from, format_args!("put {}", shown(key))),
            Step::Delete { key } => world.tell(from, format_args!("delete {}", shown(key))),
        }
    }
    if of_records && world.is_planted(Plant::WriteForgotten) && world.draw(|chance| chance.per_mille(100)) {
        let mut state = lock(&world.keys.state);
        state.revision += 1;
        return Ok(Outcome::Done(state.revision));
    }
    Ok(Outcome::Done(apply(world, steps)))
}

/// A key without what the product draws itself: the ids of token keys.
fn shown(key: &[u8]) -> String {
    let key = String::from_utf8_lossy(key);
    match key.rsplit_once("keys/") {
        Some((prefix, _)) => format!("{prefix}keys/..."),
        None => key.into_owned(),
    }
}

fn starts_with(step: &Step, prefix: &str) -> bool {
    let (Step::Put { key, .. } | Step::Delete { key }) = step;
    key.starts_with(prefix.as_bytes())
}

impl Backend for Connection {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'_, Result<Option<Pair>>> {
        Box::pin(self.call("get", move |world| Ok(lock(&world.keys.state).pair(&key, true))))
    }

    fn page(&self, (start, end): Range, limit: i64, at: i64) -> BoxFuture<'_, Result<Page>> {
        Box::pin(self.call("list", move |world| {
            let state = lock(&world.keys.state);
            if at != 0 && at != state.revision {
                // Old revisions are not kept here: as if they were compacted between two pages.
                return Err(Error::Refused { detail: "required revision has been compacted".to_owned() });
            }
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let mut keys = state.entries.range(start..end).map(|(key, _)| key);
            let pairs = keys.by_ref().take(limit).filter_map(|key| state.pair(key, true)).collect();
            Ok(Page { pairs, more: keys.next().is_some(), revision: state.revision })
        }))
    }

    fn count(&self, (start, end): Range) -> BoxFuture<'_, Result<i64>> {
        Box::pin(self.call("count", move |world| {
            let count = lock(&world.keys.state).entries.range(start..end).count();
            Ok(i64::try_from(count).unwrap_or(i64::MAX))
        }))
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome>> {
        let from = self.process.node;
        Box::pin(self.call("a transaction", move |world| transact(world, from, transaction)))
    }

    fn size(&self) -> BoxFuture<'_, Result<StoreSize>> {
        Box::pin(self.call("status", |world| {
            Ok(StoreSize { revision: lock(&world.keys.state).revision, ..StoreSize::default() })
        }))
    }

    fn compact(&self, _revision: i64) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.call("compact", |world| {
            world.keys.compact_now();
            Ok(())
        }))
    }

    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<i64>> {
        Box::pin(self.call("grant", move |world| {
            let mut state = lock(&world.keys.state);
            state.leases_granted += 1;
            let id = state.leases_granted;
            let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
            state.leases.insert(id, Lease { life, end: Instant::now() + life });
            Ok(id)
        }))
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.call("revoke", move |world| {
            end_lease(world, lease);
            Ok(())
        }))
    }

    fn keep_alive(&self, lease: i64, _interval: Duration) -> BoxFuture<'_, Result<Box<dyn Keeper>>> {
        Box::pin(async move {
            let connection = Self::new(&self.world, &self.process);
            let mut keeper = Keepalives { connection, lease };
            match keeper.renew().await? {
                0 => Err(Error::Unavailable { determinate: true, detail: "lease not found".to_owned() }),
                _ => Ok(Box::new(keeper) as Box<dyn Keeper>),
            }
        })
    }

    fn watch(&self, range: Range, from: i64) -> BoxFuture<'_, Result<Box<dyn Changes>>> {
        Box::pin(async move {
            self.call("watch", |_| Ok(())).await?;
            let connection = Self::new(&self.world, &self.process);
            let watching = Watching { connection, range, next: from, began: false };
            Ok(Box::new(watching) as Box<dyn Changes>)
        })
    }
}

struct Keepalives {
    connection: Connection,
    lease: i64,
}

impl Keeper for Keepalives {
    fn renew(&mut self) -> BoxFuture<'_, Result<i64>> {
        let lease = self.lease;
        Box::pin(self.connection.call("keepalive", move |world| {
            let mut state = lock(&world.keys.state);
            let Some(found) = state.leases.get_mut(&lease) else { return Ok(0) };
            found.end = Instant::now() + found.life;
            Ok(i64::try_from(found.life.as_secs()).unwrap_or(1))
        }))
    }
}

struct Watching {
    connection: Connection,
    range: Range,
    next: i64,
    began: bool,
}

impl Watching {
    /// What is new, if anything is.
    fn news(&mut self) -> Option<News> {
        let world = Arc::clone(&self.connection.world);
        let mut news = News::default();
        {
            let state = lock(&world.keys.state);
            news.revision = state.revision;
            if self.next <= state.compacted {
                news.lost = true;
                return Some(news);
            }
            let begin = state.history.partition_point(|(revision, _)| *revision < self.next);
            let of_range = |change: &Change| {
                let (Change::Put(Pair { key, .. }) | Change::Delete(key)) = change;
                self.range.0 <= *key && *key < self.range.1
            };
            let new = state.history[begin..].iter().filter(|(_, change)| of_range(change));
            news.changes = new.map(|(_, change)| change.clone()).collect();
        }
        self.next = news.revision + 1;
        if world.is_planted(Plant::WatchSkips) && world.draw(|chance| chance.per_mille(100)) {
            news.changes.pop();
        }
        (!news.changes.is_empty()).then_some(news)
    }
}

impl Changes for Watching {
    fn next(&mut self) -> BoxFuture<'_, Option<News>> {
        Box::pin(async move {
            let (world, process) = (Arc::clone(&self.connection.world), self.connection.process.clone());
            if !self.began {
                self.began = true;
                return Some(News { created: true, revision: self.next, ..News::default() });
            }
            loop {
                if !world.reaches(process.node, Node::Etcd) {
                    tokio::time::sleep(WATCH_LOOK).await;
                    if !world.reaches(process.node, Node::Etcd) {
                        return None;
                    }
                }
                if lock(&world.net).is_deaf(process.node) {
                    tokio::time::sleep(WATCH_LOOK).await;
                    continue;
                }
                let changed = world.keys.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(news) = self.news() {
                    let fate = world.fate(Node::Etcd, process.node);
                    // News are late in all ways, but one connection keeps their order.
                    tokio::time::sleep(fate.there).await;
                    world.step(&process).await;
                    return if fate.lost { None } else { Some(news) };
                }
                let _ = tokio::time::timeout(WATCH_LOOK, changed).await;
            }
        })
    }
}
