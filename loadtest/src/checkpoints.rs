//! Recovery points of a microVM whose app writes all the time: how long it stands still for each, and how old the newest point is
//! that S3 has.
//!
//! ```text
//! quiet     the app writes and is called, nobody asks for points
//! asked     the same, and a point is asked for at fixed times
//! policy    a second microVM makes points by itself; the age of its newest one is sampled
//! ```

mod report;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use api::microvm::v1::{CheckpointMicrovmRequest, Microvm, RunMicrovmRequest, SnapshotCopies};
use clap::ValueEnum;
use client::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::image::Draft;
use crate::pace::{self, Outcome, Plan};
use crate::report::Latencies;
use crate::target::Target;
pub use report::Report;
use report::{Calls, Points, Policy};

const APP: &str = include_str!("../apps/writer.py");
/// Longest wait for an answer of the app's.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for a point to be on S3.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for the app to have written its working set once.
const FILL_TIMEOUT: Duration = Duration::from_secs(300);
/// How often it is looked whether S3 has a point, and how old the newest one is.
const POLL: Duration = Duration::from_millis(100);
/// Calls that are due within this of each other begin together.
const TICK: Duration = Duration::from_millis(1);
const MB: u64 = 1_000_000;

/// Options of `loadtest checkpoints`.
#[derive(clap::Args)]
pub struct Options {
    /// What the app writes.
    #[arg(long, value_enum, default_value_t = What::Memory)]
    what: What,
    /// MB that the app writes per second, if its guest can.
    #[arg(long, default_value_t = 20, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    write_rate: u64,
    /// MB that the app writes over and over: what a point has of it.
    #[arg(long, default_value_t = 64, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    working_set: u64,
    /// Points that are asked for.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    points: u32,
    /// Seconds from one of them to the next; one waits for the one before to be on S3.
    #[arg(long, default_value_t = 5, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=600))]
    every: u64,
    /// Interval of the microVM that makes points by itself, in seconds.
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u64).range(5..=3600))]
    interval: u64,
    /// Intervals for which the age of its newest point is sampled; 0 leaves that out.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    intervals: u32,
    /// Calls of the app per second.
    #[arg(long, default_value_t = 20, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Baseline memory of the microVMs, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Most that a microVM may stand still for a point, as the median, in milliseconds.
    #[arg(long, default_value_t = 60.0, value_name = "MS")]
    pause_max: f64,
}

/// What the app writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Its own memory.
    Memory,
    /// A file, with fdatasync after each write.
    Disk,
    /// The memory and the file, each at the rate.
    Both,
}

impl What {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    let draft = Draft::python(&context, options.memory, APP).await?;
    draft.removed_after(&context, with_image(&context, options, &draft)).await
}

async fn with_image(context: &Context, options: &Options, draft: &Draft) -> anyhow::Result<Report> {
    let image = draft.built(context).await?;
    let target = Target::new(context, &image.name, "/", ANSWER_WAIT)?;
    let writing = Writing::begin(&target, options, RunMicrovmRequest::default()).await?;
    let quiet = writing.called(options, "quiet").await?;
    let quiet = Calls::new(&quiet, &writing.written().await?);
    let (outcome, points) =
        tokio::join!(writing.called(options, "points"), ask_for_points(context, options, &writing));
    let points = points?;
    let asked = Calls::new(&outcome?, &points.written);
    writing.end().await?;
    let mut report = Report::new(options, quiet, asked, &points);
    if options.intervals > 0 {
        report.policy = Some(policy(&target, options).await?);
    }
    Ok(report)
}

/// A microVM whose app writes.
struct Writing {
    target: Target,
    microvm: Microvm,
    endpoint: Arc<Endpoint>,
}

/// What the app says that it wrote since it was asked before.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Written {
    bytes: u64,
    seconds: f64,
    /// Longest time between two looks of the app at its wall clock.
    gap_seconds: f64,
}

impl Written {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        self.gap_seconds = self.gap_seconds.max(other.gap_seconds);
    }

    /// MB per second, by the guest's clock.
    fn rate(&self) -> f64 {
        self.bytes as f64 / MB as f64 / self.seconds
    }
}

impl Writing {
    /// Launches one and waits until its app has written its working set once.
    async fn begin(target: &Target, options: &Options, wanted: RunMicrovmRequest) -> anyhow::Result<Self> {
        let mut target = target.clone();
        let microvm = target.run_with(wanted).await?;
        let endpoint = Arc::new(Endpoint::open(&target, &microvm).await?);
        let (rate, working_set) = (options.write_rate * MB, options.working_set * MB);
        let what = options.what.name();
        let path = format!("/write?what={what}&bytes_per_second={rate}&working_set={working_set}");
        endpoint.ask(&path, ANSWER_WAIT).await.context("begin to write")?;
        let writing = Self { target, microvm, endpoint };
        let (deadline, mut written) = (Instant::now() + FILL_TIMEOUT, Written::default());
        while written.bytes < working_set {
            ensure!(Instant::now() < deadline, "the app wrote {} bytes in {FILL_TIMEOUT:?}", written.bytes);
            tokio::time::sleep(POLL).await;
            written.add(writing.written().await?);
        }
        Ok(writing)
    }

