//! The load on the AWS-compatible API: a fleet's real edge, scheduler,
//! image-builder and etcd, with simulated hosts behind them.

mod calls;
mod http;
mod report;
mod sign;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::image::v1::GetImageRequest;
use clap::ValueEnum;
use client::Context;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::chosen;
use crate::hosts::{self, Hosts};
use crate::image::{Draft, PAGE_SIZE};
use crate::pace::{self, Plan};
use calls::Caller;
pub use calls::Throttled;
use http::Connections;
pub use report::Report;
use report::{Pair, Run};

/// Calls at a time before and after the runs.
const CONCURRENT: usize = 32;
/// Longest wait for simulated hosts to have launched what was accepted.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls that are due within this of each other begin together.
const TICK: Duration = Duration::from_millis(1);
/// Between two runs, for what the first left to do.
const PAUSE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

const SETTINGS: &str = "\
The fleet's throttles are AWS's unless told otherwise, far below these rates. Start one without:

  torpor up --detach --hosts 0 --set edge-proxy.aws.throttles.run_microvm=0 \\
            --set edge-proxy.aws.throttles.get_microvm=0 --set edge-proxy.aws.throttles.other=0
  torpor base build debian-12

Quotas that were set (scheduler.quotas.memory_mib, scheduler.microvms_max) must leave room: each
microVM counts 512 MiB.";

/// Options of `loadtest api`.
#[derive(clap::Args)]
#[command(after_long_help = SETTINGS)]
pub struct Options {
    /// What to measure, in this order; default: everything.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// Simulated hosts.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
    /// MicroVMs that run before the first call, for GetMicrovm and ListMicrovms to find.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(PAGE_SIZE as i64..=10_000))]
    microvms: u32,
    /// Length of each run, in seconds.
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=600))]
    duration: u64,
    /// Calls per second of the run that compares REST and gRPC, half of them each.
    #[arg(long, default_value_t = 500, value_name = "RATE", value_parser = rate())]
    pair_rate: u32,
    /// GetMicrovm calls per second at the full rate.
    #[arg(long, default_value_t = 5000, value_name = "RATE", value_parser = rate())]
    get_rate: u32,
    /// ListMicrovms calls per second at the full rate.
    #[arg(long, default_value_t = 1000, value_name = "RATE", value_parser = rate())]
    list_rate: u32,
    /// RunMicrovm calls per second at the full rate.
    #[arg(long, default_value_t = 500, value_name = "RATE", value_parser = rate())]
    run_rate: u32,
    /// Connections to the API, HTTP/1.1 over TLS, kept alive.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
}

fn rate() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(2..=100_000)
}

/// A part of the measurement.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// GetMicrovm over REST and over gRPC, in turn.
    Pair,
    /// GetMicrovm at half and at the full rate.
    Get,
    /// ListMicrovms at half and at the full rate.
    List,
    /// RunMicrovm at half and at the full rate.
    Run,
}

impl Options {
    fn parts(&self) -> &[Part] {
        chosen(&self.only)
    }

    fn rate(&self, part: Part) -> u32 {
        match part {
            Part::Pair => self.pair_rate,
            Part::Get => self.get_rate,
            Part::List => self.list_rate,
            Part::Run => self.run_rate,
        }
    }

    /// MicroVMs that a whole measurement makes at most.
    fn launches(&self) -> u64 {
        let runs = self.parts().iter().filter(|part| **part == Part::Run).count() as u64;
        let each = (u64::from(self.run_rate) + u64::from(self.run_rate / 2)) * self.duration;
        u64::from(self.microvms) + runs * each
    }
}

pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    ensure!(!context.api.is_empty(), "the fleet does not serve the AWS-compatible API");
    let room = u64::from(options.hosts) * u64::from(hosts::SLOTS);
    ensure!(
        options.launches() <= room,
        "{} microVMs do not fit on {} simulated hosts of {}: more --hosts, or a shorter --duration",
        options.launches(),
        options.hosts,
        hosts::SLOTS
    );
    hosts::with_image(&context, data_dir, (options.hosts, None), async |hosts, draft| {
        with_image(&context, options, hosts, draft).await
    })
    .await
}

