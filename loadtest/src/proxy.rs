//! The fleet's edge beside nginx and HAProxy: the same app behind each, the same certificate, connections, load
//! and processors, in one run. The edge's way is the longer one: it checks a token and goes on through a tunnel
//! to a host, which here is simulated and leads every tunnel to the app.
//!
//! ```text
//!  load --TLS--> edge-proxy --mutual TLS--> host (a process of this program) --TCP--> app (another one)
//!       --TLS--> nginx ---------------------------------------------------------TCP--> app
//!       --TLS--> HAProxy -------------------------------------------------------TCP--> app
//! ```

mod app;
mod child;
mod fleet;
mod host;
mod idle;
mod load;
mod processor;
mod report;
mod rivals;
mod websocket;

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;
use client::Context;

use crate::chosen;
use crate::hosts;
use crate::image::Draft;
use crate::pace::Plan;
use crate::report::{Latencies, round};
pub use app::serve as serve_app;
use child::Child;
use fleet::Endpoint;
pub use host::{Options as HostOptions, serve as serve_host};
use load::{Protocol, Question, Shape, Target};
pub use processor::Division;
pub use report::Report;
use report::{Cell, OneConnection, Sample};
use rivals::{Rival, Setting};
use websocket::NotSupported;

/// Requests that are due within this of each other begin together.
const TICK: Duration = Duration::from_micros(200);
/// Highest rate of an open loop.
const RATE_MAX: u32 = 200_000;
/// Name of the series through a real microVM, HTTP/1.1.
const REAL: &str = "real_http1";
/// One connection asks each target so often in a row, and so often in turn.
const BLOCK: usize = 100;
const BLOCKS: usize = 20;

const PREPARATION: &str = "\
What it needs: nginx and HAProxy (deploy/packages --load installs them), and a fleet of its own with
one worker thread per service, as nginx and HAProxy have one each, and a base for the image to name:

  TOKIO_WORKER_THREADS=1 torpor up --detach --hosts 0
  torpor base build debian-12

How to read it: rps is what a proxy manages with every connection busy (a closed loop). The
latencies are of an open loop, at one rate for all three: requests are due at fixed times, and
a late one counts from when it was due. \"busy\" says how many processors the proxy used in the
closed loop: one worker that is not near 1.00 was waiting for the load, the app or the host, and
its rps is theirs. \"CPU us\" is the proxy's processor time for one request.

Each series opens its connections anew and warms them up. On a machine that does other things
the ratios hold better than the figures; --rounds repeats all of it in turn.";

/// Options of `loadtest proxy`.
#[derive(clap::Args)]
#[command(after_long_help = PREPARATION)]
pub struct Options {
    /// What to measure; default: everything.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// Length of each measurement, in seconds: a closed and an open loop for each proxy and round.
    #[arg(long, default_value_t = 4, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=600))]
    duration: u64,
    /// How often every proxy has its turn in a series.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Connections of the load to each proxy, and HTTP/1.1 requests at a time.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Requests at a time on each HTTP/2 connection; there are so many connections fewer.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    streams: u16,
    /// Rate of the open loop, in percent of what the slowest of the three manages.
    #[arg(long, default_value_t = 50, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    rate: u8,
    /// Worker threads of nginx and of HAProxy, and processors that every proxy has for itself.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Set no processors aside: everything runs on all of them.
    #[arg(long)]
    unpinned: bool,
    /// Measure the edge's memory with so many idle HTTP/1.1 connections.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_000))]
    idle: Option<u32>,
    /// Measure a real microVM of the fleet too, through the edge only: nothing else reaches it.
    #[arg(long, value_name = "ID")]
    real: Option<String>,
    /// Path to request of that microVM, on port 8080.
    #[arg(long, default_value = "/", value_name = "PATH")]
    real_path: String,
}

/// A part of the measurement.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// HTTP/1.1 keep-alive, 1 KiB bodies.
    #[value(name = "http1_1k")]
    Http1Small,
    /// HTTP/1.1 keep-alive, 1 MiB bodies.
    #[value(name = "http1_1m")]
    Http1Large,
    /// HTTP/2, 1 KiB bodies.
    #[value(name = "http2_1k")]
    Http2Small,
    /// HTTP/2, 1 MiB bodies.
    #[value(name = "http2_1m")]
    Http2Large,
    /// WebSocket messages of 1 KiB, each returned by the app.
    #[value(name = "ws_1k")]
    WebSocket,
    /// Added latency of both hops: one connection, one request at a time.
    #[value(name = "latency")]
    Latency,
}

