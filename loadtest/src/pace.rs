//! The open loop: calls begin when they are due, whether or not earlier ones have
//! ended, and their latency counts from then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::api::Throttled;
use crate::report::Latencies;

/// Most calls under way at once; one more is shed, so that a fleet that cannot
/// keep up does not take the machine with it.
const UNDER_WAY_MAX: usize = 1024;
/// Time from the decision to begin to the first call.
const LEAD: Duration = Duration::from_millis(100);
const FAILURES_PRINTED_MAX: u64 = 5;
const PROGRESS_EVERY: u64 = 64;

#[derive(Clone)]
pub struct Plan {
    pub name: String,
    pub rate: u32,
    pub duration: Duration,
    /// Calls that are due within this of each other may begin together: a machine
    /// that is busy with the fleet should not be kept busy by waking up.
    pub tick: Duration,
}

/// What became of one kind of call.
#[derive(Default)]
pub struct Tally {
    pub latencies: Latencies,
    pub failed: u64,
    pub throttled: u64,
}

pub struct Outcome {
    pub tallies: Vec<Tally>,
    /// Calls that never began because too many were under way.
    pub shed: u64,
    /// From when the first call was due until the last one ended.
    pub elapsed: Duration,
    /// Processor time of this program in the run: the load and the simulated hosts.
    pub own_cpu: Duration,
}

impl Outcome {
    pub fn throttled(&self) -> bool {
        self.tallies.iter().any(|tally| tally.throttled > 0)
    }
}

impl Tally {
    fn take(&mut self, result: anyhow::Result<()>, latency: Duration) {
        match result {
            Ok(()) => self.latencies.record(latency),
            Err(error) => {
                self.failed += 1;
                self.throttled += u64::from(error.is::<Throttled>());
                if self.failed <= FAILURES_PRINTED_MAX {
                    eprintln!("a call failed: {error:#}");
                }
            }
        }
    }
}

/// Runs `plan`, its calls being of `kinds` kinds in turn. `call` gets the kind, from 0.
pub async fn run<C, F>(plan: &Plan, kinds: usize, call: C) -> anyhow::Result<Outcome>
where
    C: Fn(usize) -> F,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let total = total(plan);
    let bar = ProgressBar::new(total);
    let template = "{msg:24} {bar:40} {pos}/{len}, {eta} left";
    bar.set_style(ProgressStyle::with_template(template)?);
    bar.set_message(format!("{}, {}/s", plan.name, plan.rate));
    let tallies: Arc<Vec<Mutex<Tally>>> =
        Arc::new((0..kinds).map(|_| Mutex::new(Tally::default())).collect());
    let permits = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let (mut shed, mut calls) = (0, JoinSet::new());
    let cpu = own_cpu()?;
    let start = Instant::now() + LEAD;
    let mut due = clock(plan, total, start);
    let mut count: u64 = 0;
    while let Some(due) = due.recv().await {
        let kind = usize::try_from(count)? % kinds;
        count += 1;
        while calls.try_join_next().is_some() {}
        if count.is_multiple_of(PROGRESS_EVERY) {
            bar.set_position(count);
        }
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            shed += 1;
            continue;
        };
        let (calling, tallies) = (call(kind), tallies.clone());
        calls.spawn(async move {
            let result = calling.await;
            let latency = due.elapsed();
            let mut tally = tallies[kind].lock().unwrap_or_else(PoisonError::into_inner);
            tally.take(result, latency);
            drop(permit);
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended?;
    }
    let elapsed = start.elapsed();
    let own_cpu = own_cpu()?.saturating_sub(cpu);
    bar.finish_and_clear();
    let taken = |tally: &Mutex<Tally>| {
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *tally)
    };
    Ok(Outcome { tallies: tallies.iter().map(taken).collect(), shed, elapsed, own_cpu })
}

fn total(plan: &Plan) -> u64 {
    (f64::from(plan.rate) * plan.duration.as_secs_f64()).round() as u64
}

/// Tells when calls are due, once they are. A thread of its own: the runtime's
/// timers are coarser than the latencies to be measured.
fn clock(plan: &Plan, total: u64, start: Instant) -> mpsc::Receiver<Instant> {
    let (rate, tick) = (plan.rate, plan.tick);
    let (sender, receiver) = mpsc::channel(UNDER_WAY_MAX);
    std::thread::spawn(move || {
        let due = |number: u64| start + Duration::from_secs_f64(number as f64 / f64::from(rate));
        let mut number = 0;
        let mut woken = Instant::now();
        while number < total {
            let wake = due(number).max(woken + tick);
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
            woken = Instant::now();
            while number < total && due(number) <= woken {
                // Full when the runtime is far behind; what waits here is late, and counts as late.
                if sender.blocking_send(due(number)).is_err() {
                    return;
                }
                number += 1;
            }
        }
    });
    receiver
}

fn own_cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(microseconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn latency_counts_from_the_due_time_and_kinds_take_turns() {
        let (duration, tick) = (Duration::from_millis(500), Duration::from_millis(1));
        let plan = Plan { name: "test".to_owned(), rate: 200, duration, tick };
        let outcome = run(&plan, 2, |kind| async move {
            // A call that blocks its thread makes the ones behind it late.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if kind == 0 { Ok(()) } else { Err(Throttled.into()) }
        });
        let outcome = outcome.await.unwrap();
        assert!(outcome.throttled());
        assert_eq!(outcome.shed, 0);
        let [good, bad] = &outcome.tallies[..] else { panic!("two kinds") };
        assert_eq!((good.latencies.count(), good.failed), (50, 0));
        assert_eq!((bad.latencies.count(), bad.failed, bad.throttled), (0, 50, 50));
        assert!(good.latencies.ms(0.5) >= 20.0);
        assert!(outcome.elapsed >= Duration::from_millis(495));
    }
}
