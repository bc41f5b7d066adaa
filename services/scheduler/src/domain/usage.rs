//! What microVMs used, by day and image: the totals that are left when their records are gone.
//!
//! Each record says how much of its totals is counted in a day's. What is not yet, is: when a day is over, for the day, and
//! when the record is forgotten. Both are one transaction with the record, so that nothing is counted twice and nothing is
//! lost, whoever dies in between.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use api::common::v1::Metering;
use model::ImageName;

use super::microvm::Microvm;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A day, UTC, counted from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub u64);

impl Day {
    pub fn of(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs())
    }

    pub fn start(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.saturating_mul(DAY.as_secs()))
    }

    /// So many days earlier.
    pub fn before(self, days: u64) -> Self {
        Self(self.0.saturating_sub(days))
    }
}

/// Of one width, so that keys are in the order of days.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// Totals by image.
pub type ByImage = BTreeMap<ImageName, Metering>;

/// What a record's microVM used that no day's total has yet.
pub fn uncounted(record: &Microvm) -> Metering {
    record.metering.unwrap_or_default().beyond(record.metering_counted.unwrap_or_default())
}

/// Adds what a record's microVM used and is not counted yet. False when that is nothing.
pub fn add(totals: &mut ByImage, record: &Microvm) -> bool {
    let used = uncounted(record);
    if used == Metering::default() {
        return false;
    }
    let total = totals.entry(record.spec.image.name.clone()).or_default();
    *total = total.plus(used);
    true
}

#[cfg(test)]
mod tests {
    use super::super::microvm::tests::sample;
    use super::*;

    #[test]
    fn a_day_begins_at_midnight() {
        let time = SystemTime::UNIX_EPOCH + DAY * 20_785 + Duration::from_secs(5);
        let day = Day::of(time);
        assert_eq!(
            (day, day.to_string().as_str(), day.start()),
            (Day(20_785), "020785", time - Duration::from_secs(5))
        );
        assert_eq!(Day(3).before(5), Day(0));
    }

    #[test]
    fn what_is_counted_is_not_counted_again() {
        let used =
            |vcpu_seconds, endpoint_bytes| Metering { vcpu_seconds, endpoint_bytes, ..Default::default() };
        let mut record = sample(1, SystemTime::UNIX_EPOCH);
        let mut totals = ByImage::new();
        assert!(!add(&mut totals, &record));
        record.metering = Some(used(5.0, 10));
        assert!(add(&mut totals, &record) && add(&mut totals, &record));
        assert_eq!(totals.values().collect::<Vec<_>>(), [&used(10.0, 20)]);
        record.metering_counted = Some(used(4.0, 10));
        assert_eq!(uncounted(&record), used(1.0, 0));
        record.metering_counted = record.metering;
        assert!(!add(&mut totals, &record));
    }
}
