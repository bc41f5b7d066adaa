//! What is looked at all the while: the host, the other microVMs, and the kernel's tables that all guests share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use api::host::v1::{HostState, ListHostsRequest};
use api::microvm::v1::MicrovmState;
use client::Context;
use serde::Serialize;
use tokio::task::AbortHandle;

use crate::target::Target;

const INTERVAL: Duration = Duration::from_millis(500);
/// Incidents that are told in words.
const TOLD_MAX: usize = 10;
/// Connections in the root namespace's table, of slots and of the host itself.
const CONNECTIONS: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// The neighbour table of IPv4, one for all namespaces: its first column is the number of entries.
const NEIGHBOURS: &str = "/proc/net/stat/arp_cache";

/// What was seen in a time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Seen {
    pub looks: u64,
    /// Looks at which the host was not READY, another microVM not RUNNING or with a reason, or nobody said.
    pub incidents: u64,
    /// The first of them in words.
    pub told: Vec<String>,
    /// Most entries of the host's connection table.
    pub connections_max: u64,
    /// Most entries of the host's neighbour table.
    pub neighbours_max: u64,
}

impl Seen {
    fn incident(&mut self, text: String) {
        self.incidents += 1;
        if self.told.len() < TOLD_MAX && !self.told.contains(&text) {
            self.told.push(text);
        }
    }
}

/// Looks until it is dropped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Watches the host `host` and the microVMs `others`, which are to run.
    pub fn begin(context: &Context, target: &Target, host: String, others: [String; 2]) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (context, target, shared) = (context.clone(), target.clone(), seen.clone());
        let looking = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let found = look(&context, &target, &host, &others).await;
                let tables = [table(CONNECTIONS, 10, 0), table(NEIGHBOURS, 16, 1)];
                let mut seen = lock(&shared);
                seen.looks += 1;
                match found {
                    Ok(incidents) => incidents.into_iter().for_each(|text| seen.incident(text)),
                    Err(error) => seen.incident(format!("nobody says how they are: {error:#}")),
                }
                seen.connections_max = seen.connections_max.max(tables[0]);
                seen.neighbours_max = seen.neighbours_max.max(tables[1]);
            }
        });
        Self { seen, task: looking.abort_handle() }
    }

    /// What was seen since the last time it was taken.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *lock(&self.seen))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is not as it should be.
async fn look(
    context: &Context,
    target: &Target,
    host: &str,
    others: &[String],
) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let listed = context.call(ListHostsRequest::default()).await.context("list the hosts")?;
    let found = listed
        .hosts
        .into_iter()
        .find(|one| one.spec.as_ref().is_some_and(|spec| spec.host_id == host))
        .map_or(HostState::Unspecified, |one| one.state());
    if found != HostState::Ready {
        wrong.push(format!("host {host} was {found:?}"));
    }
    for id in others {
        let microvm = target.clone().get(id).await?;
        if microvm.state() != MicrovmState::Running || !microvm.state_reason.is_empty() {
            wrong.push(format!("{id} was {:?}: {}", microvm.state(), microvm.state_reason));
        }
    }
    Ok(wrong)
}

/// A number in a file of the kernel's, in its line `line`; 0 where there is none.
fn table(path: &str, radix: u32, line: usize) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let number = text.lines().nth(line).and_then(|line| line.split_whitespace().next());
    number.and_then(|number| u64::from_str_radix(number, radix).ok()).unwrap_or_default()
}
