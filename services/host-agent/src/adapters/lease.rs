//! The host's record in etcd, under a lease, and what follows from losing it: a host whose lease is over
//! carries no more traffic, because others may place its microVMs elsewhere from then on.

use std::time::Duration;

use api::host::v1::HostSpec;
use prost::Message as _;
use tokio::sync::watch;

/// Whether tunnels are closed for want of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    Yes,
    No,
}

/// Pause before the lease is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Keeps the record there until it is dropped, and tells `fenced` and `regained`
/// (which counts) whenever that changes.
pub async fn keep(
    store: records::Store,
    spec: HostSpec,
    ttl: Duration,
    fenced: watch::Sender<Fenced>,
    regained: watch::Sender<u64>,
) {
    let key = format!("hosts/{}", spec.host_id);
    loop {
        match hold(&store, &key, &spec, ttl).await {
            Ok(lease) => {
                fenced.send_replace(Fenced::No);
                regained.send_modify(|count| *count += 1);
                tracing::info!(key, "the host's record stands");
                lease.lost().await;
                // Before anything else: from this moment others may place our microVMs elsewhere.
                fenced.send_replace(Fenced::Yes);
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
