//! The lifecycle run: cycles due at fixed times, fleet and bare in turn.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use client::Context;
use futures::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use crate::bare::{self, Bare};
use crate::image::Image;
use crate::report::{Burst, Latencies, Pair, Report};
use crate::target::{self, Target};

/// Most cycles under way at once; one more is shed, so that a fleet that cannot
/// keep up does not take the machine with it.
const UNDER_WAY_MAX: usize = 8;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const FAILURES_PRINTED_MAX: u32 = 5;

/// Options of `loadtest lifecycle`.
#[derive(clap::Args)]
pub struct Options {
    /// Image to use; its app must answer 200 to GET PATH on PORT.
    #[arg(long)]
    image: Option<String>,
    /// Baseline memory of the image that is built without --image, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Cycles through the fleet, and as many with the bare engine; 0 for a burst alone.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    cycles: u32,
    /// After the cycles, launch so many at once.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000), value_name = "N")]
    burst: u32,
    /// Bursts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    bursts: u32,
    /// Time between two cycles' starts, and between two bursts, in milliseconds. In it
    /// the hosts make anew the engines that they keep ready, so that a cycle's launch
    /// finds one; of a burst only as many launches find one as a host keeps.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=600_000), value_name = "MS")]
    interval: u64,
    /// Time between launch, suspend and wake within a cycle, in milliseconds.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=60_000), value_name = "MS")]
    pause: u64,
    /// Path to request.
    #[arg(long, default_value = "/")]
    path: String,
    /// Guest port the bare engine's requests go to; the fleet's go to 8080.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

enum Outcome {
    Fleet(target::Cycle),
    Bare(bare::Cycle),
}

pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    let image = Image::chosen(&context, options.image.as_deref(), options.memory).await?;
    let ran = with_image(data_dir, options, &context, &image).await;
    let cleaned = image.clean_up(&context).await;
    let report = ran?;
    cleaned?;
    Ok(report)
}

async fn with_image(
    data_dir: &Path,
    options: &Options,
    context: &Context,
    image: &Image,
) -> anyhow::Result<Report> {
    ensure!(options.path.starts_with('/'), "--path must start with '/'");
    let fleet = Target::new(context, &image.name, &options.path, REQUEST_TIMEOUT)?;
    let target = (options.port, options.path.as_str());
    let bare = Bare::new(context, data_dir, image.snapshot.clone(), target, REQUEST_TIMEOUT).await?;
    let bare = Arc::new(bare);
    let ran = measured(options, &fleet, &bare, image).await;
    let cleaned = bare.clean_up().await;
    let report = ran?;
    cleaned?;
    Ok(report)
}

async fn measured(
    options: &Options,
    fleet: &Target,
    bare: &Arc<Bare>,
    image: &Image,
) -> anyhow::Result<Report> {
    let pause = Duration::from_millis(options.pause);
    // Once each, uncounted: page cache and connections are warm in both.
    fleet.clone().cycle(Instant::now(), pause).await.context("first cycle of the fleet")?;
    bare.cycle(Instant::now(), pause).await.context("first cycle of the bare engine")?;

    let mut report = Report::new(image.name.clone(), image.snapshot.memory_mib, options.cycles);
    if options.cycles > 0 {
        report.set_cycles(&cycles(options, fleet, bare).await?);
    }
    if options.burst > 0 {
        report.burst = Some(bursts(options, fleet).await?);
    }
    Ok(report)
}

async fn cycles(options: &Options, fleet: &Target, bare: &Arc<Bare>) -> anyhow::Result<Tally> {
    let pause = Duration::from_millis(options.pause);
    let mut tally = Tally::default();
    let mut under_way: JoinSet<anyhow::Result<Outcome>> = JoinSet::new();
    let bar = ProgressBar::new(u64::from(options.cycles) * 2);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} cycles, {eta} left")?);
    let start = Instant::now() + Duration::from_millis(100);
    for tick in 0..options.cycles * 2 {
        let due = start + Duration::from_millis(options.interval) * tick;
        tokio::time::sleep_until(due.into()).await;
        while let Some(done) = under_way.try_join_next() {
            tally.take(done?);
            bar.inc(1);
        }
        if under_way.len() >= UNDER_WAY_MAX {
            tally.shed += 1;
            bar.inc(1);
        } else if tick % 2 == 0 {
            let fleet = fleet.clone();
            under_way.spawn(async move { Ok(Outcome::Fleet(fleet.cycle(due, pause).await?)) });
        } else {
            let bare = Arc::clone(bare);
            under_way.spawn(async move { Ok(Outcome::Bare(bare.cycle(due, pause).await?)) });
        }
    }
    while let Some(done) = under_way.join_next().await {
        tally.take(done?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let pairs = tally.pairs.as_ref();
    ensure!(pairs.iter().all(|pair| pair.fleet.count() > 0), "no cycle of the fleet succeeded");
    ensure!(pairs.iter().all(|pair| pair.bare.count() > 0), "no cycle of the bare engine succeeded");
    Ok(tally)
}

/// Launches many at once, several times. What was launched ends after the burst, so
/// that all of it runs at one time.
async fn bursts(options: &Options, fleet: &Target) -> anyhow::Result<Burst> {
    let mut latencies = Latencies::default();
    let mut failed = 0;
    for _ in 0..options.bursts {
        tokio::time::sleep(Duration::from_millis(options.interval)).await;
        let due = Instant::now();
        let launches = (0..options.burst).map(|_| fleet.clone().launch(due));
        let mut ids = Vec::new();
        for launch in join_all(launches).await {
            let launched = launch.and_then(|(id, launched)| {
                ids.push(id);
                launched
            });
            match launched {
                Ok(latency) => latencies.record(latency),
                Err(error) => {
                    failed += 1;
                    if failed <= FAILURES_PRINTED_MAX {
                        eprintln!("a launch failed: {error:#}");
                    }
                }
            }
        }
        let mut fleet = fleet.clone();
        for id in ids {
            fleet.terminate(id).await?;
        }
    }
    ensure!(latencies.count() > 0, "no launch of a burst succeeded");
    Ok(Burst::new(options.burst, options.bursts, failed, &latencies))
}

/// What became of the cycles.
#[derive(Default)]
pub struct Tally {
    /// Launch, suspend, wake.
    pub pairs: Box<[Pair; 3]>,
    pub shed: u32,
    pub failed: u32,
}

impl Tally {
    fn take(&mut self, done: anyhow::Result<Outcome>) {
        let [launch, suspend, wake] = self.pairs.as_mut();
        match done {
            Ok(Outcome::Fleet(cycle)) => {
                launch.fleet.record(cycle.launch);
                suspend.fleet.record(cycle.suspend);
                wake.fleet.record(cycle.wake);
                suspend.differences.0.push(cycle.difference_bytes);
                for (pair, phases) in [launch, suspend, wake].into_iter().zip(cycle.phases) {
                    for phase in phases {
                        let duration =
                            phase.duration.and_then(|d| api::duration(&d).ok()).unwrap_or_default();
                        pair.phases.entry(phase.name).or_default().push(duration.as_secs_f64() * 1000.0);
                    }
                }
            }
            Ok(Outcome::Bare(cycle)) => {
                launch.bare.record(cycle.launch);
                suspend.bare.record(cycle.suspend);
                wake.bare.record(cycle.wake);
                suspend.differences.1.push(cycle.difference_bytes);
            }
            Err(error) => {
                self.failed += 1;
                if self.failed <= FAILURES_PRINTED_MAX {
                    eprintln!("a cycle failed: {error:#}");
                }
            }
        }
    }
}
