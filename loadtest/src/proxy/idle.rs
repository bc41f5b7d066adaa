//! Idle connections: what they hold in the edge.

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

/// Opens `count` connections to the edge, each of which asks once, and reads the edge's memory.
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
    let edge_rss_mib = processor::resident_mib(edge_pid)?;
    // The edge ends connections that have been idle for long.
    let count = slots.iter().filter(|slot| slot.is_open()).count();
    Ok(Idle { count, edge_rss_mib, edge_rss_before_mib })
}
