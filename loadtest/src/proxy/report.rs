//! What a run of `loadtest proxy` found.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::Options;
use super::load::Closed;
use super::processor::Division;
use crate::pace::Outcome;
use crate::report::{Latencies, round};

#[derive(Serialize)]
pub struct Report {
    /// Processors of the machine, shared by proxies, fleet, load, app and host.
    pub processors: usize,
    /// Processors that each proxy had to itself; 0 when none was set aside.
    pub processors_set_aside: usize,
    /// Worker threads of nginx and of HAProxy.
    pub workers: u16,
    pub edge_workers: usize,
    pub connections: u16,
    /// Requests at a time on each HTTP/2 connection; the connections are so many fewer.
    pub streams: u16,
    pub series: BTreeMap<&'static str, Series>,
    /// The edge's p50 less the direct connection's, one HTTP/1.1 connection and 1 KiB bodies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added_latency_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_connection_p50_us: Option<OneConnection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_connections: Option<Idle>,
}

#[derive(Serialize)]
pub struct Series {
    pub edge: Cell,
    pub nginx: Cell,
    pub haproxy: Cell,
    pub ratio_rps_nginx: Option<f64>,
    pub ratio_rps_haproxy: Option<f64>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Cell {
    Figures(Figures),
    /// Why there are none.
    Words(String),
}

/// `rps`, `mb_s` and the processors are of the closed loop, the latencies of the open one.
#[derive(Serialize)]
pub struct Figures {
    /// Answers a second with every connection busy.
    pub rps: f64,
    /// Quantiles of latency, from when a request was due, at `rate`.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Bytes of bodies and messages a second, in millions.
    pub mb_s: f64,
    /// Requests that were due per second in the open loop.
    pub rate: u32,
    pub failed: u64,
    /// Requests of the open loop left out because too many were under way.
    pub shed: u64,
    /// Processors that the proxy kept busy: as many as it has when it was the limit.
    pub busy: f64,
    /// Processor time of one request.
    pub cpu_us: f64,
    /// That of the host's end of the tunnels, which only the edge's requests need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_cpu_us: Option<f64>,
}

#[derive(Serialize)]
pub struct OneConnection {
    pub direct: f64,
    pub edge: f64,
    pub nginx: f64,
    pub haproxy: f64,
}

#[derive(Serialize)]
pub struct Idle {
    /// Connections that were open when the memory was read.
    pub count: usize,
    pub edge_rss_mib: f64,
    pub edge_rss_before_mib: f64,
}

/// Everything that was measured of one proxy in one series.
#[derive(Default)]
pub struct Sample {
    closed: Latencies,
    bytes: u64,
    elapsed: Duration,
    failed: u64,
    paced: Latencies,
    rate: u32,
    shed: u64,
    cpu: Duration,
    host_cpu: Option<Duration>,
}

impl Sample {
    /// Adds a closed loop, and the processor time that proxy and host used in it.
    pub fn add_closed(&mut self, closed: &Closed, cpu: Duration, host_cpu: Option<Duration>) {
        self.closed.add(&closed.latencies);
        self.bytes += closed.bytes;
        self.elapsed += closed.elapsed;
        self.failed += closed.failed;
        self.cpu += cpu;
        self.host_cpu = host_cpu.map(|cpu| cpu + self.host_cpu.unwrap_or_default());
    }

    pub fn add_paced(&mut self, outcome: &Outcome, rate: u32) {
        for tally in &outcome.tallies {
            self.paced.add(&tally.latencies);
            self.failed += tally.failed;
        }
        self.rate = rate;
        self.shed += outcome.shed;
    }

    pub fn rps(&self) -> f64 {
        self.closed.count() as f64 / self.elapsed.as_secs_f64()
    }

