//! One microVM that takes all it can get, and what its neighbours on the host feel of it.
//!
//! Three microVMs of one image run on one host: one is hostile, one is called at a fixed rate, and one only runs. Each kind of
//! hostility is measured in three series in a row, so that a machine that does other things does so to all three:
//!
//! ```text
//! quiet      nothing is asked of the hostile one
//! same CPU   it uses its processor and nothing else     the baseline: a processor that is shared is no fault of the host
//! during     it does its worst
//! ```

mod connector;
mod report;
mod watch;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::microvm::v1::{Microvm, MicrovmState, RunMicrovmRequest};
use clap::ValueEnum;
use client::Context;
use serde::Deserialize;

use crate::chosen;
use crate::endpoint::Endpoint;
use crate::image::Draft;
use crate::pace::{self, Plan};
use crate::target::Target;
use connector::Connector;
pub use report::Report;
use report::{Kind, Series};
use watch::Watch;

const APP: &str = include_str!("../apps/neighbours.py");
/// Longest wait for an answer of the app's.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Between two series, for what the one before left to do.
const PAUSE: Duration = Duration::from_secs(2);
/// So much longer than the series the hostile microVM is at work: it begins first and ends last.
const MARGIN: Duration = Duration::from_secs(2);
/// Calls that are due within this of each other begin together.
const TICK: Duration = Duration::from_millis(1);
/// What uses its processor and nothing else.
const CONTROL: &str = "cpu";

const SETTINGS: &str = "\
It needs a fleet of one host whose guests may reach the network of --flows-to; by default that is the
one for benchmarks (RFC 2544), which leads nowhere:

  torpor up --detach --hosts 1 --set 'host-agent.slots.openable=[\"198.18.0.0/15\"]'
  torpor base build debian-12

How to read it: what counts is the p99 during hostility against the p99 while the same microVM keeps its
processor busy. Where guests are emulated in software, a guest's own processor time alone slows the others.";

/// Options of `loadtest neighbours`.
#[derive(clap::Args)]
#[command(after_long_help = SETTINGS)]
pub struct Options {
    /// Kinds of hostility, in this order; default: each, then all at once.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Hostility>,
    /// Length of each series, in seconds.
    #[arg(long, default_value_t = 20, value_name = "S", value_parser = clap::value_parser!(u64).range(5..=300))]
    seconds: u64,
    /// Calls of the neighbour per second.
    #[arg(long, default_value_t = 20, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Baseline memory of the microVMs, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// How much of its disk the hostile one fills before it begins anew, in MiB.
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    disk: u32,
    /// Network whose addresses the hostile one connects to.
    #[arg(long, default_value = "198.18.0.0/15", value_name = "CIDR", value_parser = network)]
    flows_to: String,
    /// Most that the p99 of the neighbour may rise by, as a factor.
    #[arg(long, default_value_t = 2.0, value_name = "FACTOR")]
    factor: f64,
}

/// "address/length" of IPv4; the scheduler says what else is wrong with it.
fn network(text: &str) -> Result<String, String> {
    let parts = text.split_once('/').and_then(|(address, length)| {
        Some((address.parse::<Ipv4Addr>().ok()?, length.parse::<u8>().ok().filter(|length| *length <= 32)?))
    });
    parts
        .map(|_| text.to_owned())
        .ok_or_else(|| "must be a network of IPv4, for example 198.18.0.0/15".into())
}

/// What the hostile microVM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hostility {
    /// Writes its disk full, syncing all the while.
    Disk,
    /// Begins connections to many addresses and ports.
    Flows,
    /// Asks and answers by ARP in everybody's name.
    Arp,
    /// Writes its log as fast as it can.
    Log,
    /// Asks the resolver as fast as it can.
    Dns,
    /// All of these at once.
    All,
}

impl Hostility {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// As the app is asked for it.
    fn kinds(self) -> String {
        let single = Self::value_variants().iter().filter(|kind| **kind != Self::All).map(|kind| kind.name());
        match self {
            Self::All => single.collect::<Vec<_>>().join(","),
            one => one.name(),
        }
    }
}

pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    let connector = Connector::create(&context, &options.flows_to).await?;
    let ran = with_connector(&context, options, &connector).await;
    let removed = connector.remove(&context).await;
    let report = ran?;
    removed?;
    Ok(report)
}

async fn with_connector(
    context: &Context,
    options: &Options,
    connector: &Connector,
) -> anyhow::Result<Report> {
    let draft = Draft::python(context, options.memory, APP).await?;
    draft.removed_after(context, with_image(context, options, connector, &draft)).await
}

async fn with_image(
    context: &Context,
    options: &Options,
    connector: &Connector,
    draft: &Draft,
) -> anyhow::Result<Report> {
    let image = draft.built(context).await?;
    let run = Run::begin(context, options, connector, &image.name).await?;
    let mut report = Report::new(options.factor, options.rate, options.seconds);
    for hostility in chosen(&options.only) {
        report.kinds.push(run.measure(*hostility).await?);
    }
    report.bystander = run.bystander().await?;
    Ok(report)
}

/// The three microVMs.
struct Run<'a> {
    options: &'a Options,
    target: Target,
    hostile: Microvm,
    called: Microvm,
    bystander: Microvm,
    watch: Watch,
}

/// The slowest call of a series.
#[derive(Default)]
pub struct Slowest {
    took: Duration,
    /// When it began, since the series did.
    at: Duration,
    timing: String,
}