async fn with_image(
    context: &Context,
    options: &Options,
    hosts: &Hosts,
    draft: &Draft,
) -> anyhow::Result<Report> {
    draft.built_on_simulated_hosts(context).await?;
    let connections = Connections::new(&context.api, &context.ca, options.connections)?;
    let caller = Caller::new(context, connections, &arn(context, &draft.name).await?)?;
    caller.open().await?;
    let population = populate(&caller, options.microvms).await?;
    wait_launched(hosts, population.len() as u64).await?;
    let load = Load { options, hosts, caller: caller.with_population(population) };
    let mut report = Report::new(options);
    for part in options.parts() {
        match part {
            Part::Pair => report.get_microvm_rest_and_grpc = Some(load.pair().await?),
            Part::Get => report.get_microvm = load.both(Part::Get).await?,
            Part::List => report.list_microvms = load.both(Part::List).await?,
            Part::Run => report.run_microvm = load.both(Part::Run).await?,
        }
    }
    Ok(report)
}

struct Load<'a> {
    options: &'a Options,
    hosts: &'a Hosts,
    caller: Arc<Caller>,
}

impl Load<'_> {
    fn plan(&self, name: &str, rate: u32) -> Plan {
        Plan { name: name.to_owned(), rate, duration: Duration::from_secs(self.options.duration), tick: TICK }
    }

    async fn pair(&self) -> anyhow::Result<Pair> {
        let plan = self.plan("REST and gRPC", self.options.pair_rate);
        // A second of it first, uncounted: both ways' connections are warm.
        let warm = Plan { duration: Duration::from_secs(1), ..plan.clone() };
        self.paced(&warm, 2, pair).await?;
        let outcome = self.paced(&plan, 2, pair).await?;
        Ok(Pair::new(&plan, &outcome))
    }

    /// At half the rate, then at the full rate.
    async fn both(&self, part: Part) -> anyhow::Result<Vec<Run>> {
        let rate = self.options.rate(part);
        let mut runs = Vec::new();
        for rate in [rate / 2, rate] {
            tokio::time::sleep(PAUSE).await;
            let launched = self.hosts.launched();
            let (plan, outcome) = match part {
                Part::Get | Part::Pair => {
                    let plan = self.plan("GetMicrovm", rate);
                    let outcome = self.paced(&plan, 1, |caller, _| async move { caller.get().await });
                    (plan.clone(), outcome.await?)
                }
                Part::List => {
                    let plan = self.plan("ListMicrovms", rate);
                    let outcome = self.paced(&plan, 1, |caller, _| async move { caller.list().await });
                    (plan.clone(), outcome.await?)
                }
                Part::Run => {
                    let plan = self.plan("RunMicrovm", rate);
                    let run = |caller: Arc<Caller>, _| async move { caller.run().await.map(drop) };
                    let outcome = self.paced(&plan, 1, run).await?;
                    wait_launched(self.hosts, launched + outcome.tallies[0].latencies.count()).await?;
                    (plan, outcome)
                }
            };
            runs.push(Run::new(&plan, &outcome));
        }
        Ok(runs)
    }

    async fn paced<C, F>(&self, plan: &Plan, kinds: usize, call: C) -> anyhow::Result<pace::Outcome>
    where
        C: Fn(Arc<Caller>, usize) -> F,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let outcome = pace::run(plan, kinds, |kind| call(self.caller.clone(), kind)).await?;
        // The figures would be the throttle's.
        ensure!(!outcome.throttled(), "{}", Throttled.advice());
        Ok(outcome)
    }
}

async fn pair(caller: Arc<Caller>, kind: usize) -> anyhow::Result<()> {
    match kind {
        0 => caller.get().await,
        _ => caller.get_grpc().await,
    }
}

async fn arn(context: &Context, name: &str) -> anyhow::Result<String> {
    let request = GetImageRequest { image_identifier: name.to_owned() };
    let found = context.call(request).await?.image;
    Ok(found.context("an answer without an image")?.image_arn)
}

/// Launches `count` microVMs through the API; their ids.
async fn populate(caller: &Caller, count: u32) -> anyhow::Result<Vec<String>> {
    let launches = stream::iter(0..count).map(|_| caller.run());
    let ids = launches.buffer_unordered(CONCURRENT).try_collect().await;
    ids.map_err(|error: anyhow::Error| match error.is::<Throttled>() {
        true => anyhow::anyhow!(Throttled.advice()),
        false => error.context("launch the first microVMs"),
    })
}

/// Waits until the simulated hosts have launched `count` microVMs since they began.
async fn wait_launched(hosts: &Hosts, count: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + LAUNCH_TIMEOUT;
    while hosts.launched() < count {
        let launched = hosts.launched();
        ensure!(Instant::now() < deadline, "{launched} of {count} accepted microVMs were launched");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