    pub fn figures(&self) -> Figures {
        let seconds = self.elapsed.as_secs_f64();
        let each = |cpu: Duration| round(cpu.as_secs_f64() * 1e6 / self.closed.count() as f64);
        Figures {
            rps: round(self.rps()),
            p50_ms: round(self.paced.ms(0.5)),
            p99_ms: round(self.paced.ms(0.99)),
            mb_s: round(self.bytes as f64 / seconds / 1e6),
            rate: self.rate,
            failed: self.failed,
            shed: self.shed,
            busy: round(self.cpu.as_secs_f64() / seconds),
            cpu_us: each(self.cpu),
            host_cpu_us: self.host_cpu.map(each),
        }
    }
}

impl Series {
    pub fn new([edge, nginx, haproxy]: [Cell; 3]) -> Self {
        let ratio = |rival: &Cell| Some(round(edge.rps()? / rival.rps()?));
        let (ratio_rps_nginx, ratio_rps_haproxy) = (ratio(&nginx), ratio(&haproxy));
        Self { edge, nginx, haproxy, ratio_rps_nginx, ratio_rps_haproxy }
    }
}

impl Cell {
    fn rps(&self) -> Option<f64> {
        match self {
            Self::Figures(figures) => Some(figures.rps),
            Self::Words(_) => None,
        }
    }
}

impl Report {
    pub fn new(options: &Options, division: Option<&Division>, edge_workers: usize) -> Self {
        Self {
            processors: division.map_or_else(
                || std::thread::available_parallelism().map_or(0, usize::from),
                |division| division.proxies.len() + division.rest.len(),
            ),
            processors_set_aside: division.map_or(0, |division| division.proxies.len()),
            workers: options.workers,
            edge_workers,
            connections: options.connections,
            streams: options.streams,
            series: BTreeMap::new(),
            added_latency_us: None,
            one_connection_p50_us: None,
            idle_connections: None,
        }
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "", "proxy", "rps", "ratio", "MB/s", "busy", "CPU us", "rate /s", "p50 ms", "p99 ms", "failed",
            "shed",
        ]);
        for (name, series) in &self.series {
            add(&mut table, name, "edge", &series.edge, None);
            add(&mut table, "", "nginx", &series.nginx, series.ratio_rps_nginx);
            add(&mut table, "", "haproxy", &series.haproxy, series.ratio_rps_haproxy);
        }
        let aside = match self.processors_set_aside {
            0 => "shared by all".to_owned(),
            count => format!("{count} for each proxy in turn, the rest for load, app and host"),
        };
        let mut text = format!(
            "A SIMULATED host in front of a plain local server; edge, token check and tunnels are real\n\
             {} processors: {aside}; worker threads: edge {}, nginx and HAProxy {}\n\
             {} connections (HTTP/2: {} requests at a time on each, on so many fewer)\n\
             rps, MB/s, busy and CPU: every connection busy; p50 and p99: from when due, at the rate\n{table}",
            self.processors, self.edge_workers, self.workers, self.connections, self.streams
        );
        for (name, series) in &self.series {
            for (proxy, cell) in
                [("edge", &series.edge), ("nginx", &series.nginx), ("haproxy", &series.haproxy)]
            {
                if let Cell::Words(words) = cell {
                    text.push_str(&format!("\n{name}, {proxy}: {words}"));
                }
            }
        }
        if let (Some(added), Some(one)) = (self.added_latency_us, &self.one_connection_p50_us) {
            text.push_str(&format!(
                "\nboth hops add {added:.0} us (p50, one connection): direct {:.0}, edge {:.0}, nginx {:.0}, HAProxy {:.0}",
                one.direct, one.edge, one.nginx, one.haproxy
            ));
        }
        if let Some(idle) = &self.idle_connections {
            text.push_str(&format!(
                "\n{} idle connections: {:.1} MiB in the edge, {:.1} MiB before them",
                idle.count, idle.edge_rss_mib, idle.edge_rss_before_mib
            ));
        }
        text
    }
}

fn add(table: &mut Table, series: &str, proxy: &str, cell: &Cell, ratio: Option<f64>) {
    let mut row = vec![series.to_owned(), proxy.to_owned()];
    match cell {
        Cell::Figures(figures) => {
            let host = figures.host_cpu_us.map_or(String::new(), |host| format!(" + host {host:.1}"));
            row.extend([
                format!("{:.0}", figures.rps),
                ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
                format!("{:.1}", figures.mb_s),
                format!("{:.2}", figures.busy),
                format!("{:.1}{host}", figures.cpu_us),
                figures.rate.to_string(),
                format!("{:.2}", figures.p50_ms),
                format!("{:.2}", figures.p99_ms),
                figures.failed.to_string(),
                figures.shed.to_string(),
            ]);
        }
        Cell::Words(_) => row.push("none, see below".to_owned()),
    }
    table.add_row(row);
}
