//! What a run found, for people and programs.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::check::Held;
use super::load::Done;
use super::storm::Event;

/// What is not part of any run, said with every result.
const NOT_COVERED: &str = "not covered: packets lost between some parts only, partitions of hosts and image-builders (they are stopped), and \
                           clocks that differ (every process of a machine has the same one; --faults clock steps it)";

#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub minutes: u64,
    pub invariants: Vec<Held>,
    pub faults: Vec<Event>,
    pub load: Done,
    /// MicroVMs that went back to a recovery point and said so.
    pub went_back: u64,
    pub not_covered: &'static str,
}

impl Report {
    pub fn new(
        seed: u64,
        minutes: u64,
        invariants: &[Held],
        faults: Vec<Event>,
        load: Done,
        went_back: u64,
    ) -> Self {
        Self {
            seed,
            minutes,
            invariants: invariants.to_vec(),
            faults,
            load,
            went_back,
            not_covered: NOT_COVERED,
        }
    }

    /// Names of the invariants that did not hold.
    pub fn broken(&self) -> Vec<&'static str> {
        self.invariants.iter().filter(|held| held.broken > 0).map(|held| held.invariant).collect()
    }

    pub fn table(&self) -> String {
        let mut invariants = table(&["invariant", "checks", "held", "evidence"]);
        for held in &self.invariants {
            let verdict = match (held.checks, held.broken) {
                (0, _) => "not checked".to_owned(),
                (_, 0) => "held".to_owned(),
                (_, broken) => format!("BROKEN {broken} times"),
            };
            let evidence = held.evidence.join("\n");
            invariants.add_row([held.invariant.to_owned(), held.checks.to_string(), verdict, evidence]);
        }
        let mut faults = table(&["fault", "times", "waited for", "median ms", "longest ms", "not in time"]);
        for (fault, events) in self.by_fault() {
            let mut times: Vec<u64> = events.iter().filter_map(|event| event.recovery_ms).collect();
            times.sort_unstable();
            let waits = events.iter().filter(|event| !event.recovery.is_empty()).count();
            let ms = |time: Option<&u64>| time.map_or_else(|| "-".to_owned(), ToString::to_string);
            faults.add_row([
                fault.to_owned(),
                events.len().to_string(),
                events.first().map_or("", |event| event.recovery).to_owned(),
                ms(times.get(times.len() / 2)),
                ms(times.last()),
                (waits - times.len().min(waits)).to_string(),
            ]);
        }
        let load = &self.load;
        format!(
            "seed {}, {} minutes\n{invariants}\n{faults}\n{} launches, {} requests, {} suspends, {} resumes, {} failed; \
             {} went back and said so; healthy hosts answered within {} ms, all hosts during upkeep within {} ms\n{}",
            self.seed,
            self.minutes,
            load.launches,
            load.requests,
            load.suspends,
            load.resumes,
            load.failed,
            self.went_back,
            load.healthy_ms_max,
            load.upkeep_ms_max,
            self.not_covered,
        )
    }

    fn by_fault(&self) -> BTreeMap<&str, Vec<&Event>> {
        let mut faults: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in &self.faults {
            faults.entry(&event.fault).or_default().push(event);
        }
        faults
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}
