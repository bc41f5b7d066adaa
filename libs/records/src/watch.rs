//! A view of a prefix that follows etcd: list, watch from the next revision,
//! list again when the history is gone.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use backoff::Backoff;
use futures::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backend::{Change, Changes};
use crate::store::{prefix_end, versioned};
use crate::{Result, Store, Versioned};

/// Events a slow consumer may leave unread before the watch waits for it.
const QUEUE_EVENTS: usize = 1024;
/// First and longest pause between attempts while etcd is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// After this long without etcd the view is listed again, not continued.
const RELIST_AFTER: Duration = Duration::from_secs(60);

/// A change of the watched prefix. Keys come without root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Everything there is: replaces all that was known.
    Snapshot(Vec<(String, Versioned)>),
    Put(String, Versioned),
    Delete(String),
}

/// Stream of [`Event`]s, the first of which is a [`Event::Snapshot`]. It never ends and reports no errors:
/// while etcd is away it is silent. Dropping it stops it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Watch {
    /// The next change. Cancel safe.
    ///
    /// # Panics
    /// When the watch's task panicked, which is a bug.
    pub async fn next(&mut self) -> Event {
        self.events.recv().await.expect("the task runs as long as its receiver lives")
    }
}

impl Stream for Watch {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Follows every key that starts with `prefix`.
    #[must_use]
    pub fn watch(&self, prefix: &str) -> Watch {
        let (sender, events) = mpsc::channel(QUEUE_EVENTS);
        let task = tokio::spawn(follow(self.clone(), prefix.to_owned(), sender));
        Watch { events, task }
    }
}

/// Why one watch of etcd ended.
enum Ended {
    /// Continue from the next revision.
    Disconnected,
    /// The history is gone, or belongs to another etcd: list again.
    Relist,
    /// Nobody listens.
    Closed,
}

async fn follow(store: Store, prefix: String, sender: mpsc::Sender<Event>) {
    let mut backoff = backoff();
    loop {
        let (entries, revision) = match store.list(&prefix).await {
            Ok(listing) => listing,
            Err(error) => {
                tracing::debug!(%error, prefix, "cannot list; trying again");
                backoff.pause().await;
                continue;
            }
        };
        backoff.reset();
        if sender.send(Event::Snapshot(entries)).await.is_err() {
            return;
        }
        let mut position = Position { revision, contact: Instant::now() };
        loop {
            match watch_once(&store, &prefix, &mut position, &sender).await {
                Ended::Closed => return,
                Ended::Relist => break,
                Ended::Disconnected if position.contact.elapsed() > RELIST_AFTER => break,
                Ended::Disconnected => backoff.pause().await,
            }
            // Contact was made since the last pause: start with short pauses again.
            if position.contact.elapsed() < BACKOFF.1 {
                backoff.reset();
            }
        }
    }
}

struct Position {
    /// Everything up to here was delivered.
    revision: i64,
    /// When etcd was last heard.
    contact: Instant,
}

async fn watch_once(
    store: &Store,
    prefix: &str,
    position: &mut Position,
    sender: &mpsc::Sender<Event>,
) -> Ended {
    let mut stream = match open(store, prefix, position.revision + 1).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, prefix, "cannot watch; trying again");
            return Ended::Disconnected;
        }
    };
    loop {
        let Some(news) = stream.next().await else { return Ended::Disconnected };
        // A revision behind ours is another history (a restored backup).
        if news.lost || news.revision < position.revision {
            return Ended::Relist;
        }
        position.contact = Instant::now();
        for change in news.changes {
            let event = match change {
                Change::Put(pair) => Event::Put(store.relative(&pair.key), versioned(pair)),
                Change::Delete(key) => Event::Delete(store.relative(&key)),
            };
            if sender.send(event).await.is_err() {
                return Ended::Closed;
            }
        }
        // Only now: a crash of the stream in between delivers again, never skips.
        if !news.created {
            position.revision = news.revision;
        }
    }
}

async fn open(store: &Store, prefix: &str, revision: i64) -> Result<Box<dyn Changes>> {
    let start = store.full(prefix)?;
    let end = prefix_end(&start);
    store.backend().watch((start, end), revision).await
}

/// Pauses while etcd is away.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(BACKOFF.0, BACKOFF.1)
}