impl Part {
    fn question(self) -> Question {
        let (protocol, path, length) = match self {
            Self::Http1Small | Self::Latency => (Protocol::Http1, app::SMALL_PATH, app::SMALL_BYTES),
            Self::Http1Large => (Protocol::Http1, app::LARGE_PATH, app::LARGE_BYTES),
            Self::Http2Small => (Protocol::Http2, app::SMALL_PATH, app::SMALL_BYTES),
            Self::Http2Large => (Protocol::Http2, app::LARGE_PATH, app::LARGE_BYTES),
            Self::WebSocket => (Protocol::WebSocket, app::WEBSOCKET_PATH, websocket::MESSAGE_BYTES),
        };
        Question { protocol, path: path.to_owned(), length: Some(length) }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Http1Small => "http1_1k",
            Self::Http1Large => "http1_1m",
            Self::Http2Small => "http2_1k",
            Self::Http2Large => "http2_1m",
            Self::WebSocket => "ws_1k",
            Self::Latency => "latency",
        }
    }
}

impl Options {
    fn parts(&self) -> &[Part] {
        chosen(&self.only)
    }

    fn shape(&self, protocol: Protocol) -> Shape {
        let connections = usize::from(self.connections);
        match protocol {
            Protocol::Http2 => {
                let streams = usize::from(self.streams);
                Shape { connections: (connections / streams).max(1), streams }
            }
            Protocol::Http1 | Protocol::WebSocket => Shape { connections, streams: 1 },
        }
    }

    /// Divides the processors. Before the runtime starts: its threads begin where this one may run.
    pub fn divide(&self) -> anyhow::Result<Option<Division>> {
        if self.unpinned { Ok(None) } else { Division::take(usize::from(self.workers)) }
    }
}

/// Runs it.
pub async fn run(data_dir: &Path, options: &Options, division: Option<&Division>) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    ensure!(options.real_path.starts_with('/'), "--real-path must start with '/'");
    rivals::ensure_installed()?;
    let (_app, app_address) = Child::part(&["proxy-app".as_ref()]).await?;
    let tls = hosts::certificate(data_dir, 1).await?;
    let app_text = app_address.to_string();
    let arguments: [&OsStr; 9] = [
        "proxy-host".as_ref(),
        "--ca".as_ref(),
        tls.ca.as_os_str(),
        "--cert".as_ref(),
        tls.cert.as_os_str(),
        "--key".as_ref(),
        tls.key.as_os_str(),
        "--app".as_ref(),
        app_text.as_ref(),
    ];
    let (host, tunnels) = Child::part(&arguments).await?;
    let (tunnels, app) = (tunnels.to_string(), (app_address, host.pid()));
    hosts::with_image(&context, data_dir, (1, Some(&tunnels)), async |_, draft| {
        with_image(data_dir, &context, options, division, draft, app).await
    })
    .await
}

async fn with_image(
    data_dir: &Path,
    context: &Context,
    options: &Options,
    division: Option<&Division>,
    draft: &Draft,
    (app, host_pid): (std::net::SocketAddr, i32),
) -> anyhow::Result<Report> {
    let image = draft.built_on_simulated_hosts(context).await?;
    let endpoint = Endpoint::launch(context, &image.name).await?;
    let edge_files = fleet::edge_files(data_dir)?;
    let edge_pid = fleet::edge_pid(data_dir)?;
    let directory = tempfile::tempdir()?;
    let setting = Setting {
        directory: directory.path(),
        app,
        certificate: &edge_files.endpoint_cert,
        key: &edge_files.endpoint_key,
        workers: usize::from(options.workers),
        division,
    };
    let (nginx, haproxy) = (Rival::nginx(&setting).await?, Rival::haproxy(&setting).await?);
    let _confined = division.map(|division| division.confine(edge_pid)).transpose()?;
    let tls = load::tls(&context.ca)?;
    let edge = endpoint.target(context, tls)?;
    let rival = |rival: &Rival| Target { address: rival.address, token: None, ..edge.clone() };
    let run = Run {
        options,
        proxies: [
            Proxy { target: rival(&nginx), pid: nginx.pid(), host_pid: None },
            Proxy { target: rival(&haproxy), pid: haproxy.pid(), host_pid: None },
        ],
        direct: Target { address: app, tls: None, token: None, host: edge.host.clone() },
        edge: Proxy { target: edge, pid: edge_pid, host_pid: Some(host_pid) },
    };
    let edge_workers = processor::worker_threads(edge_pid)?;
    let mut report = Report::new(options, division, edge_workers);
    run.all(context, &mut report).await?;
    Ok(report)
}

/// A proxy that is measured.
struct Proxy {
    target: Target,
    pid: i32,
    /// The host's end of the tunnels, where there are tunnels.
    host_pid: Option<i32>,
}

struct Run<'a> {
    options: &'a Options,
    edge: Proxy,
    /// nginx and HAProxy.
    proxies: [Proxy; 2],
    /// The app itself.
    direct: Target,
}

