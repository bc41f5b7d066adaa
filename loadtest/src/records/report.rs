//! What a run of `loadtest records` found.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::Options;
use super::course::{Course, PARTS, Spread, Trend};
use crate::pace::{Outcome, Tally};
use crate::report::round;

const MIB: f64 = 1024.0 * 1024.0;

#[derive(Serialize)]
pub struct Report {
    /// Always true: nothing ran on the hosts.
    pub hosts_are_simulated: bool,
    pub hosts: u16,
    /// Processors of the machine, shared by fleet, load and simulated hosts.
    pub processors: usize,
    pub warm_up_seconds: u64,
    pub seconds: u64,
    /// Launches that were due per second, and ends.
    pub rate: u32,
    pub launches: Calls,
    pub ends: Calls,
    /// Launches and ends that never began because too many were under way.
    pub shed: u64,
    pub living: Trend,
    pub terminated: Trend,
    pub etcd_used_bytes: Trend,
    pub etcd_file_bytes: Trend,
    /// Codes of the alarms that were seen, the scheduler's and etcd's own.
    pub alarms: Vec<String>,
    /// Samples that could not be taken.
    pub samples_missed: u64,
}

#[derive(Serialize)]
pub struct Calls {
    pub succeeded: u64,
    pub failed: u64,
    /// That succeeded, per second.
    pub achieved: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Calls {
    fn of(tally: &Tally, seconds: f64) -> Self {
        Self {
            succeeded: tally.latencies.count(),
            failed: tally.failed,
            achieved: round(tally.latencies.count() as f64 / seconds),
            p50_ms: round(tally.latencies.ms(0.5)),
            p99_ms: round(tally.latencies.ms(0.99)),
        }
    }
}

impl Report {
    pub fn new(options: &Options, outcome: &Outcome, course: Course) -> Self {
        let seconds = options.duration as f64;
        let elapsed = outcome.elapsed.as_secs_f64();
        let [launches, ends] = [0, 1].map(|kind| Calls::of(&outcome.tallies[kind], elapsed));
        Self {
            hosts_are_simulated: true,
            hosts: options.hosts,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            warm_up_seconds: options.warm_up,
            seconds: options.duration,
            rate: options.rate,
            launches,
            ends,
            shed: outcome.shed,
            living: course.trend(seconds, |sample| sample.living),
            terminated: course.trend(seconds, |sample| sample.terminated),
            etcd_used_bytes: course.trend(seconds, |sample| sample.used_bytes),
            etcd_file_bytes: course.trend(seconds, |sample| sample.file_bytes),
            alarms: course.alarms.into_iter().collect(),
            samples_missed: course.missed,
        }
    }

    /// What is not as it should be.
    pub fn broken(&self) -> Vec<String> {
        let trends = self.trends().into_iter().filter(|(_, trend)| !trend.bounded);
        let unbounded = trends.map(|(name, _)| format!("{name} not bounded"));
        unbounded.chain(self.alarms.iter().map(|code| format!("alarm {code}"))).collect()
    }

    fn trends(&self) -> [(&'static str, &Trend); 4] {
        [
            ("living", &self.living),
            ("terminated", &self.terminated),
            ("etcd used", &self.etcd_used_bytes),
            ("etcd file", &self.etcd_file_bytes),
        ]
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["from s", "living", "terminated", "etcd used MiB", "etcd file MiB"]);
        let count = |value: u64| value.to_string();
        let mib = |value: u64| format!("{:.1}", value as f64 / MIB);
        for number in 0..PARTS {
            let of = |trend: &Trend, unit: &dyn Fn(u64) -> String| {
                trend.tenths[number as usize].map_or("-".to_owned(), |spread| shown(spread, unit))
            };
            table.add_row([
                format!("{:.0}", self.seconds as f64 * f64::from(number) / f64::from(PARTS)),
                of(&self.living, &count),
                of(&self.terminated, &count),
                of(&self.etcd_used_bytes, &mib),
                of(&self.etcd_file_bytes, &mib),
            ]);
        }
        let mut text = format!(
            "{} SIMULATED hosts: real scheduler and etcd, nothing runs behind them; {} processors for all of it\n\
             {} launches/s and as many ends for {} s, after {} s of warm-up: achieved {:.1} and {:.1} /s, {} and {} failed, {} shed\n\
             launch p50 {:.1} ms, p99 {:.1} ms; end p50 {:.1} ms, p99 {:.1} ms\n\
             least / middle / most of each tenth of the run:\n{table}",
            self.hosts,
            self.processors,
            self.rate,
            self.seconds,
            self.warm_up_seconds,
            self.launches.achieved,
            self.ends.achieved,
            self.launches.failed,
            self.ends.failed,
            self.shed,
            self.launches.p50_ms,
            self.launches.p99_ms,
            self.ends.p50_ms,
            self.ends.p99_ms,
        );
        for (name, trend) in self.trends() {
            let growth =
                trend.growth_percent.map_or("unknown".to_owned(), |growth| format!("{growth:+.1} %"));
            let verdict = if trend.bounded { "bounded" } else { "NOT BOUNDED" };
            text.push_str(&format!("\n{name}: {verdict} (last third against the middle one: {growth})"));
        }
        let alarms = if self.alarms.is_empty() { "none".to_owned() } else { self.alarms.join(", ") };
        text.push_str(&format!("\nalarms: {alarms}"));
        if self.samples_missed > 0 {
            text.push_str(&format!("; {} samples could not be taken", self.samples_missed));
        }
        text
    }
}

fn shown(spread: Spread, unit: &dyn Fn(u64) -> String) -> String {
    format!("{} / {} / {}", unit(spread.min), unit(spread.median), unit(spread.max))
}
