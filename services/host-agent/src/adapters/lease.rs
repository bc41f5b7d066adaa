//! The host's record in etcd, under a lease, and what follows from losing it: a host whose lease is over
//! carries no more traffic, because others may place its microVMs elsewhere from then on.
//!
//! A lease that is back is not enough to go on. While it was gone the scheduler may have placed microVMs elsewhere, and an edge
//! with an old route would wake the old copy here beside the new one. So the host stays closed until it has registered with a
//! scheduler since, and has closed what the answer calls stale.

use std::time::Duration;

use api::host::v1::HostSpec;
use prost::Message as _;
use tokio::sync::watch;

/// Whether the host may serve requests and remove what it has superseded.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Leases had so far.
    leases: u64,
    /// Whether the last of them is held.
    held: bool,
    /// The lease under which a scheduler has last said what is stale here; 0 when none has.
    told_under: u64,
}

impl Standing {
    /// The number of the lease that is held; they count from 1.
    pub fn lease(self) -> Option<u64> {
        self.held.then_some(self.leases)
    }

    /// True while others may run what is held here.
    pub fn is_fenced(self) -> bool {
        !self.held || self.told_under != self.leases
    }

    fn gained(&mut self) {
        self.leases += 1;
        self.held = true;
    }

    fn lost(&mut self) {
        self.held = false;
    }

    /// A scheduler has been asked while the lease of this number was held, and what it called stale is closed.
    pub fn told(&mut self, lease: u64) {
        self.told_under = lease;
    }
}

/// Pause before the lease is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Keeps the record there until it is dropped, and notes in `standing` whether it is.
pub async fn keep(store: records::Store, spec: HostSpec, ttl: Duration, standing: watch::Sender<Standing>) {
    let key = format!("hosts/{}", spec.host_id);
    loop {
        match hold(&store, &key, &spec, ttl).await {
            Ok(lease) => {
                standing.send_modify(Standing::gained);
                tracing::info!(key, "the host's record stands");
                lease.lost().await;
                // Before anything else: from this moment others may place our microVMs elsewhere.
                standing.send_modify(Standing::lost);
                tracing::warn!(key, "the lease is over; tunnels are closed");
            }
            Err(error) => tracing::warn!(%error, "no lease for the host's record yet"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn hold(
    store: &records::Store,
    key: &str,
    spec: &HostSpec,
    ttl: Duration,
) -> records::Result<records::Lease> {
    let lease = store.lease(ttl).await?;
    store.put_leased(key, spec.encode_to_vec(), &lease).await?;
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_back_opens_nothing_before_a_scheduler_has_been_asked() {
        let mut standing = Standing::default();
        assert!(standing.is_fenced());
        standing.gained();
        assert!(standing.is_fenced(), "a lease, and nobody has said what is stale");
        let first = standing.lease().unwrap();
        standing.told(first);
        assert!(!standing.is_fenced());
        standing.lost();
        assert!(standing.is_fenced());
        standing.gained();
        // The answer to a question that was asked under the lease before.
        standing.told(first);
        assert!(standing.is_fenced(), "what it says may be older than a placement made meanwhile");
        standing.told(standing.lease().unwrap());
        assert!(!standing.is_fenced());
    }
}
