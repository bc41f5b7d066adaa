//! Idle connections: what they hold in the edge.

use std::time::Duration;

use anyhow::ensure;
use futures::{StreamExt as _, stream};
use indicatif::ProgressBar;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::load::{Slot, Target};
use super::report::Idle;
use super::{Part, processor};

/// Connections that are opened at a time.
const CONCURRENT: usize = 16;
/// Descriptors that are not connections.
const OTHER_FILES: u64 = 256;
/// How often the memory is read, and how many times at most.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const LOOKS_MAX: usize = 10;

/// Opens `count` connections to the edge, each of which asks once, and reads the edge's memory once it has stopped to fall.
pub async fn measure(target: &Target, edge_pid: i32, count: u32) -> anyhow::Result<Idle> {
    let wanted = u64::from(count) + OTHER_FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(wanted <= hard, "--idle {count} needs {wanted} open files, this process may have {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard)?;
    let edge_rss_before_mib = processor::resident_mib(edge_pid)?;
    let bar = ProgressBar::new(u64::from(count));
    let question = Part::Http1Small.question();
    let opening = stream::iter(0..count).map(|_| async {
        let mut slot = Slot::connected_to(target, &question)?;
        slot.exchange().await?;
        bar.inc(1);
        Ok::<_, anyhow::Error>(slot)
    });
    let mut opening = opening.buffer_unordered(CONCURRENT);
    let mut slots = Vec::new();
    while let Some(slot) = opening.next().await {
        slots.push(slot?);
    }
    bar.finish_and_clear();
    let edge_rss_mib = settled_mib(edge_pid).await?;
    // The edge ends connections that have been idle for long.
    let count = slots.iter().filter(|slot| slot.is_open()).count();
    Ok(Idle { count, edge_rss_mib, edge_rss_before_mib })
}

/// Resident memory in MiB, when a pause has not lessened it any more.
async fn settled_mib(pid: i32) -> anyhow::Result<f64> {
    let mut last = processor::resident_mib(pid)?;
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = processor::resident_mib(pid)?;
        if now >= last {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}
