//! What a lifecycle run found.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::lifecycle::Tally;

/// Longest latency a histogram holds, in microseconds: ten minutes.
const MICROSECONDS_MAX: u64 = 600_000_000;

/// Latencies of one kind of work, to three significant digits.
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MICROSECONDS_MAX, 3).expect("the bounds are constants that fit"))
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(MICROSECONDS_MAX);
        self.0.saturating_record(microseconds.max(1));
    }

    /// Adds what another has recorded.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds of both are the same");
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// A quantile in milliseconds; NaN when nothing was recorded.
    pub fn ms(&self, quantile: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Fleet and bare engine, side by side.
#[derive(Default)]
pub struct Pair {
    pub fleet: Latencies,
    pub bare: Latencies,
    /// The fleet's phases by name, in milliseconds, one value a cycle.
    pub phases: BTreeMap<String, Vec<f64>>,
    /// Sizes of the differences suspends wrote, fleet and bare, in bytes.
    pub differences: (Vec<u64>, Vec<u64>),
}

impl Pair {
    fn summary(&self) -> Summary {
        let (p50, bare_p50) = (self.fleet.ms(0.5), self.bare.ms(0.5));
        Summary {
            count: self.fleet.count(),
            p50_ms: round(p50),
            p99_ms: round(self.fleet.ms(0.99)),
            bare_p50_ms: round(bare_p50),
            bare_p99_ms: round(self.bare.ms(0.99)),
            ratio_p50: round(p50 / bare_p50),
            difference_bytes_p50: median(&self.differences.0),
            bare_difference_bytes_p50: median(&self.differences.1),
            phases_p50_ms: self
                .phases
                .iter()
                .filter_map(|(name, values)| Some((name.clone(), round(median_of(values)?))))
                .collect(),
        }
    }
}

pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

fn median_of(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[derive(Serialize)]
pub struct Summary {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
    bare_p50_ms: f64,
    bare_p99_ms: f64,
    ratio_p50: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference_bytes_p50: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bare_difference_bytes_p50: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    phases_p50_ms: BTreeMap<String, f64>,
}

#[derive(Default, Serialize)]
pub struct Report {
    pub image: String,
    pub memory_mib: u32,
    pub cycles: u32,
    /// Cycles left out because too many were still running.
    pub shed: u32,
    /// Cycles that failed; the first reasons were printed.
    pub failed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

/// Many launches at once, each from the moment all of them were due to its app's first answer.
#[derive(Serialize)]
pub struct Burst {
    launches: u32,
    rounds: u32,
    failed: u32,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Burst {
    pub fn new(launches: u32, rounds: u32, failed: u32, latencies: &Latencies) -> Self {
        let [p50_ms, p99_ms, max_ms] = [0.5, 0.99, 1.0].map(|quantile| round(latencies.ms(quantile)));
        Self { launches, rounds, failed, p50_ms, p99_ms, max_ms }
    }
}

impl Report {
    pub fn new(image: String, memory_mib: u32, cycles: u32) -> Self {
        Self { image, memory_mib, cycles, ..Self::default() }
    }

    pub fn set_cycles(&mut self, tally: &Tally) {
        let [launch, suspend, wake] = tally.pairs.each_ref().map(|pair| Some(pair.summary()));
        (self.launch, self.suspend, self.wake) = (launch, suspend, wake);
        (self.shed, self.failed) = (tally.shed, tally.failed);
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, &Summary)> {
        let rows = [("launch", &self.launch), ("suspend", &self.suspend), ("wake", &self.wake)];
        rows.into_iter().filter_map(|(name, row)| Some((name, row.as_ref()?)))
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "p50 ms", "p99 ms", "bare p50 ms", "bare p99 ms", "ratio p50", "difference"]);
        for (name, row) in self.rows() {
            let difference = row
                .difference_bytes_p50
                .map_or(String::new(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
            table.add_row([
                name.to_owned(),
                format!("{:.1}", row.p50_ms),
                format!("{:.1}", row.p99_ms),
                format!("{:.1}", row.bare_p50_ms),
                format!("{:.1}", row.bare_p99_ms),
                format!("{:.2}", row.ratio_p50),
                difference,
            ]);
        }
        let mut text = format!("{}, {} MiB of guest memory", self.image, self.memory_mib);
        if self.launch.is_some() {
            text.push_str(&format!(
                ", {} cycles each ({} failed, {} shed)\n{table}",
                self.cycles, self.failed, self.shed
            ));
        }
        for (name, row) in self.rows() {
            let phases: Vec<String> =
                row.phases_p50_ms.iter().map(|(phase, ms)| format!("{phase} {ms:.1}")).collect();
            if !phases.is_empty() {
                text.push_str(&format!("\n{name} phases, p50 ms: {}", phases.join(", ")));
            }
        }
        if let Some(burst) = &self.burst {
            text.push_str(&format!(
                "\n{} launches at once, {} times ({} failed): p50 {:.1} ms, p99 {:.1} ms, last {:.1} ms",
                burst.launches, burst.rounds, burst.failed, burst.p50_ms, burst.p99_ms, burst.max_ms
            ));
        }
        text
    }
}
