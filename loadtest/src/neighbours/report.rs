//! What a run of `loadtest neighbours` found.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::watch::Seen;
use super::{Figure, Reached, Slowest};
use crate::pace::Outcome;
use crate::report::round;

#[derive(Serialize)]
pub struct Report {
    /// Processors of the machine, shared by host, fleet and load.
    pub processors: usize,
    /// Calls of the neighbour per second, and seconds of each series.
    pub rate: u32,
    pub seconds: u64,
    /// Most that the neighbour's p99 may rise by.
    pub factor: f64,
    pub kinds: Vec<Kind>,
    /// What is wrong with the microVM that only ran; empty when nothing is.
    pub bystander: String,
}

/// The neighbour's calls in one series.
#[derive(Debug, Serialize)]
pub struct Series {
    pub answered: u64,
    pub failed: u64,
    /// Calls left out because too many were under way.
    pub shed: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// When the slowest call began in the series, and where its time went.
    pub slowest: String,
}

impl Series {
    pub fn new(outcome: &Outcome, slowest: &Slowest) -> Self {
        let tally = &outcome.tallies[0];
        let [p50_ms, p99_ms, max_ms] = [0.5, 0.99, 1.0].map(|quantile| round(tally.latencies.ms(quantile)));
        Self {
            answered: tally.latencies.count(),
            failed: tally.failed,
            shed: outcome.shed,
            p50_ms,
            p99_ms,
            max_ms,
            slowest: format!("{:.1} s: {}", slowest.at.as_secs_f64(), slowest.timing),
        }
    }
}

/// One kind of hostility.
#[derive(Serialize)]
pub struct Kind {
    pub kind: String,
    pub quiet: Series,
    /// While the hostile microVM uses its processor and nothing else.
    pub same_cpu: Series,
    pub during: Series,
    /// The p99 during hostility, as a multiple of that under the same CPU load: what is judged.
    pub ratio: f64,
    /// The same, as a multiple of the quiet one.
    pub ratio_to_quiet: f64,
    /// What the hostile microVM got to.
    pub reached: Reached,
    pub host: Seen,
    /// Bars that were missed, in words.
    pub broken: Vec<String>,
}

impl Kind {
    pub fn new(kind: String, series: [Series; 3], reached: Reached, host: Seen, factor: f64) -> Self {
        let [quiet, same_cpu, during] = series;
        let ratio = round(during.p99_ms / same_cpu.p99_ms);
        let mut broken = Vec::new();
        if ratio.is_nan() || ratio > factor {
            broken.push(format!("{kind}: p99 is {ratio:.2} times that under the same CPU load"));
        }
        if during.failed + during.shed > 0 {
            broken.push(format!("{kind}: {} calls failed, {} were left out", during.failed, during.shed));
        }
        broken.extend(host.told.iter().map(|text| format!("{kind}: {text}")));
        for (what, figures) in &reached {
            if let Some(Figure::Error(error)) = figures.get("error") {
                broken.push(format!("{kind}: the hostile microVM could not do {what}: {error}"));
            }
        }
        let ratio_to_quiet = round(during.p99_ms / quiet.p99_ms);
        Self { kind, quiet, same_cpu, during, ratio, ratio_to_quiet, reached, host, broken }
    }
}

impl Report {
    pub fn new(factor: f64, rate: u32, seconds: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        Self { processors, rate, seconds, factor, kinds: Vec::new(), bystander: String::new() }
    }

    /// Bars that were missed.
    pub fn broken(&self) -> Vec<String> {
        let mut broken: Vec<String> = self.kinds.iter().flat_map(|kind| kind.broken.clone()).collect();
        if !self.bystander.is_empty() {
            broken.push(format!("the microVM that only ran: {}", self.bystander));
        }
        broken
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "",
            "quiet p50/p99 ms",
            "same CPU p50/p99 ms",
            "during p50/p99 ms",
            "p99 ratio",
            "to quiet",
            "failed",
            "host conns",
            "host neighbours",
            "incidents",
        ]);
        for kind in &self.kinds {
            let pair = |series: &Series| format!("{:.1} / {:.1}", series.p50_ms, series.p99_ms);
            table.add_row([
                kind.kind.clone(),
                pair(&kind.quiet),
                pair(&kind.same_cpu),
                pair(&kind.during),
                format!("{:.2}", kind.ratio),
                format!("{:.2}", kind.ratio_to_quiet),
                (kind.during.failed + kind.during.shed).to_string(),
                kind.host.connections_max.to_string(),
                kind.host.neighbours_max.to_string(),
                kind.host.incidents.to_string(),
            ]);
        }
        let mut text = format!(
            "{} calls/s of the neighbour, {} s a series; {} processors for host, fleet and load; at most {} times the p99 under \
             the same CPU load\n{table}",
            self.rate, self.seconds, self.processors, self.factor
        );
        for kind in &self.kinds {
            let slowest = format!("slowest {:.1} ms at {}", kind.during.max_ms, kind.during.slowest);
            text.push_str(&format!("\n{}: {}; {slowest}", kind.kind, told(&kind.reached)));
        }
        let bystander = if self.bystander.is_empty() { "ran on and answers" } else { &self.bystander };
        text.push_str(&format!("\nthe microVM that only ran: {bystander}"));
        for missed in self.broken() {
            text.push_str(&format!("\nMISSED {missed}"));
        }
        text
    }
}

/// What the hostile microVM got to, in one line.
fn told(reached: &Reached) -> String {
    let one = |(what, figures): (&String, &std::collections::BTreeMap<String, Figure>)| {
        let figures = figures.iter().map(|(name, figure)| match figure {
            Figure::Count(count) => format!("{count} {name}"),
            Figure::Error(error) => format!("{name} {error}"),
        });
        format!("{what} {}", figures.collect::<Vec<_>>().join(", "))
    };
    reached.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(p99_ms: f64, failed: u64) -> Series {
        Series { answered: 400, failed, shed: 0, p50_ms: 1.0, p99_ms, max_ms: p99_ms, slowest: String::new() }
    }

    #[test]
    fn a_bar_is_missed_by_latency_failures_incidents_and_hostility_that_is_none() {
        let kind = |during: Series, host: Seen, reached: Reached| {
            let series = [series(5.0, 0), series(10.0, 0), during];
            Kind::new("disk".to_owned(), series, reached, host, 2.0).broken
        };
        let (fine, none) = (Seen::default, Reached::new);
        assert!(kind(series(20.0, 0), fine(), none()).is_empty());
        assert_eq!(kind(series(20.1, 0), fine(), none()).len(), 1);
        assert_eq!(kind(series(f64::NAN, 0), fine(), none()).len(), 1);
        assert_eq!(kind(series(20.0, 1), fine(), none()), ["disk: 1 calls failed, 0 were left out"]);
        let lost = Seen { incidents: 1, told: vec!["host host-1 was Lost".to_owned()], ..Seen::default() };
        assert_eq!(kind(series(20.0, 0), lost, none()), ["disk: host host-1 was Lost"]);
        let error = [("error".to_owned(), Figure::Error("no room".to_owned()))];
        let unable = Reached::from([("disk".to_owned(), error.into())]);
        assert_eq!(kind(series(20.0, 0), fine(), unable).len(), 1);
    }
}
