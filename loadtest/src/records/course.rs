//! The course of what was sampled, and whether it has a bound. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

/// Parts of a run that the report tells of one by one.
pub const PARTS: u32 = 10;
/// How much larger the last third may be than the one before it, to count as bounded.
const GROWTH_MAX: f64 = 0.1;

/// What there was at one time.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Since the measurement began.
    pub second: f64,
    pub living: u64,
    pub terminated: u64,
    /// Bytes that etcd uses of its database.
    pub used_bytes: u64,
    /// Bytes of the database's file, which does not shrink.
    pub file_bytes: u64,
}

#[derive(Debug, Default)]
pub struct Course {
    pub samples: Vec<Sample>,
    /// Samples that could not be taken.
    pub missed: u64,
    /// Codes of the alarms that were seen.
    pub alarms: BTreeSet<String>,
}

/// Least, middle and largest of some values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub min: u64,
    pub median: u64,
    pub max: u64,
}

impl Spread {
    fn of(values: impl Iterator<Item = u64>) -> Option<Self> {
        let mut sorted: Vec<u64> = values.collect();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { min, median: sorted[sorted.len() / 2], max })
    }
}

/// One measure, followed through the run.
#[derive(Debug, Serialize)]
pub struct Trend {
    /// By tenths of the run; null where no sample was taken.
    pub tenths: Vec<Option<Spread>>,
    /// By how much the most of the last third is above the most of the middle one, in percent.
    pub growth_percent: Option<f64>,
    pub bounded: bool,
}

impl Course {
    /// Follows `measure` through a run of `seconds`.
    pub fn trend(&self, seconds: f64, measure: impl Fn(&Sample) -> u64) -> Trend {
        let part = |number: u32, of: u32| {
            let bound = |number: u32| seconds * f64::from(number) / f64::from(of);
            // What comes after the last call was due belongs to the end.
            let until = if number + 1 == of { f64::INFINITY } else { bound(number + 1) };
            let within = self.samples.iter().filter(move |one| (bound(number)..until).contains(&one.second));
            Spread::of(within.map(&measure))
        };
        let growth = part(1, 3).zip(part(2, 3)).map(|(middle, last)| {
            // Nothing at all stays nothing.
            (last.max as f64 - middle.max as f64) / middle.max.max(1) as f64
        });
        Trend {
            tenths: (0..PARTS).map(|number| part(number, PARTS)).collect(),
            growth_percent: growth.map(|growth| (growth * 1000.0).round() / 10.0),
            bounded: growth.is_some_and(|growth| growth <= GROWTH_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(terminated: impl Fn(u64) -> u64) -> Course {
        let sample = |second: u64| Sample {
            second: second as f64,
            living: 1,
            terminated: terminated(second),
            used_bytes: 0,
            file_bytes: 0,
        };
        Course { samples: (0..=90).map(sample).collect(), ..Course::default() }
    }

    #[test]
    fn what_levels_off_is_bounded_and_what_grows_is_not() {
        for (name, terminated, growth, bounded) in [
            ("level", (|_| 100) as fn(u64) -> u64, 0.0, true),
            ("filled by the end of the middle third", |second| second.min(60), 1.7, true),
            ("grows all the time", |second| second, 52.5, false),
            ("falls", |second| 100 - second, -42.9, true),
            ("never anything", |_| 0, 0.0, true),
        ] {
            let trend = course(terminated).trend(90.0, |sample| sample.terminated);
            assert_eq!((trend.growth_percent, trend.bounded), (Some(growth), bounded), "{name}");
        }
    }

    #[test]
    fn tenths_have_their_spread_and_the_last_takes_what_comes_late() {
        let trend = course(|second| second).trend(90.0, |sample| sample.terminated);
        assert_eq!(trend.tenths.len(), 10);
        assert_eq!(trend.tenths[0], Some(Spread { min: 0, median: 4, max: 8 }));
        assert_eq!(trend.tenths[9], Some(Spread { min: 81, median: 86, max: 90 }));
        let none = Course::default().trend(90.0, |sample| sample.terminated);
        assert_eq!((none.tenths[0], none.bounded), (None, false), "nothing is known");
    }
}
