//! What microVMs used, by day and image, kept under `usage/<day>/<image>`: see [`crate::domain::usage`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::common::v1::Metering;
use model::ImageName;
use prost::Message as _;
use records::{Committed, Expect, Store, Tenure, WRITES_MAX, Write};

use super::Term;
use super::memory::Handle;
use crate::adapters::microvms as codec;
use crate::domain::usage::{self, ByImage, Day};
use crate::refusal::Refusal;

const PREFIX: &str = "usage/";
/// The day up to which all use is counted.
const COUNTED: &str = "usage-counted";
/// Records in one transaction; each may bring a total of its own.
const BATCH_MAX: usize = WRITES_MAX / 2;
/// How often the leader looks whether a day is over, and whether one is too old.
const LOOK: Duration = Duration::from_secs(10);
/// Days that are kept.
pub const DAYS_KEPT: u64 = 400;

/// A total and the revision that wrote it.
type Total = (Metering, i64);

/// The totals of the days, as etcd has them.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    days: BTreeMap<(Day, ImageName), Total>,
    /// All that was used before this day is counted.
    counted: Option<Day>,
}

/// What becomes of a record once its use is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Keep,
    Erase,
}

impl Totals {
    pub async fn load(store: &Store) -> records::Result<Self> {
        let counted = store.get(COUNTED).await?;
        let counted = counted.and_then(|found| String::from_utf8(found.value).ok()?.parse().ok().map(Day));
        let mut days = BTreeMap::new();
        for (key, found) in store.list(PREFIX).await?.0 {
            let named = key[PREFIX.len()..].split_once('/');
            let named = named.and_then(|(day, image)| Some((Day(day.parse().ok()?), image.parse().ok()?)));
            match (named, Metering::decode(&*found.value)) {
                (Some(named), Ok(total)) => drop(days.insert(named, (total, found.revision))),
                _ => tracing::error!(key, "a day's total cannot be read and is left alone"),
            }
        }
        Ok(Self { days, counted })
    }

    /// The writes that add what was used to a day's totals, and the totals that they leave.
    fn raise(&self, day: Day, used: ByImage) -> (Vec<Write>, Vec<(ImageName, Metering)>) {
        let raised = used.into_iter().map(|(image, used)| {
            let found = self.days.get(&(day, image.clone()));
            let (expect, total) = match found {
                Some((total, revision)) => (Expect::Revision(*revision), total.plus(used)),
                None => (Expect::Absent, used),
            };
            let value = total.encode_to_vec();
            (Write::Put { key: key(day, &image), value, expect, lease: None }, (image, total))
        });
        raised.unzip()
    }

    /// The day that use counts for now: while the day before is not counted, what is open is that day's.
    fn open_day(&self, today: Day) -> Day {
        if self.counted.is_some_and(|counted| counted < today) { today.before(1) } else { today }
    }
}

fn key(day: Day, image: &ImageName) -> String {
    format!("{PREFIX}{day}/{image}")
}

impl Term {
    /// Erases records, and counts what their microVMs used: many in one transaction.
    pub(crate) async fn erase(self: &Arc<Self>, handles: &[Arc<Handle>]) -> Result<(), Refusal> {
        self.count(handles, Then::Erase).await
    }

    /// Counts what the microVMs of these records used for the day that is open, and keeps or erases the records. One task at a time
    /// does: each holds the write locks of a whole batch.
    async fn count(self: &Arc<Self>, handles: &[Arc<Handle>], then: Then) -> Result<(), Refusal> {
        let mut totals = self.usage.lock().await;
        let day = totals.open_day(Day::of(self.now()));
        for batch in handles.chunks(BATCH_MAX) {
            if self.count_batch((&mut totals, false), batch, day, then).await? {
                continue;
            }
            // Something is not as expected: the totals anew, and each record alone.
            *totals = Totals::load(&self.context.store).await?;
            for handle in batch.chunks(1) {
                self.count_batch((&mut totals, true), handle, day, then).await?;
            }
        }
        Ok(())
    }

