//! What is known of every microVM: a table that many requests read and one follower of the scheduler writes.
//!
//! A listing replaces the table without a moment of emptiness: entries are renewed as they come, and what was
//! not renewed goes when the listing ends. While the scheduler is away the table simply stays as it was.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::domain::rate::Bucket;

/// Parts of the table with a lock each.
const SHARDS: usize = 64;

/// What a request may find: the state of a microVM, as far as the edge cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteState {
    Pending,
    /// Running, or on its way to sleep: its host has the last word.
    Running,
    Suspended,
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub microvm_id: Arc<str>,
    /// Name of its image, for own domains of images.
    pub image: Arc<str>,
    /// As far as the edge cares.
    pub state: RouteState,
    pub generation: u64,
    /// Id of the host it is placed on, whose certificate must be the host's that takes a tunnel.
    pub host: Arc<str>,
    /// Where its host takes tunnels; absent while it is not placed.
    pub tunnel_address: Option<Arc<str>>,
    /// True when a request may wake it.
    pub wake: bool,
    /// How often its tokens were revoked; a token of fewer opens nothing.
    pub token_revocations: u64,
}

/// A route and what belongs to it in this process.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The route as it was when it was read.
    pub route: Arc<Route>,
    pub traffic: Arc<Traffic>,
}

/// The bounds of one microVM's endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMicrovm {
    /// Requests in flight at one time.
    pub requests: usize,
    /// 0 means no limit.
    pub requests_per_second: u32,
    /// Both directions together; 0 means no limit.
    pub bytes_per_second: u64,
}

/// What is under way at one microVM's endpoint, and how fast more may come.
#[derive(Debug)]
pub struct Traffic {
    /// Requests in flight.
    pub permits: Arc<Semaphore>,
    pub requests: Bucket,
    /// Bytes to and from the guest.
    pub bytes: Bucket,
}

impl Traffic {
    fn new(bounds: PerMicrovm) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(bounds.requests)),
            requests: Bucket::new(bounds.requests_per_second.into(), now),
            bytes: Bucket::new(bounds.bytes_per_second, now),
        })
    }
}

/// What of a route connections that stand wait for: both numbers only rise.
#[derive(Debug, Clone, Copy)]
pub struct News {
    pub token_revocations: u64,
    pub generation: u64,
}

impl News {
    fn of(route: &Route) -> Self {
        Self { token_revocations: route.token_revocations, generation: route.generation }
    }
}

#[derive(Debug)]
struct Stored {
    entry: Entry,
    /// What of the route is waited for.
    news: watch::Sender<News>,
    listing: u64,
}

