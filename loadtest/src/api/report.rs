//! What a run of `loadtest api` found.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::Options;
use crate::image::PAGE_SIZE;
use crate::pace::{Outcome, Plan, Tally};
use crate::report::round;

#[derive(Default, Serialize)]
pub struct Report {
    /// Always true: nothing ran on the hosts.
    pub hosts_are_simulated: bool,
    pub hosts: u16,
    /// Processors of the machine, shared by fleet, load and simulated hosts.
    pub processors: usize,
    pub connections: u16,
    /// MicroVMs that ran before the first call.
    pub microvms: u32,
    pub page_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub get_microvm_rest_and_grpc: Option<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub get_microvm: Vec<Run>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub list_microvms: Vec<Run>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub run_microvm: Vec<Run>,
}

/// GetMicrovm over REST and over gRPC in the same run.
#[derive(Serialize)]
pub struct Pair {
    pub rest: Run,
    pub grpc: Run,
    /// REST's quantile less gRPC's, in milliseconds.
    pub difference_p50_ms: f64,
    pub difference_p99_ms: f64,
}

#[derive(Serialize)]
pub struct Run {
    /// Calls that were due per second.
    pub rate: u32,
    pub achieved: f64,
    pub succeeded: u64,
    pub failed: u64,
    /// Calls left out because too many were under way.
    pub shed: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Processors that this program kept busy: the load and the simulated hosts.
    pub own_processors: f64,
}

impl Report {
    pub fn new(options: &Options) -> Self {
        Self {
            hosts_are_simulated: true,
            hosts: options.hosts,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            connections: options.connections,
            microvms: options.microvms,
            page_size: PAGE_SIZE,
            ..Self::default()
        }
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "",
            "rate /s",
            "achieved /s",
            "failed",
            "shed",
            "p50 ms",
            "p99 ms",
            "max ms",
            "own CPUs",
        ]);
        let mut add = |name: &str, run: &Run| {
            table.add_row([
                name.to_owned(),
                run.rate.to_string(),
                format!("{:.0}", run.achieved),
                run.failed.to_string(),
                run.shed.to_string(),
                format!("{:.2}", run.p50_ms),
                format!("{:.2}", run.p99_ms),
                format!("{:.1}", run.max_ms),
                format!("{:.2}", run.own_processors),
            ]);
        };
        if let Some(pair) = &self.get_microvm_rest_and_grpc {
            add("GetMicrovm, REST", &pair.rest);
            add("GetMicrovm, gRPC", &pair.grpc);
        }
        for (name, runs) in [
            ("GetMicrovm", &self.get_microvm),
            ("ListMicrovms", &self.list_microvms),
            ("RunMicrovm", &self.run_microvm),
        ] {
            for run in runs {
                add(name, run);
            }
        }
        let mut text = format!(
            "{} SIMULATED hosts: real edge, scheduler, image-builder and etcd, nothing runs behind them\n\
             {} processors for all of it, load included; {} HTTP/1.1 connections, every request signed;\n\
             {} microVMs from the start, {} on a listed page\n{table}",
            self.hosts, self.processors, self.connections, self.microvms, self.page_size
        );
        if let Some(pair) = &self.get_microvm_rest_and_grpc {
            text.push_str(&format!(
                "\nGetMicrovm over REST takes {:.2} ms (p50) and {:.2} ms (p99) longer than over gRPC, in one run",
                pair.difference_p50_ms, pair.difference_p99_ms
            ));
        }
        text
    }
}

impl Pair {
    pub fn new(plan: &Plan, outcome: &Outcome) -> Self {
        let half = Plan { rate: plan.rate / 2, ..plan.clone() };
        let [rest, grpc] = [0, 1].map(|kind| Run::of(&half, outcome, &outcome.tallies[kind]));
        Self {
            difference_p50_ms: round(rest.p50_ms - grpc.p50_ms),
            difference_p99_ms: round(rest.p99_ms - grpc.p99_ms),
            rest,
            grpc,
        }
    }
}

impl Run {
    pub fn new(plan: &Plan, outcome: &Outcome) -> Self {
        Self::of(plan, outcome, &outcome.tallies[0])
    }

    fn of(plan: &Plan, outcome: &Outcome, tally: &Tally) -> Self {
        let seconds = outcome.elapsed.as_secs_f64();
        let latencies = &tally.latencies;
        Self {
            rate: plan.rate,
            achieved: round(latencies.count() as f64 / seconds),
            succeeded: latencies.count(),
            failed: tally.failed,
            shed: outcome.shed,
            p50_ms: round(latencies.ms(0.5)),
            p99_ms: round(latencies.ms(0.99)),
            max_ms: round(latencies.ms(1.0)),
            own_processors: round(outcome.own_cpu.as_secs_f64() / seconds),
        }
    }
}