    /// False when nothing was done because something is not as expected: of several records, or of totals that are not fresh.
    /// When the scheduler dies after the transaction, the next leader finds the records counted or gone; before it, it finds all
    /// of them and counts them anew.
    async fn count_batch(
        self: &Arc<Self>,
        (totals, fresh): (&mut Totals, bool),
        batch: &[Arc<Handle>],
        day: Day,
        then: Then,
    ) -> Result<bool, Refusal> {
        let mut locked = Vec::with_capacity(batch.len());
        let mut writes = Vec::with_capacity(WRITES_MAX);
        let mut used = ByImage::new();
        for handle in batch {
            let revision = handle.revision.lock().await;
            let record = handle.current();
            let expect = Expect::Revision(*revision);
            let any = usage::add(&mut used, &record);
            let key = codec::key(&handle.id);
            let counted = match then {
                Then::Erase => {
                    writes.push(Write::Delete { key, expect });
                    None
                }
                Then::Keep if any => {
                    let mut counted = (*record).clone();
                    counted.metering_counted = counted.metering;
                    writes.push(Write::Put { key, value: codec::encode(&counted), expect, lease: None });
                    Some(Arc::new(counted))
                }
                Then::Keep => continue,
            };
            locked.push((handle, revision, counted));
        }
        if writes.is_empty() {
            return Ok(true);
        }
        let (raised, new) = totals.raise(day, used);
        writes.extend(raised);
        // Records are erased as fast as others are made, however many of those wait to be written.
        let commit = self.context.store.apart().commit(writes, Tenure::Leader(&self.leadership)).await;
        let committed = match commit? {
            // A removal whose answer was lost: what it wrote beside is there, at a revision that is not known.
            Committed::At(0) => {
                *totals = Totals::load(&self.context.store).await?;
                Some(0)
            }
            Committed::At(revision) => {
                let new = new.into_iter().map(|(image, total)| ((day, image), (total, revision)));
                totals.days.extend(new);
                Some(revision)
            }
            Committed::Differs(_) if batch.len() > 1 || !fresh => return Ok(false),
            Committed::Differs(_) => None,
        };
        let now = self.now();
        let mut memory = self.memory();
        for (handle, mut revision, counted) in locked {
            match (counted, committed) {
                // Whether it was deleted or is not ours any more: gone from memory either way.
                (None, _) => memory.forget(&handle.id, now),
                (Some(counted), Some(stored)) => {
                    *revision = stored;
                    memory.publish_totals(handle, counted);
                }
                // The next change of the record finds out.
                (Some(_), None) => {}
            }
        }
        Ok(true)
    }

    /// Counts each day's use when the day is over, and drops the totals of days that are too old.
    pub(crate) async fn count_days(self: Arc<Self>) {
        loop {
            if !self.ends_are_held_back()
                && let Err(refusal) = self.count_day().await
            {
                tracing::warn!(%refusal, "the day's use is not counted yet");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn count_day(self: &Arc<Self>) -> Result<(), Refusal> {
        let today = Day::of(self.now());
        let counted = self.usage.lock().await.counted;
        if counted.is_some_and(|counted| counted >= today) {
            return Ok(());
        }
        if counted.is_some() {
            let handles: Vec<Arc<Handle>> = {
                let memory = self.memory();
                let open = |handle: &&Arc<Handle>| usage::uncounted(&handle.current()) != Metering::default();
                memory.handles().filter(open).cloned().collect()
            };
            // What a term does not get through, the next one counts.
            self.count(&handles, Then::Keep).await?;
            self.drop_old_days(today).await?;
        }
        let value = today.0.to_string().into_bytes();
        let put = self.context.store.put_if(COUNTED, value, Expect::Any, Some(&self.leadership));
        put.await?;
        self.usage.lock().await.counted = Some(today);
        Ok(())
    }

    async fn drop_old_days(&self, today: Day) -> Result<(), Refusal> {
        let mut totals = self.usage.lock().await;
        let first = today.before(DAYS_KEPT - 1);
        let old: Vec<Write> = totals
            .days
            .keys()
            .filter(|(day, _)| *day < first)
            .map(|(day, image)| Write::Delete { key: key(*day, image), expect: Expect::Any })
            .collect();
        for batch in old.chunks(WRITES_MAX) {
            self.commit(batch.to_vec()).await?;
        }
        totals.days.retain(|(day, _), _| *day >= first);
        Ok(())
    }

    /// What was used on each of the last `days` days, today included, oldest first.
    pub async fn used(&self, days: u64) -> Vec<(Day, ImageName, Metering)> {
        let totals = self.usage.lock().await;
        let today = Day::of(self.now());
        let open_day = totals.open_day(today);
        let mut open = ByImage::new();
        for handle in self.memory().handles() {
            usage::add(&mut open, &handle.current());
        }
        let first = today.before(days.saturating_sub(1));
        let kept = totals.days.iter().filter(|((day, _), _)| *day >= first);
        let mut rows: BTreeMap<(Day, ImageName), Metering> =
            kept.map(|(named, (total, _))| (named.clone(), *total)).collect();
        for (image, used) in open {
            let total = rows.entry((open_day, image)).or_default();
            *total = total.plus(used);
        }
        rows.into_iter().map(|((day, image), total)| (day, image, total)).collect()
    }
}
