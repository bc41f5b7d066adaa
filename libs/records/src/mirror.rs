//! A prefix of etcd as a value in memory, for readers that must not wait for etcd.
//!
//! Until the first listing has come, a reader may wait for it: a bounded time, and
//! only so many readers at once, because anybody's request can make one wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::{Event, Store};

/// Longest wait for the first listing.
const FIRST_LISTING: Duration = Duration::from_secs(5);
/// Readers that may wait at one time.
const WAITING_MAX: usize = 256;

/// The value made of a prefix, as it is now. Clones share it; when the last one is
/// dropped the prefix is followed no longer.
#[derive(Debug)]
pub struct Mirror<V> {
    current: watch::Receiver<Option<Arc<V>>>,
    waiting: Arc<Semaphore>,
    _task: Option<Arc<Follower>>,
}

impl<V> Clone for Mirror<V> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), waiting: Arc::clone(&self.waiting), _task: self._task.clone() }
    }
}

#[derive(Debug)]
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<V: Send + Sync + 'static> Mirror<V> {
    /// Follows every key that starts with `prefix`. `read` makes an entry of a key (with
    /// its prefix) and its bytes, or reports why not and leaves it out; `view` makes the
    /// value of all entries, or says why the value of before stays.
    #[must_use]
    pub fn follow<T: Send + 'static>(
        store: &Store,
        prefix: &str,
        entries: Entries<T>,
        mut view: impl FnMut(&BTreeMap<String, T>) -> Option<V> + Send + 'static,
    ) -> Self {
        let (sender, current) = watch::channel(None);
        let (mut events, mut entries) = (store.watch(prefix), entries);
        let task = tokio::spawn(async move {
            loop {
                entries.apply(events.next().await);
                if let Some(value) = view(&entries.all) {
                    sender.send_replace(Some(Arc::new(value)));
                }
            }
        });
        Self { _task: Some(Arc::new(Follower(task))), ..Self::of(current) }
    }

    /// A mirror of what is sent, for tests of its readers.
    #[must_use]
    pub fn of(current: watch::Receiver<Option<Arc<V>>>) -> Self {
        Self { current, waiting: Arc::new(Semaphore::new(WAITING_MAX)), _task: None }
    }

    /// The value as it is now, for readers that cannot wait; `None` before the first listing.
    #[must_use]
    pub fn now(&self) -> Option<Arc<V>> {
        self.current.borrow().clone()
    }

    /// The value; waits for the first listing. `None` when that does not come in time or
    /// too many wait already.
    pub async fn get(&self) -> Option<Arc<V>> {
        match self.now() {
            Some(known) => Some(known),
            None => self.when(FIRST_LISTING, |_| true).await,
        }
    }

    /// The value once it is as `wanted`. `None` when that does not happen within `wait` or
    /// too many wait already.
    pub async fn when(&self, wait: Duration, wanted: impl Fn(&V) -> bool) -> Option<Arc<V>> {
        let _permit = self.waiting.try_acquire().ok()?;
        let mut current = self.current.clone();
        let arrived = current.wait_for(|value| value.as_deref().is_some_and(&wanted));
        let arrived = tokio::time::timeout(wait, arrived).await.ok()?.ok()?;
        arrived.clone()
    }
}

type Read<T> = Box<dyn FnMut(&str, &[u8]) -> Option<T> + Send>;

/// The entries under a prefix by key, kept current by the events of a watch.
pub struct Entries<T> {
    all: BTreeMap<String, T>,
    entries_max: usize,
    read: Read<T>,
}

impl<T> Entries<T> {
    /// None yet, and never more than `entries_max`: those beyond are left out.
    #[must_use]
    pub fn new(entries_max: usize, read: impl FnMut(&str, &[u8]) -> Option<T> + Send + 'static) -> Self {
        Self { all: BTreeMap::new(), entries_max, read: Box::new(read) }
    }

    #[must_use]
    pub fn all(&self) -> &BTreeMap<String, T> {
        &self.all
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Snapshot(listed) => {
                self.all.clear();
                for (key, found) in listed {
                    self.put(key, &found.value);
                }
            }
            Event::Put(key, found) => self.put(key, &found.value),
            Event::Delete(key) => {
                self.all.remove(&key);
            }
        }
    }

    /// A value that cannot be read takes its place from the one before it: an entry that
    /// turned bad must not go on working.
    fn put(&mut self, key: String, value: &[u8]) {
        self.all.remove(&key);
        if let Some(entry) = (self.read)(&key, value) {
            if self.all.len() >= self.entries_max {
                tracing::error!(key, limit = self.entries_max, "there are too many; one is left out");
                return;
            }
            self.all.insert(key, entry);
        }
    }
}
