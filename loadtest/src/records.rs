//! Records that come and go: microVMs are launched and ended at a steady rate in front of simulated hosts, and what etcd holds of
//! them meanwhile is sampled. The scheduler's retention and etcd's compaction are the product's own.
//!
//! As many live at a time as the run begins with: each launch is followed by the end of the one that has lived longest.

mod course;
mod report;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::host::v1::ListHostsRequest;
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::{RunMicrovmRequest, TerminateMicrovmRequest};
use client::Context;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use records::Store;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::hosts;
use crate::image::Draft;
use crate::pace::{self, Outcome, Plan};
use course::{Course, Sample};
pub use report::Report;

/// Where the scheduler keeps microVMs, living and ended.
const RECORDS: &str = "microvms/";
/// The database of the first member of etcd, in the fleet's data directory.
const DATABASE: &str = "etcd/member/snap/db";
/// What is launched ends by itself after this, also when the run was killed.
const LIFE: Duration = Duration::from_secs(3600);
/// Calls at a time before the run.
const CONCURRENT: usize = 32;
/// Calls that are due within this of each other begin together.
const TICK: Duration = Duration::from_millis(2);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for one sample.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Launches and ends, in turn.
const KINDS: usize = 2;

const SETTINGS: &str = "\
It needs a fleet of its own, without hosts, and a base for the image to name:

  torpor up --detach --hosts 0
  torpor base build debian-12

Records are bounded by scheduler.retained_max (100000) and scheduler.retention_seconds (86400): let
--warm-up or the first third of --duration make as many, at --rate each second.";

/// Options of `loadtest records`.
#[derive(clap::Args)]
#[command(after_long_help = SETTINGS)]
pub struct Options {
    /// Launches per second, and as many ends.
    #[arg(long, default_value_t = 500, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Length of the measurement, in seconds.
    #[arg(long, default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u64).range(30..=7200))]
    duration: u64,
    /// The same load for so many seconds before, of which nothing is judged.
    #[arg(long, default_value_t = 0, value_name = "S", value_parser = clap::value_parser!(u64).range(0..=7200))]
    warm_up: u64,
    /// MicroVMs that live at a time.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    living: u32,
    /// Simulated hosts.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
}

pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    hosts::with_image(&context, data_dir, (options.hosts, None), async |_, draft| {
        with_image(&context, data_dir, options, draft).await
    })
    .await
}

async fn with_image(
    context: &Context,
    data_dir: &Path,
    options: &Options,
    draft: &Draft,
) -> anyhow::Result<Report> {
    let image = draft.built_on_simulated_hosts(context).await?;
    let load = Arc::new(Load::new(context, image.name).await?);
    let begin = stream::iter(0..options.living).map(|_| load.launch());
    begin.buffer_unordered(CONCURRENT).try_collect::<()>().await.context("launch the first microVMs")?;
    if options.warm_up > 0 {
        come_and_go(&load, options, "warm-up", options.warm_up).await?;
    }
    let store = Store::connect(&hosts::etcd(data_dir)?).await.context("etcd")?;
    let sampler =
        Sampler { context: context.clone(), store, database: data_dir.join(DATABASE), load: load.clone() };
    let stop = CancellationToken::new();
    let loading = async {
        // Ends the sampler, whatever becomes of the load.
        let _stopped = stop.clone().drop_guard();
        come_and_go(&load, options, "records", options.duration).await
    };
    let (outcome, course) = tokio::join!(loading, sampler.run(&stop));
    let outcome = outcome?;
    ensure!(outcome.tallies[0].latencies.count() > 0, "no launch succeeded");
    Ok(Report::new(options, &outcome, course))
}

async fn come_and_go(
    load: &Arc<Load>,
    options: &Options,
    name: &str,
    seconds: u64,
) -> anyhow::Result<Outcome> {
    let plan = Plan {
        name: name.to_owned(),
        rate: options.rate * KINDS as u32,
        duration: Duration::from_secs(seconds),
        tick: TICK,
    };
    pace::run(&plan, KINDS, |kind| {
        let load = load.clone();
        async move {
            match kind {
                0 => load.launch().await,
                _ => load.end().await,
            }
        }
    })
    .await
}

struct Load {
    microvms: MicrovmServiceClient<Channel>,
    image: String,
    /// Ids of what lives, the oldest first.
    living: Mutex<VecDeque<String>>,
}

impl Load {
    /// Calls go to the scheduler that leads now.
    async fn new(context: &Context, image: String) -> anyhow::Result<Self> {
        let settled = context.settled().await.context("the scheduler that leads")?;
        Ok(Self { microvms: settled.microvms()?, image, living: Mutex::default() })
    }

    async fn launch(&self) -> anyhow::Result<()> {
        let request = RunMicrovmRequest {
            image_identifier: self.image.clone(),
            maximum_duration: Some(api::duration_proto(LIFE)),
            ..RunMicrovmRequest::default()
        };
        let launched = self.microvms.clone().run_microvm(request).await?.into_inner().microvm;
        self.living().push_back(launched.context("an answer without a microVM")?.microvm_id);
        Ok(())
    }

    async fn end(&self) -> anyhow::Result<()> {
        let oldest = self.living().pop_front();
        let microvm_id = oldest.context("nothing lives that could be ended: launches fail or are late")?;
        self.microvms.clone().terminate_microvm(TerminateMicrovmRequest { microvm_id }).await?;
        Ok(())
    }

    fn living(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Sampler {
    context: Context,
    store: Store,
    database: PathBuf,
    load: Arc<Load>,
}

impl Sampler {
    async fn run(&self, stop: &CancellationToken) -> Course {
        let mut course = Course::default();
        let start = Instant::now();
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return course,
            }
            let sampling = tokio::time::timeout(SAMPLE_TIMEOUT, self.sample(&mut course, start));
            match sampling.await.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {SAMPLE_TIMEOUT:?}"))) {
                Ok(sample) => course.samples.push(sample),
                Err(error) => {
                    course.missed += 1;
                    eprintln!("a sample failed: {error:#}");
                }
            }
        }
    }

    async fn sample(&self, course: &mut Course, start: Instant) -> anyhow::Result<Sample> {
        // What lives comes first: what ends in between counts as terminated a moment early, and none is missed.
        let living = self.load.living().len();
        let records = self.store.count(RECORDS).await.context("count the records")?;
        let size = self.store.size().await.context("etcd's size")?;
        course.alarms.extend(size.alarms);
        let listed = self.context.call(ListHostsRequest::default()).await.context("alarms")?;
        course.alarms.extend(listed.alarms.into_iter().map(|alarm| alarm.code));
        let file = std::fs::metadata(&self.database);
        Ok(Sample {
            second: start.elapsed().as_secs_f64(),
            living: living as u64,
            terminated: records.saturating_sub(living) as u64,
            used_bytes: size.used_bytes,
            file_bytes: file.with_context(|| self.database.display().to_string())?.len(),
        })
    }
}