#[derive(Debug)]
struct Shard {
    stored: RwLock<HashMap<Uuid, Stored>>,
    changed: watch::Sender<()>,
}

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Uuid, Stored>> {
        // Each change is one insertion or removal: a panic leaves no half of one.
        self.stored.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Uuid, Stored>> {
        self.stored.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All routes, by the label of their endpoints.
#[derive(Debug)]
pub struct Table {
    shards: Vec<Shard>,
    bounds: PerMicrovm,
}

impl Table {
    /// An empty table.
    pub fn new(bounds: PerMicrovm) -> Self {
        let shard = || Shard { stored: RwLock::default(), changed: watch::Sender::new(()) };
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), bounds }
    }

    /// What is known of an endpoint.
    pub fn get(&self, label: Uuid) -> Option<Entry> {
        self.shard(label).read().get(&label).map(|stored| stored.entry.clone())
    }

    /// Subscribes to changes around an endpoint. Neighbours in the table wake
    /// the subscriber too. Subscribe first, read then.
    pub fn changes(&self, label: Uuid) -> watch::Receiver<()> {
        self.shard(label).changed.subscribe()
    }

    /// Notes a microVM as part of a listing, or as a change after it.
    pub fn put(&self, label: Uuid, route: Route, listing: u64) {
        let shard = self.shard(label);
        {
            let mut stored = shard.write();
            let fresh = match stored.remove(&label) {
                Some(old) => {
                    old.news.send_replace(News::of(&route));
                    let entry = Entry { route: Arc::new(route), traffic: old.entry.traffic };
                    Stored { entry, news: old.news, listing }
                }
                None => self.fresh(route, listing),
            };
            stored.insert(label, fresh);
        }
        shard.changed.send_replace(());
    }

    /// Notes a microVM that was asked for by itself, unless the follower has
    /// noted it in the meantime, and returns what is known now.
    pub fn put_if_absent(&self, label: Uuid, route: Route) -> Entry {
        let mut stored = self.shard(label).write();
        stored.entry(label).or_insert_with(|| self.fresh(route, 0)).entry.clone()
    }

    /// Subscribes to the revocations of one endpoint's tokens, and to its microVM's placements.
    pub fn news(&self, label: Uuid) -> Option<watch::Receiver<News>> {
        self.shard(label).read().get(&label).map(|stored| stored.news.subscribe())
    }

    /// Returns when a microVM is placed anew after this generation; never when it is gone instead.
    pub fn placed_after(&self, label: Uuid, generation: u64) -> impl Future<Output = ()> + Send + use<> {
        let news = self.news(label);
        async move {
            if let Some(mut news) = news
                && news.wait_for(|news| news.generation > generation).await.is_ok()
            {
                return;
            }
            std::future::pending().await
        }
    }

    pub fn remove(&self, label: Uuid) {
        let shard = self.shard(label);
        shard.write().remove(&label);
        shard.changed.send_replace(());
    }

    /// Forgets what a listing did not name.
    pub fn finish_listing(&self, listing: u64) {
        for shard in &self.shards {
            shard.write().retain(|_, stored| stored.listing == listing);
            shard.changed.send_replace(());
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn fresh(&self, route: Route, listing: u64) -> Stored {
        let traffic = Traffic::new(self.bounds);
        let news = watch::Sender::new(News::of(&route));
        Stored { entry: Entry { route: Arc::new(route), traffic }, news, listing }
    }

    fn shard(&self, label: Uuid) -> &Shard {
        &self.shards[usize::from(label.as_bytes()[15]) % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PerMicrovm = PerMicrovm { requests: 1, requests_per_second: 0, bytes_per_second: 0 };

    fn route(generation: u64) -> Route {
        Route {
            microvm_id: "microvm-x".into(),
            image: "app".into(),
            state: RouteState::Running,
            generation,
            host: "host-1".into(),
            tunnel_address: None,
            wake: true,
            token_revocations: 0,
        }
    }

    #[test]
    fn a_listing_replaces_without_a_gap() {
        let table = Table::new(ONE);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        table.put(one, route(1), 1);
        table.put(two, route(1), 1);
        table.finish_listing(1);
        let permit = table.get(one).unwrap().traffic.permits.clone().try_acquire_owned().unwrap();
        table.put(one, route(2), 2);
        assert!(table.get(two).is_some());
        table.finish_listing(2);
        assert!(table.get(two).is_none());
        assert_eq!(table.get(one).unwrap().route.generation, 2);
        // The count of requests in flight survives the change.
        assert!(table.get(one).unwrap().traffic.permits.clone().try_acquire_owned().is_err());
        drop(permit);
        assert!(table.get(one).unwrap().traffic.permits.clone().try_acquire_owned().is_ok());
    }

    #[test]
    fn what_the_follower_knows_wins() {
        let table = Table::new(ONE);
        let label = Uuid::from_u128(7);
        assert_eq!(table.put_if_absent(label, route(1)).route.generation, 1);
        assert_eq!(table.put_if_absent(label, route(9)).route.generation, 1);
        table.remove(label);
        assert_eq!(table.len(), 0);
    }

    #[tokio::test]
    async fn a_revocation_reaches_those_who_wait_for_it() {
        let table = Table::new(ONE);
        let label = Uuid::from_u128(7);
        table.put_if_absent(label, route(1));
        let mut news = table.news(label).unwrap();
        table.put(label, route(2), 1);
        assert_eq!(news.borrow().token_revocations, 0);
        table.put(label, Route { token_revocations: 1, ..route(2) }, 1);
        assert_eq!(news.wait_for(|news| news.token_revocations > 0).await.unwrap().token_revocations, 1);
        assert!(table.news(Uuid::from_u128(8)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn another_placement_reaches_those_who_wait_for_it() {
        let table = Table::new(ONE);
        let label = Uuid::from_u128(7);
        table.put_if_absent(label, route(1));
        let second = std::time::Duration::from_secs(1);
        for (known, placed) in [(0, true), (1, false)] {
            let waited = tokio::time::timeout(second, table.placed_after(label, known)).await;
            assert_eq!(waited.is_ok(), placed, "{known}");
        }
        let waiting = table.placed_after(label, 1);
        table.put(label, route(2), 1);
        waiting.await;
        // One that has ended is not placed.
        let waiting = table.placed_after(label, 2);
        table.remove(label);
        assert!(tokio::time::timeout(second, waiting).await.is_err());
    }

    #[tokio::test]
    async fn subscribers_see_changes() {
        let table = Table::new(ONE);
        let label = Uuid::from_u128(7);
        let mut changes = table.changes(label);
        table.put(label, route(1), 1);
        changes.changed().await.unwrap();
    }
}
