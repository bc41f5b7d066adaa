//! Reads, compare-and-set writes and transactions.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::backend::{Backend, Condition, Outcome, Pair, Step, Transaction};
use crate::etcd::Etcd;
use crate::members::{Member, Members};
use crate::options::Options;
use crate::{Error, KEY_BYTES_MAX, LIST_ENTRIES_MAX, Leadership, Lease, Result, VALUE_BYTES_MAX, WRITES_MAX};

/// Entries of a listing's first page; with values at their bound this is 50 MB.
const PAGE_ENTRIES: i64 = 500;
/// Entries of a later page, at most. etcd walks over all that is left of the range for each page, so that with small ones a long
/// listing takes time by the square of its length.
const PAGE_ENTRIES_MAX: i64 = 10_000;
/// What a later page aims at, in bytes, by the mean of those before.
const PAGE_BYTES: usize = 8 << 20;
/// Transactions under way at one time; more wait here. etcd does them one after the other, and whatever else is asked of it,
/// keepalives of leases above all, waits behind those that it has: this many take it a fraction of a second.
const TRANSACTIONS_MAX: usize = 64;
/// How often a listing starts over because its revision was compacted away.
const LIST_ATTEMPTS: usize = 3;

/// A value and the revision that wrote it, for the next compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T = Vec<u8>> {
    pub value: T,
    /// etcd's `mod_revision` of the key.
    pub revision: i64,
}

/// How much etcd holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreSize {
    /// Bytes of all keys and of what was overwritten and is not compacted yet. The file may be larger; it does not shrink, and
    /// etcd uses its free pages first.
    pub used_bytes: u64,
    /// The newest revision.
    pub revision: i64,
    /// Alarms that the member has raised, in its own words.
    pub alarms: Vec<String>,
}

/// Entries of a listing (key without root, in key order) and the revision at which all of them were read.
pub type Listing = (Vec<(String, Versioned)>, i64);

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The key was last written at this revision.
    Revision(i64),
    Any,
}

/// One write of a transaction.
#[derive(Debug, Clone)]
pub enum Write {
    /// Sets a key, optionally tied to a lease id.
    Put {
        /// Key without root.
        key: String,
        /// At most [`VALUE_BYTES_MAX`] bytes.
        value: Vec<u8>,
        expect: Expect,
        /// [`Lease::id`]; the key goes when the lease goes.
        lease: Option<i64>,
    },
    Delete {
        /// Key without root.
        key: String,
        expect: Expect,
    },
    /// Changes nothing: the others are done while the key is not there.
    Absent {
        /// Key without root.
        key: String,
    },
}

impl Write {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Absent { key } => key,
        }
    }

    fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } => *expect,
            Self::Absent { .. } => Expect::Absent,
        }
    }

    /// Whether it would be refused a second time, since it changes what it expects.
    fn is_once(&self) -> bool {
        self.expect() != Expect::Any && !matches!(self, Self::Absent { .. })
    }
}

