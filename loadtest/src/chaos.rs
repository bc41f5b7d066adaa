//! Faults on a real fleet, or upkeep of it, under load, and the invariants that must hold all the same.
//!
//! ```text
//! schedule (seed) -> storm: one fault at a time, undone by its guard --signals--> processes of torpor up
//!                      | who is in trouble                                          ^
//!                      v                                                            | requests, calls
//!                    trouble <- load: sessions, one microVM each -> check: what held
//! ```

mod ask;
mod check;
mod fleet;
mod guard;
mod load;
mod report;
mod schedule;
mod storm;
mod trouble;
mod upkeep;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

pub use guard::stand_by;
pub use report::Report;

use self::check::Held;
use self::fleet::Fleet;
use self::guard::Guard;
use self::load::{Done, Load, Session};
use self::schedule::{Kind, Schedule};
use self::storm::{Event, Storm};
use crate::image::Image;

/// Least quiet time between two faults; as much again is left to chance.
const QUIET: Duration = Duration::from_secs(5);
/// Quiet time before the first fault and after the last, in which the invariants are checked too.
const CALM: Duration = Duration::from_secs(10);
/// Longest wait for the sessions to end.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// Options of `loadtest chaos`.
#[derive(clap::Args)]
pub struct Options {
    /// How long faults are made.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Which faults come in which order, and what the load does.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kinds of faults or upkeep; all faults when none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Kind>,
    /// Image to use: its app must answer GET / on port 8080 with {"count": N}, one more each time. Without it, an image
    /// is built first and deleted afterwards.
    #[arg(long)]
    image: Option<String>,
    /// Baseline memory of the image that is built without --image, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Clients, each with one microVM at a time.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=256))]
    sessions: u16,
}

/// Runs it; what was found, and whether everything has been undone and removed since.
pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<(Report, anyhow::Result<()>)> {
    let fleet = Fleet::find(data_dir)?;
    let context = crate::context_of(data_dir)?;
    let schedule = Schedule::new(options.seed, &options.faults, &fleet.shape()?);
    ensure!(
        !schedule.is_empty(),
        "this fleet stands none of these faults: it has one of each, or no disks of its own"
    );
    let image = Image::chosen(&context, options.image.as_deref(), options.memory).await?;
    let load = Arc::new(Load::new(&context, &image.name)?);
    let guard = Guard::start()?;
    let storm = Storm {
        fleet: &fleet,
        context: &context,
        load: Arc::clone(&load),
        guard: guard.clone(),
        began: Instant::now(),
        drained: Mutex::default(),
    };
    let ran = under_load(&storm, schedule, options).await;
    // No fault is on any more.
    guard.end();
    let taken_back = storm.take_back().await;
    let ended = load.end_all().await;
    let cleaned = image.clean_up(&context).await;
    let (events, done) = ran?;
    let checker = load.checker();
    let held: &[Held] = checker.held();
    let report = Report::new(options.seed, options.minutes, held, events, done, checker.went_back);
    Ok((report, taken_back.and(ended).and(cleaned)))
}

async fn under_load(
    storm: &Storm<'_>,
    schedule: Schedule,
    options: &Options,
) -> anyhow::Result<(Vec<Event>, Done)> {
    let load = &storm.load;
    let mut sessions = JoinSet::new();
    for number in 0..usize::from(options.sessions) {
        sessions.spawn(Session::new(load, number, options.seed).run());
    }
    let watching = tokio::spawn({
        let load = Arc::clone(load);
        async move { load.watch().await }
    });
    let stormed = tokio::select! {
        stormed = faults(storm, schedule, options) => stormed,
        interrupted = crate::interrupted() => Err(interrupted),
    };
    load.stop.cancel();
    let mut done = Done::default();
    let ending = async {
        while let Some(session) = sessions.join_next().await {
            done.add(session?);
        }
        watching.await.map_err(anyhow::Error::from)
    };
    tokio::time::timeout(END_TIMEOUT, ending).await.context("the sessions do not end")??;
    Ok((stormed?, done))
}

async fn faults(storm: &Storm<'_>, mut schedule: Schedule, options: &Options) -> anyhow::Result<Vec<Event>> {
    let ends = storm.began + Duration::from_secs(60 * options.minutes);
    let mut events = Vec::new();
    tokio::time::sleep(CALM).await;
    while Instant::now() < ends {
        let (fault, mut chance) = schedule.next();
        let quiet = QUIET + Duration::from_millis(chance.within(0..5000));
        events.push(storm.fault(fault, chance).await?);
        tokio::time::sleep(quiet).await;
    }
    tokio::time::sleep(CALM).await;
    Ok(events)
}
