//! What a run of `loadtest checkpoints` found.

use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{MB, Options, Written};
use crate::pace::Outcome;
use crate::report::{Latencies, round};

/// Most that what is lost may be older than the loss, in intervals.
const AGE_INTERVALS_MAX: f64 = 2.0;

/// What became of the points that were asked for.
#[derive(Default)]
pub struct Points {
    /// How long the guest stood still, as its host measured it.
    pub pauses: Latencies,
    /// The longest gap that the app saw around each.
    pub gaps: Latencies,
    /// How long each call took: the point is whole on its host then.
    pub calls: Latencies,
    /// From the call until S3 had it.
    pub uploads: Latencies,
    /// Bytes of the differences.
    pub sizes: Vec<u64>,
    pub written: Written,
}

/// Calls of the app meanwhile, and how fast it wrote.
#[derive(Serialize)]
pub struct Calls {
    pub answered: u64,
    pub failed: u64,
    pub shed: u64,
    pub latency: Quantiles,
    /// MB per second that the app reached, by the guest's clock.
    pub written_mb_per_second: f64,
    /// The longest gap that the app saw at all.
    pub guest_gap_max_ms: f64,
}

impl Calls {
    pub fn new(outcome: &Outcome, written: &Written) -> Self {
        let tally = &outcome.tallies[0];
        Self {
            answered: tally.latencies.count(),
            failed: tally.failed,
            shed: outcome.shed,
            latency: Quantiles::of(&tally.latencies),
            written_mb_per_second: round(written.rate()),
            guest_gap_max_ms: round(written.gap_seconds * 1000.0),
        }
    }
}

/// In milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Quantiles {
    fn of(latencies: &Latencies) -> Self {
        let [p50_ms, p99_ms, max_ms] = [0.5, 0.99, 1.0].map(|quantile| round(latencies.ms(quantile)));
        Self { p50_ms, p99_ms, max_ms }
    }
}

/// Ages of the newest point on S3, of a microVM that makes them by itself.
#[derive(Serialize)]
pub struct Policy {
    pub interval_seconds: u64,
    /// From the launch until S3 had the first point: a loss before it is the end.
    pub first_point_seconds: f64,
    pub samples: u64,
    /// Different points that were the newest at some time.
    pub points: usize,
    pub age_p50_seconds: f64,
    pub age_max_seconds: f64,
    /// The oldest, in intervals.
    pub age_max_intervals: f64,
    pub written_mb_per_second: f64,
}

impl Policy {
    pub fn new(interval: Duration, first: Duration, ages: &Latencies, points: usize, rate: f64) -> Self {
        let [age_p50_seconds, age_max_seconds] = [0.5, 1.0].map(|quantile| round(ages.ms(quantile) / 1000.0));
        Self {
            interval_seconds: interval.as_secs(),
            first_point_seconds: round(first.as_secs_f64()),
            samples: ages.count(),
            points,
            age_p50_seconds,
            age_max_seconds,
            age_max_intervals: round(age_max_seconds / interval.as_secs_f64()),
            written_mb_per_second: round(rate),
        }
    }
}

#[derive(Serialize)]
pub struct Report {
    /// What the app writes: "memory", "disk" or "both".
    pub what: String,
    /// MB per second that the app is to write.
    pub write_rate_mb: u64,
    pub working_set_mb: u64,
    pub quiet: Calls,
    /// While points are asked for.
    pub asked: Calls,
    pub points: u32,
    /// How long the guest stood still for each, as its host measured it.
    pub pause: Quantiles,
    pub pause_p50_max_ms: f64,
    /// The longest gap that the app saw around each, from the call until S3 had it.
    pub guest_gap: Quantiles,
    pub call: Quantiles,
    pub upload: Quantiles,
    pub difference_bytes_p50: u64,
    pub difference_bytes_max: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

impl Report {
    pub fn new(options: &Options, quiet: Calls, asked: Calls, points: &Points) -> Self {
        let mut sizes = points.sizes.clone();
        sizes.sort_unstable();
        Self {
            what: options.what.name(),
            write_rate_mb: options.write_rate,
            working_set_mb: options.working_set,
            quiet,
            asked,
            points: options.points,
            pause: Quantiles::of(&points.pauses),
            pause_p50_max_ms: options.pause_max,
            guest_gap: Quantiles::of(&points.gaps),
            call: Quantiles::of(&points.calls),
            upload: Quantiles::of(&points.uploads),
            difference_bytes_p50: sizes.get(sizes.len() / 2).copied().unwrap_or_default(),
            difference_bytes_max: sizes.last().copied().unwrap_or_default(),
            policy: None,
        }
    }

    /// Bars that were missed.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.pause.p50_ms > self.pause_p50_max_ms {
            broken.push(format!("a pause of {} ms (p50)", self.pause.p50_ms));
        }
        for (name, calls) in [("quiet", &self.quiet), ("asked", &self.asked)] {
            if calls.failed + calls.shed > 0 {
                broken.push(format!("{name}: {} calls failed, {} were left out", calls.failed, calls.shed));
            }
        }
        let old = self.policy.as_ref().filter(|policy| policy.age_max_intervals > AGE_INTERVALS_MAX);
        broken
            .extend(old.map(|policy| format!("a recovery point {} intervals old", policy.age_max_intervals)));
        broken
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "p50 ms", "p99 ms", "max ms"]);
        for (name, of) in [
            ("pause, by its host", self.pause),
            ("longest gap the app saw", self.guest_gap),
            ("call, until whole on its host", self.call),
            ("call, until S3 has it", self.upload),
            ("calls of the app, no points", self.quiet.latency),
            ("calls of the app, with points", self.asked.latency),
        ] {
            let ms = |value: f64| format!("{value:.1}");
            table.add_row([name.to_owned(), ms(of.p50_ms), ms(of.p99_ms), ms(of.max_ms)]);
        }
        let mb = |bytes: u64| bytes as f64 / MB as f64;
        let mut text = format!(
            "{} recovery points of an app that writes {} MB/s of {}, {} MB over and over; it reached {:.1} MB/s, {:.1} with points\n\
             differences: p50 {:.1} MB, max {:.1} MB\n{table}",
            self.points,
            self.write_rate_mb,
            self.what,
            self.working_set_mb,
            self.quiet.written_mb_per_second,
            self.asked.written_mb_per_second,
            mb(self.difference_bytes_p50),
            mb(self.difference_bytes_max),
        );
        text.push_str(&format!(
            "\nlongest gap the app saw without points: {:.1} ms",
            self.quiet.guest_gap_max_ms
        ));
        if let Some(policy) = &self.policy {
            text.push_str(&format!(
                "\npoints every {} s: the newest on S3 was {:.1} s old (p50), {:.1} s at most: {:.2} intervals; {} points, {} samples; \
                 the first was there {:.1} s after the launch; the app reached {:.1} MB/s",
                policy.interval_seconds,
                policy.age_p50_seconds,
                policy.age_max_seconds,
                policy.age_max_intervals,
                policy.points,
                policy.samples,
                policy.first_point_seconds,
                policy.written_mb_per_second,
            ));
        }
        for missed in self.broken() {
            text.push_str(&format!("\nMISSED {missed}"));
        }
        text
    }
}