/// A connection to etcd; clones share it. Connects when first used and again whenever it must, with the certificate and the CA
/// that its files hold by then. A watch that ends with the old connection is taken up where it was.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    /// Those of etcd, where it is etcd: they have users, too.
    members: Option<Members>,
    root: Arc<str>,
    /// Held by a transaction while it is under way.
    turns: Arc<Semaphore>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Prepares a connection; does not wait for etcd to be there.
    ///
    /// # Errors
    /// [`Error::Settings`] for unusable addresses or certificate files.
    pub fn connect(options: impl Into<Options>) -> BoxFuture<'static, Result<Self>> {
        Self::connect_to(options.into())
    }

    fn connect_to(options: Options) -> BoxFuture<'static, Result<Self>> {
        Box::pin(async move {
            let members = Members::new(&options)?;
            let etcd = Arc::new(Etcd(members.clone()));
            Ok(Self { members: Some(members), ..Self::over(etcd, &options.root) })
        })
    }

    /// A store on something that behaves as etcd does. `root` is the prefix of every key.
    #[must_use]
    pub fn over(backend: Arc<dyn Backend>, root: &str) -> Self {
        Self { backend, members: None, root: root.into(), turns: Arc::new(Semaphore::new(TRANSACTIONS_MAX)) }
    }

    /// The same store for a caller that makes one transaction after the other and has to keep up with everybody's: its turn does not
    /// come after theirs.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { turns: Arc::new(Semaphore::new(1)), ..self.clone() }
    }

    /// Reads one key.
    pub fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(async move {
            let full = self.full(key)?;
            Ok(self.backend.get(full).await?.map(versioned))
        })
    }

    /// Reads every key that starts with `prefix`, all at one revision, in pages.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond [`LIST_ENTRIES_MAX`], [`Error::Unavailable`].
    pub fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(async move {
            let mut last = None;
            for _ in 0..LIST_ATTEMPTS {
                match self.list_once(prefix).await {
                    // The pages' revision went between two pages; start over.
                    Err(error @ Error::Refused { .. }) => last = Some(error),
                    other => return other,
                }
            }
            Err(last.unwrap_or_else(|| Error::timeout("list")))
        })
    }

    async fn list_once(&self, prefix: &str) -> Result<Listing> {
        let start = self.full(prefix)?;
        let end = prefix_end(&start);
        let mut next = start;
        let mut entries = Vec::new();
        let (mut revision, mut bytes, mut page_entries) = (0, 0, PAGE_ENTRIES);
        loop {
            let range = (next.clone(), end.clone());
            let page = match self.backend.page(range, page_entries, revision).await {
                // What comes now may be much larger than what came before, and too large for one answer.
                Err(_) if page_entries > PAGE_ENTRIES => {
                    page_entries = PAGE_ENTRIES;
                    continue;
                }
                page => page?,
            };
            if revision == 0 {
                revision = page.revision;
            }
            let more = page.more;
            for pair in page.pairs {
                bytes += pair.key.len() + pair.value.len();
                entries.push((self.relative(&pair.key), versioned(pair)));
            }
            let fit = PAGE_BYTES / (bytes / entries.len().max(1)).max(1);
            page_entries = i64::try_from(fit).unwrap_or(PAGE_ENTRIES).clamp(PAGE_ENTRIES, PAGE_ENTRIES_MAX);
            if entries.len() > LIST_ENTRIES_MAX {
                return Err(Error::TooLarge { what: format!("list of {prefix}"), limit: LIST_ENTRIES_MAX });
            }
            match entries.last() {
                Some((key, _)) if more => {
                    next = self.full(key)?;
                    next.push(0);
                }
                _ => return Ok((entries, revision)),
            }
        }
    }

    /// How many keys start with `prefix`.
    pub fn count<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<usize>> {
        Box::pin(async move {
            let start = self.full(prefix)?;
            let end = prefix_end(&start);
            let count = self.backend.count((start, end)).await?;
            Ok(usize::try_from(count).unwrap_or(0))
        })
    }

    /// How much etcd holds, as the member that answers has it.
    pub fn size(&self) -> BoxFuture<'_, Result<StoreSize>> {
        self.backend.size()
    }

    /// Lets etcd forget what was overwritten before `revision`. A watcher that has not read it yet lists anew.
    ///
    /// # Errors
    /// [`Error::Refused`] when that is done already.
    pub fn compact(&self, revision: i64) -> BoxFuture<'_, Result<()>> {
        self.backend.compact(revision)
    }

    /// Sets a key if it is as expected. Returns its new revision.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::LeadershipLost`], [`Error::TooLarge`]: not
    /// written. [`Error::Unavailable`] says itself.
    pub fn put_if<'a>(
        &'a self,
        key: &str,
        value: impl Into<Vec<u8>>,
        expect: Expect,
        guard: Option<&'a Leadership>,
    ) -> BoxFuture<'a, Result<i64>> {
        let put = Write::Put { key: key.to_owned(), value: value.into(), expect, lease: None };
        self.txn(vec![put], guard)
    }

    /// Removes a key if it is as expected. Returns the revision of the removal.
    pub fn delete_if<'a>(
        &'a self,
        key: &str,
        expect: Expect,
        guard: Option<&'a Leadership>,
    ) -> BoxFuture<'a, Result<i64>> {
        self.txn(vec![Write::Delete { key: key.to_owned(), expect }], guard)
    }

    /// Sets a key that goes when the lease goes, in the place of what is there now. A put of before that arrives late, after its
    /// caller has given it up and put the key again under another lease, does nothing: it would take the key with it when its
    /// own lease ends.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when the lease is over, else as [`Store::put_if`].
    pub fn put_leased<'a>(
        &'a self,
        key: &str,
        value: impl Into<Vec<u8>>,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<i64>> {
        let (key, value) = (key.to_owned(), value.into());
        Box::pin(async move {
            if !lease.is_alive() {
                return Err(Error::LeaseLost);
            }
            let held = self.get(&key).await?;
            let expect = held.map_or(Expect::Absent, |held| Expect::Revision(held.revision));
            let put = Write::Put { key, value, expect, lease: Some(lease.id()) };
            self.txn(vec![put], None).await.map_err(Error::or_lease_lost)
        })
    }

    /// Does all writes or none. With a guard, only while that leadership holds: checked by the local clock
    /// first and by etcd in the same transaction. Returns the revision of the transaction.
    pub fn txn<'a>(
        &'a self,
        writes: Vec<Write>,
        guard: Option<&'a Leadership>,
    ) -> BoxFuture<'a, Result<i64>> {
        self.transact(writes, guard, false)
    }

    /// The same, and of several members at a time if `twice`: when it is not known which of them did it, that is
    /// [`Error::Unavailable`].
    pub(crate) fn transact<'a>(
        &'a self,
        writes: Vec<Write>,
        guard: Option<&'a Leadership>,
        twice: bool,
    ) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            if writes.len() > WRITES_MAX {
                return Err(Error::TooLarge { what: "transaction".to_owned(), limit: WRITES_MAX });
            }
            // Nobody closes it.
            let _turn = self.turns.acquire().await;
            let repeatable = twice && writes.iter().any(Write::is_once);
            let mut transaction = Transaction { repeatable, ..Transaction::default() };
            for write in &writes {
                let key = self.full(write.key())?;
                match write.expect() {
                    Expect::Absent => {
                        transaction.conditions.push(Condition::Created { key: key.clone(), at: 0 });
                    }
                    Expect::Revision(at) => {
                        transaction.conditions.push(Condition::Modified { key: key.clone(), at });
                    }
                    Expect::Any => {}
                }
                transaction.reads.push(key.clone());
                transaction.steps.extend(step(write, key)?);
            }
            if let Some(leadership) = guard {
                if !leadership.is_leader() {
                    return Err(Error::LeadershipLost);
                }
                let key = self.full(leadership.key())?;
                let at = leadership.create_revision();
                transaction.conditions.push(Condition::Created { key: key.clone(), at });
                transaction.reads.push(key);
            }
            match self.backend.transact(transaction).await? {
                Outcome::Done(revision) => Ok(revision),
                Outcome::Refused(found) => Err(why_refused(&writes, guard, &found)),
            }
        })
    }

    /// The instance that holds an election now, if any.
    pub fn leader<'a>(&'a self, election: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async move {
            let value = self.get(&crate::election::election_key(election)).await?;
            Ok(value.map(|versioned| String::from_utf8_lossy(&versioned.value).into_owned()))
        })
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The member of etcd that is asked now.
    pub(crate) fn client(&self) -> Result<Member> {
        let members = self.members.as_ref();
        members
            .map(Members::current)
            .ok_or_else(|| Error::Refused { detail: "there are no users".to_owned() })
    }

    pub(crate) fn full(&self, key: &str) -> Result<Vec<u8>> {
        let full = format!("{}{key}", self.root).into_bytes();
        if full.len() > KEY_BYTES_MAX {
            return Err(Error::TooLarge { what: "key".to_owned(), limit: KEY_BYTES_MAX });
        }
        Ok(full)
    }

    pub(crate) fn relative(&self, key: &[u8]) -> String {
        let key = String::from_utf8_lossy(key);
        key.strip_prefix(&*self.root).unwrap_or(&key).to_owned()
    }
}

