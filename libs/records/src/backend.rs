//! What a [`crate::Store`] stands on, call by call: etcd, or in a simulation something that behaves as etcd does and fails when it
//! is told to. Keys are whole here, root included. Every call ends within its time, [`CALL_TIMEOUT`] for each member of etcd that
//! is asked.

use std::time::Duration;

use futures::future::BoxFuture;

use crate::{Error, Result, StoreSize};

/// Longest wait for one answer of etcd.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for an answer at most `timeout`.
pub async fn within<T>(what: &str, timeout: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::timeout(what)),
    }
}

/// A key as etcd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub key: Vec<u8>,
    /// Empty where only keys were asked for.
    pub value: Vec<u8>,
    /// Revision that created the key.
    pub created: i64,
    /// Revision that wrote it last.
    pub modified: i64,
}

/// First key, and the first key after the last one.
pub type Range = (Vec<u8>, Vec<u8>);

/// A part of a listing, in key order.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub pairs: Vec<Pair>,
    /// Whether the range has more than was asked for.
    pub more: bool,
    /// The newest revision when this was read.
    pub revision: i64,
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key was created at this revision; 0: there is none.
    Created { key: Vec<u8>, at: i64 },
    /// The key was last written at this revision.
    Modified { key: Vec<u8>, at: i64 },
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Put { key: Vec<u8>, value: Vec<u8>, lease: Option<i64> },
    Delete { key: Vec<u8> },
}

/// All steps or none.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    pub conditions: Vec<Condition>,
    pub steps: Vec<Step>,
    /// Keys that are read when a condition does not hold.
    pub reads: Vec<Vec<u8>>,
    /// Whether these reads bring values.
    pub values: bool,
    /// Whether it may be sent twice: once done it is refused from then on, and its sender can tell its own doing from others'.
    pub repeatable: bool,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is this revision.
    Done(i64),
    /// A condition does not hold; its reads, in their order.
    Refused(Vec<Option<Pair>>),
}

/// A change of a watched range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(Pair),
    Delete(Vec<u8>),
}

/// One message of a watch.
#[derive(Debug, Clone, Default)]
pub struct News {
    pub changes: Vec<Change>,
    /// Everything up to here has been told, unless it is the watch's own beginning.
    pub revision: i64,
    /// The first message, which tells nothing yet.
    pub created: bool,
    /// The watch ends: what it should have told is forgotten.
    pub lost: bool,
}

/// A lease's stream of keepalives.
pub trait Keeper: Send {
    /// Sends a keepalive and waits for its answer: the seconds that the lease has; none when it is gone.
    fn renew(&mut self) -> BoxFuture<'_, Result<i64>>;
}

/// A watch.
pub trait Changes: Send {
    /// The next message; `None` once the connection is over. Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Option<News>>;
}

/// The calls of etcd that a store makes.
pub trait Backend: Send + Sync + 'static {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'_, Result<Option<Pair>>>;

    /// At most `limit` keys as of a revision; 0: as they are now.
    fn page(&self, range: Range, limit: i64, at: i64) -> BoxFuture<'_, Result<Page>>;

    fn count(&self, range: Range) -> BoxFuture<'_, Result<i64>>;

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome>>;

    fn size(&self) -> BoxFuture<'_, Result<StoreSize>>;

    fn compact(&self, revision: i64) -> BoxFuture<'_, Result<()>>;

    /// A lease of so many seconds; its id.
    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<i64>>;

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<()>>;

    /// Opens the stream of keepalives, one for each `interval`, and has the first one answered.
    fn keep_alive(&self, lease: i64, interval: Duration) -> BoxFuture<'_, Result<Box<dyn Keeper>>>;

    /// Everything that happens in a range from a revision on.
    fn watch(&self, range: Range, from: i64) -> BoxFuture<'_, Result<Box<dyn Changes>>>;
}