impl Run<'_> {
    async fn all(&self, context: &Context, report: &mut Report) -> anyhow::Result<()> {
        for part in self.options.parts() {
            if *part == Part::Latency {
                let one = self.one_connection().await?;
                report.added_latency_us = Some(round(one.edge - one.direct));
                report.one_connection_p50_us = Some(one);
            } else {
                let [nginx, haproxy] = &self.proxies;
                let cells = self.series(part.name(), &part.question(), [&self.edge, nginx, haproxy]).await?;
                report.series.insert(part.name(), report::Series::new(cells));
            }
        }
        if let Some(id) = &self.options.real {
            let endpoint = Endpoint::existing(context, id).await?;
            let target = endpoint.target(context, load::tls(&context.ca)?)?;
            let proxy = Proxy { target, pid: self.edge.pid, host_pid: None };
            let path = self.options.real_path.clone();
            let question = Question { protocol: Protocol::Http1, path, length: None };
            let [edge] = self.series(REAL, &question, [&proxy]).await?;
            let none = || Cell::Words("not measured: only the edge reaches a microVM".to_owned());
            report.series.insert(REAL, report::Series::new([edge, none(), none()]));
        }
        if let Some(count) = self.options.idle {
            report.idle_connections = Some(idle::measure(&self.edge.target, self.edge.pid, count).await?);
        }
        Ok(())
    }

    /// Measures proxies in turn: in every round each in a closed loop, then in every round each at one rate.
    async fn series<const N: usize>(
        &self,
        name: &str,
        question: &Question,
        proxies: [&Proxy; N],
    ) -> anyhow::Result<[Cell; N]> {
        let shape = self.options.shape(question.protocol);
        let mut samples: [Result<Sample, String>; N] = std::array::from_fn(|_| Ok(Sample::default()));
        for _ in 0..self.options.rounds {
            for (proxy, sample) in proxies.iter().zip(&mut samples) {
                let Ok(taken) = sample else { continue };
                if let Err(error) = self.closed(proxy, question, shape, taken).await {
                    ensure!(
                        error.is::<NotSupported>(),
                        error.context(format!("{name} at {}", proxy.target.address))
                    );
                    *sample = Err(error.to_string());
                }
            }
        }
        let slowest = samples.iter().flatten().map(Sample::rps).fold(f64::INFINITY, f64::min);
        let rate = (slowest * f64::from(self.options.rate) / 100.0).clamp(1.0, f64::from(RATE_MAX)) as u32;
        let duration = Duration::from_secs(self.options.duration);
        let plan = Plan { name: name.to_owned(), rate, duration, tick: TICK };
        for _ in 0..self.options.rounds {
            for (proxy, sample) in proxies.iter().zip(&mut samples) {
                let Ok(taken) = sample else { continue };
                let slots = load::open(&proxy.target, question, shape).await?;
                taken.add_paced(&load::paced(slots, &plan).await?, rate);
            }
        }
        Ok(samples.map(|sample| match sample {
            Ok(sample) => Cell::Figures(sample.figures()),
            Err(words) => Cell::Words(words),
        }))
    }

    async fn closed(
        &self,
        proxy: &Proxy,
        question: &Question,
        shape: Shape,
        sample: &mut Sample,
    ) -> anyhow::Result<()> {
        let mut slots = load::open(&proxy.target, question, shape).await?;
        let used = || processor::used(&[proxy.pid]);
        let host_used = || proxy.host_pid.map(|pid| processor::used(&[pid])).transpose();
        let (before, host_before) = (used()?, host_used()?);
        let closed = load::closed(&mut slots, Duration::from_secs(self.options.duration)).await?;
        let host_cpu = host_used()?.zip(host_before).map(|(after, before)| after.saturating_sub(before));
        sample.add_closed(&closed, used()?.saturating_sub(before), host_cpu);
        Ok(())
    }

    /// Asks each over one connection, in turn; their p50 in microseconds.
    async fn one_connection(&self) -> anyhow::Result<OneConnection> {
        let question = Part::Latency.question();
        let shape = Shape { connections: 1, streams: 1 };
        let [nginx, haproxy] = &self.proxies;
        let mut each = Vec::new();
        for target in [&self.direct, &self.edge.target, &nginx.target, &haproxy.target] {
            each.push((load::open(target, &question, shape).await?, Latencies::default()));
        }
        for _ in 0..BLOCKS {
            for (slots, latencies) in &mut each {
                for _ in 0..BLOCK {
                    let began = Instant::now();
                    slots[0].exchange().await?;
                    latencies.record(began.elapsed());
                }
            }
        }
        let p50 = |number: usize| round(each[number].1.ms(0.5) * 1000.0);
        Ok(OneConnection { direct: p50(0), edge: p50(1), nginx: p50(2), haproxy: p50(3) })
    }
}