pub(crate) fn versioned(pair: Pair) -> Versioned {
    Versioned { value: pair.value, revision: pair.modified }
}

fn step(write: &Write, key: Vec<u8>) -> Result<Option<Step>> {
    match write {
        Write::Put { value, .. } if value.len() > VALUE_BYTES_MAX => {
            Err(Error::TooLarge { what: format!("value of {}", write.key()), limit: VALUE_BYTES_MAX })
        }
        Write::Put { value, lease, .. } => Ok(Some(Step::Put { key, value: value.clone(), lease: *lease })),
        Write::Delete { .. } => Ok(Some(Step::Delete { key })),
        Write::Absent { .. } => Ok(None),
    }
}

/// Reads the revisions a refused transaction returned: leadership first, then
/// the first key that is not as expected.
fn why_refused(writes: &[Write], guard: Option<&Leadership>, found: &[Option<Pair>]) -> Error {
    let revisions = |index: usize| match found.get(index) {
        Some(Some(pair)) => (pair.created, pair.modified),
        _ => (0, 0),
    };
    if let Some(leadership) = guard
        && revisions(writes.len()).0 != leadership.create_revision()
    {
        leadership.end();
        return Error::LeadershipLost;
    }
    let differs = writes.iter().enumerate().find(|(index, write)| match write.expect() {
        Expect::Absent => revisions(*index).0 != 0,
        Expect::Revision(revision) => revisions(*index).1 != revision,
        Expect::Any => false,
    });
    let key = differs.map_or("", |(_, write)| write.key()).to_owned();
    Error::Conflict { key }
}

/// First key after every key with this prefix.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