    async fn written(&self) -> anyhow::Result<Written> {
        let answer = self.endpoint.ask("/written", ANSWER_WAIT).await.context("what the app wrote")?;
        serde_json::from_slice(&answer.body)
            .with_context(|| String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Calls it for as long as all points take.
    async fn called(&self, options: &Options, name: &str) -> anyhow::Result<Outcome> {
        let duration = Duration::from_secs(options.every) * options.points;
        let plan = Plan { name: name.to_owned(), rate: options.rate, duration, tick: TICK };
        pace::run(&plan, 1, |_| {
            let endpoint = self.endpoint.clone();
            async move { endpoint.ask("/", ANSWER_WAIT).await.map(drop) }
        })
        .await
    }

    /// The newest copy that S3 has.
    async fn newest(&self) -> anyhow::Result<Option<SnapshotCopies>> {
        let snapshot = self.target.clone().get(&self.microvm.microvm_id).await?.snapshot;
        Ok(snapshot.filter(|copies| copies.remote))
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.target.terminate(self.microvm.microvm_id).await
    }
}

/// Asks for all points, each when it is due or when the one before is on S3.
async fn ask_for_points(context: &Context, options: &Options, writing: &Writing) -> anyhow::Result<Points> {
    let mut points = Points::default();
    let every = Duration::from_secs(options.every);
    let start = Instant::now() + every / 2;
    for number in 0..options.points {
        tokio::time::sleep_until((start + every * number).into()).await;
        points.written.add(writing.written().await?);
        let begun = Instant::now();
        let request = CheckpointMicrovmRequest { microvm_id: writing.microvm.microvm_id.clone() };
        let made = context.call(request).await.context("ask for a recovery point")?;
        points.calls.record(begun.elapsed());
        let point = made.recovery_point.context("an answer without a recovery point")?;
        let stood_still = point.stood_still.context("a recovery point that says no pause")?;
        points.pauses.record(api::duration(&stood_still)?);
        points.sizes.push(point.difference_bytes);
        points.uploads.record(uploaded(writing, point.sequence, begun).await?);
        let written = writing.written().await?;
        points.gaps.record(Duration::from_secs_f64(written.gap_seconds));
        points.written.add(written);
    }
    Ok(points)
}

/// Waits until S3 has the point of this number; the time since it was asked for.
async fn uploaded(writing: &Writing, sequence: u64, begun: Instant) -> anyhow::Result<Duration> {
    while begun.elapsed() < UPLOAD_TIMEOUT {
        if writing.newest().await?.is_some_and(|copies| copies.sequence >= sequence) {
            return Ok(begun.elapsed());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("S3 does not have point {sequence} after {UPLOAD_TIMEOUT:?}")
}

/// Samples how much would be lost with the host of a microVM that makes points by itself.
async fn policy(target: &Target, options: &Options) -> anyhow::Result<Policy> {
    let interval = Duration::from_secs(options.interval);
    let checkpoint_interval = Some(api::duration_proto(interval));
    let wanted = RunMicrovmRequest { checkpoint_interval, ..RunMicrovmRequest::default() };
    let launched = Instant::now();
    let writing = Writing::begin(target, options, wanted).await?;
    let first = async {
        while writing.newest().await?.is_none() {
            ensure!(launched.elapsed() < UPLOAD_TIMEOUT + interval, "no recovery point was made");
            tokio::time::sleep(POLL).await;
        }
        anyhow::Ok(launched.elapsed())
    };
    let first = first.await?;
    writing.written().await?;
    let duration = interval * options.intervals;
    let bar = ProgressBar::new(duration.as_secs());
    bar.set_style(ProgressStyle::with_template("ages of points {bar:40} {pos}/{len} s")?);
    let (mut ages, mut numbers) = (Latencies::default(), std::collections::BTreeSet::new());
    let start = Instant::now();
    while start.elapsed() < duration {
        let newest = writing.newest().await?.context("a recovery point that is gone")?;
        let made = newest.time.as_ref().and_then(|time| api::system_time(time).ok());
        let made = made.context("a recovery point that says no time")?;
        ages.record(SystemTime::now().duration_since(made).unwrap_or_default());
        numbers.insert(newest.sequence);
        bar.set_position(start.elapsed().as_secs());
        tokio::time::sleep(POLL).await;
    }
    bar.finish_and_clear();
    let written = writing.written().await?;
    writing.end().await?;
    Ok(Policy::new(interval, first, &ages, numbers.len(), written.rate()))
}