/// What one kind came to, as the app says it: figures by name, or an error.
type Reached = BTreeMap<String, BTreeMap<String, Figure>>;

#[derive(Debug, Clone, serde::Serialize, Deserialize)]
#[serde(untagged)]
pub enum Figure {
    Count(u64),
    Error(String),
}

impl<'a> Run<'a> {
    async fn begin(
        context: &Context,
        options: &'a Options,
        connector: &Connector,
        image: &str,
    ) -> anyhow::Result<Self> {
        let mut target = Target::new(context, image, "/", ANSWER_WAIT)?;
        let (called, bystander) = (target.run().await?, target.run().await?);
        let egress_network_connectors = vec![connector.arn.clone()];
        let hostile = RunMicrovmRequest { egress_network_connectors, ..RunMicrovmRequest::default() };
        let hostile = target.run_with(hostile).await?;
        let mut host = String::new();
        for microvm in [&called, &bystander, &hostile] {
            Endpoint::open(&target, microvm).await?.ask("/", ANSWER_WAIT).await.context("first request")?;
            let placed = target.get(&microvm.microvm_id).await?.host_id;
            ensure!(
                host.is_empty() || host == placed,
                "the microVMs are on several hosts: use a fleet of one"
            );
            host = placed;
        }
        let others = [&called, &bystander].map(|microvm| microvm.microvm_id.clone());
        let watch = Watch::begin(context, &target, host, others);
        Ok(Self { options, target, hostile, called, bystander, watch })
    }

    /// One kind of hostility: its three series.
    async fn measure(&self, hostility: Hostility) -> anyhow::Result<Kind> {
        let name = hostility.name();
        let (quiet, _) = self.series(&format!("{name}: quiet"), None).await?;
        let (same_cpu, _) = self.series(&format!("{name}: same CPU"), Some(CONTROL.to_owned())).await?;
        self.watch.take();
        let (during, reached) = self.series(&name, Some(hostility.kinds())).await?;
        Ok(Kind::new(name, [quiet, same_cpu, during], reached, self.watch.take(), self.options.factor))
    }

    /// Calls the neighbour while the hostile microVM does `kinds`.
    async fn series(&self, name: &str, kinds: Option<String>) -> anyhow::Result<(Series, Reached)> {
        tokio::time::sleep(PAUSE).await;
        let duration = Duration::from_secs(self.options.seconds);
        let hostile = Endpoint::open(&self.target, &self.hostile).await?;
        let hostility = async {
            let Some(kinds) = kinds else { return Ok(Reached::new()) };
            let seconds = (duration + 2 * MARGIN).as_secs();
            let Options { disk, flows_to, .. } = self.options;
            let path = format!("/do?kinds={kinds}&seconds={seconds}&disk_mib={disk}&network={flows_to}");
            let wait = duration + 2 * MARGIN + ANSWER_WAIT;
            let answer = hostile.ask(&path, wait).await.context("the hostile microVM")?.body;
            serde_json::from_slice(&answer).with_context(|| String::from_utf8_lossy(&answer).into_owned())
        };
        let called = Arc::new(Endpoint::open(&self.target, &self.called).await?);
        let plan = Plan { name: name.to_owned(), rate: self.options.rate, duration, tick: TICK };
        let slowest: Arc<Mutex<Slowest>> = Arc::default();
        let calls = async {
            tokio::time::sleep(MARGIN).await;
            let begun = Instant::now();
            pace::run(&plan, 1, |_| {
                let (called, slowest) = (called.clone(), slowest.clone());
                async move {
                    let asked = Instant::now();
                    let timing = called.ask("/", ANSWER_WAIT).await?.timing;
                    let one = Slowest { took: asked.elapsed(), at: asked - begun, timing };
                    let mut slowest = slowest.lock().unwrap_or_else(PoisonError::into_inner);
                    if one.took > slowest.took {
                        *slowest = one;
                    }
                    Ok(())
                }
            })
            .await
        };
        let (outcome, reached) = tokio::join!(calls, hostility);
        let slowest = slowest.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((Series::new(&outcome?, &slowest), reached?))
    }

    /// Whether the microVM that was not asked for anything has run all the while, and answers. Empty if so.
    async fn bystander(&self) -> anyhow::Result<String> {
        let before = &self.bystander;
        let now = self.target.clone().get(&before.microvm_id).await?;
        if now.state() != MicrovmState::Running || !now.state_reason.is_empty() {
            return Ok(format!("it is {:?}: {}", now.state(), now.state_reason));
        }
        // A launch is the latest that happened to it: it was neither put to sleep nor moved.
        let kind = now.last_transition.map(|transition| transition.kind).unwrap_or_default();
        if kind != "launch" {
            return Ok(format!("it has had a {kind}"));
        }
        let answer = Endpoint::open(&self.target, before).await?.ask("/", ANSWER_WAIT).await;
        Ok(answer.err().map(|error| format!("it does not answer: {error:#}")).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_each_of_the_others() {
        assert_eq!(Hostility::All.kinds(), "disk,flows,arp,log,dns");
        assert_eq!(Hostility::Disk.kinds(), "disk");
    }

    #[test]
    fn a_network_has_an_address_and_a_length() {
        for (text, good) in [
            ("198.18.0.0/15", true),
            ("10.0.0.1/32", true),
            ("198.18.0.0", false),
            ("198.18.0.0/33", false),
            ("::/0", false),
            ("198.18.0.0/15&kinds=cpu", false),
        ] {
            assert_eq!(network(text).is_ok(), good, "{text}");
        }
    }
}
