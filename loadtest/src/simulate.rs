//! `loadtest simulate`: a whole cell in one thread, driven by a seed, with faults, and a checker of what must always hold.
//!
//! ```text
//! plan (from the seed) -> world: etcd, S3, network, machines, clocks     simulated
//!                          |- schedulers                                  the product's own, whole
//!                          |- hosts: reporter, lease, tables, journal     the product's own; engines, files and drivers are stand-ins
//!                          '- clients: the product's, and requests
//! ```
//!
//! Time stands still while anything can run, and everything that is drawn is drawn from the seed: a seed that breaks an invariant
//! breaks it each time.

mod agent;
mod checker;
mod clients;
mod commands;
mod driver;
mod etcd;
mod machine;
mod net;
mod plan;
mod points;
mod recovery;
mod run;
mod s3;
mod service;
#[cfg(test)]
mod tests;
mod uploads;
mod wakes;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use plan::{Plan, Plant};
use run::{Told, run};

/// Prefix of every key in etcd.
const ROOT: &str = "/torpor/";
/// Engine of the simulated hosts.
const ENGINE: &str = "sim";
/// Memory a microVM is accounted with.
const BASELINE_MIB: u32 = 512;
/// Most broken seeds that are shrunk and told in full.
const TOLD_MAX: usize = 20;
/// Most worlds that are tried to make a plan shorter.
const SHRINKS_MAX: usize = 200;

#[derive(Args)]
pub struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed alone and print everything that happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    replay: Option<u64>,
    /// With --replay: leave these faults of the plan out, by their place in it. A broken seed's command has them.
    #[arg(long, value_delimiter = ',', requires = "replay")]
    without: Vec<usize>,
    /// Put a fault into the simulated surroundings, which must be found.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Threads; 0 takes one for each processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// A seed that broke an invariant.
#[derive(Debug, Serialize)]
pub struct BrokenSeed {
    seed: u64,
    invariant: &'static str,
    story: String,
    /// Faults that it takes, of those in the plan.
    faults: usize,
    faults_planned: usize,
    /// Prints everything that happens in it.
    replay: String,
}

#[derive(Debug, Serialize)]
pub struct Report {
    seeds: u64,
    broken: u64,
    found: Vec<BrokenSeed>,
    seconds: f64,
    /// What all worlds together did.
    calls: u64,
    launches: u64,
    suspends: u64,
    requests: u64,
}

/// Runs the seeds, or one again; true when no invariant was broken.
pub fn simulate(options: &Options, json: bool) -> anyhow::Result<bool> {
    if let Some(seed) = options.replay {
        return replay(seed, options);
    }
    let report = run_all(options, json)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    Ok(report.broken == 0)
}

fn replay(seed: u64, options: &Options) -> anyhow::Result<bool> {
    let mut plan = Plan::draw(seed, options.plant);
    plan.faults = kept(&plan, &options.without);
    let told = run(&plan, true)?;
    println!("{} schedulers, {} hosts, {} clients", plan.schedulers, plan.hosts, plan.clients);
    for line in &told.lines {
        println!("{line}");
    }
    match &told.broken {
        Some(broken) => println!("broken: {}: {}", broken.invariant, broken.story),
        None => println!("no invariant is broken; digest {:016x}", told.digest),
    }
    Ok(told.broken.is_none())
}

fn kept(plan: &Plan, without: &[usize]) -> Vec<plan::Due> {
    let all = plan.faults.iter().enumerate();
    all.filter(|(place, _)| !without.contains(place)).map(|(_, due)| *due).collect()
}

/// What all worlds together did: calls, launches, suspends, requests.
type Sums = [u64; 4];

/// Runs the seeds, several at a time; returns the broken ones in their order.
fn run_worlds(options: &Options, bar: &ProgressBar) -> anyhow::Result<(Vec<(u64, Told)>, Sums)> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism()?.get(),
        given => given,
    };
    let next = AtomicU64::new(0);
    let told: Mutex<Vec<(u64, Told)>> = Mutex::default();
    let sums = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        if place >= options.seeds {
                            return Ok(());
                        }
                        let seed = options.from + place;
                        let one = run(&Plan::draw(seed, options.plant), false)?;
                        let counts = [one.calls, one.launches, one.suspends, one.served];
                        for (sum, count) in sums.iter().zip(counts) {
                            sum.fetch_add(count, Ordering::Relaxed);
                        }
                        if one.broken.is_some() {
                            world::lock(&told).push((seed, one));
                        }
                        bar.inc(1);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(_) => anyhow::bail!("a world panicked"),
        })
    })?;
    let mut told = told.into_inner().unwrap_or_default();
    told.sort_by_key(|(seed, _)| *seed);
    Ok((told, sums.map(AtomicU64::into_inner)))
}

fn run_all(options: &Options, json: bool) -> anyhow::Result<Report> {
    let began = Instant::now();
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(options.seeds) };
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left")?);
    let (told, [calls, launches, suspends, requests]) = run_worlds(options, &bar)?;
    bar.finish_and_clear();
    let broken = u64::try_from(told.len())?;
    let found = told.iter().take(TOLD_MAX).map(|(seed, _)| shrink(*seed, options.plant));
    let found = found.collect::<anyhow::Result<_>>()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Report { seeds: options.seeds, broken, found, seconds, calls, launches, suspends, requests })
}

/// Leaves out of a broken seed's plan whatever it breaks without.
fn shrink(seed: u64, plant: Option<Plant>) -> anyhow::Result<BrokenSeed> {
    let plan = Plan::draw(seed, plant);
    let with = |without: &[usize]| {
        let faults = kept(&plan, without);
        run(&Plan { faults, ..plan.clone() }, false).map(|told| told.broken)
    };
    let mut broken = with(&[])?.context("a seed that broke does not break again")?;
    let mut without: Vec<usize> = Vec::new();
    let mut tried = 0;
    for part in [plan.faults.len().div_ceil(2), 3, 1] {
        let mut from = 0;
        while from < plan.faults.len() && tried < SHRINKS_MAX {
            let mut fewer = without.clone();
            fewer.extend(
                (from..(from + part.max(1)).min(plan.faults.len())).filter(|place| !without.contains(place)),
            );
            from += part.max(1);
            if fewer.len() == without.len() {
                continue;
            }
            tried += 1;
            if let Some(again) = with(&fewer)?.filter(|again| again.invariant == broken.invariant) {
                (without, broken) = (fewer, again);
            }
        }
    }
    without.sort_unstable();
    let left_out = without.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let left_out = if left_out.is_empty() { left_out } else { format!(" --without {left_out}") };
    let planted = plant.and_then(|plant| clap::ValueEnum::to_possible_value(&plant));
    let planted = planted.map(|plant| format!(" --plant {}", plant.get_name())).unwrap_or_default();
    Ok(BrokenSeed {
        seed,
        invariant: broken.invariant,
        story: broken.story,
        faults: plan.faults.len() - without.len(),
        faults_planned: plan.faults.len(),
        replay: format!("loadtest simulate --replay {seed}{left_out}{planted}"),
    })
}

fn print_table(report: &Report) {
    let Report { seeds, broken, found, seconds, calls, launches, suspends, requests } = report;
    println!("seeds     {seeds}");
    println!("broken    {broken}");
    println!("seconds   {seconds:.1}");
    println!("did       {calls} calls, {launches} launches, {suspends} suspends, {requests} requests");
    for one in found {
        println!("\n{}: {}", one.invariant, one.story);
        println!("  {} of {} faults; {}", one.faults, one.faults_planned, one.replay);
    }
}
