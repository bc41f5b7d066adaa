//! Snapshots in S3 that nothing names any more.
//!
//! Whoever records the end of a microVM owns what S3 has of it: the leader. It has no credentials for S3; a host removes for it.
//!
//! ```text
//! the host reports the end    -> the answer to its report says that the record has ended -> it removes
//! the end has no host         -> the leader asks another host
//! the leader dies in between, \
//! or nobody could be asked    -> the sweep finds what has no living record
//! ```

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::host_agent_service_client::HostAgentServiceClient;
use api::hostagent::v1::{ListSnapshotsRequest, RemoveSnapshotsRequest};
use model::MicrovmId;
use model::state::MicrovmState;
use rpc::Transport;
use tonic::Status;

use super::{BACKOFF, Term};
use crate::adapters::agents::bounded;
use crate::domain::microvm::Microvm;

/// MicroVMs that are cleared from S3 at a time.
pub(super) const REMOVALS_CONCURRENT: usize = 4;
/// Longest wait for a host to remove everything of one microVM.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to have it removed, each on another host. After that the sweep does it.
const REMOVE_ATTEMPTS: usize = 5;
/// Longest wait for a page of a list.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// MicroVMs in a page.
const PAGE: u32 = 1000;
/// Pause between two pages: the sweep is never in a hurry.
const PAGE_PAUSE: Duration = Duration::from_secs(1);

impl Term {
    /// Has S3 cleared of a microVM that no host reports as ended. `before` is its record before the end.
    pub(crate) fn remove_snapshots_of(self: &Arc<Self>, before: &Microvm) {
        if before.state == MicrovmState::Terminated || before.snapshot.is_none() {
            return;
        }
        let (term, id) = (Arc::clone(self), before.id.clone());
        self.spawn(async move { term.remove_snapshots(&id).await });
    }

    async fn remove_snapshots(&self, id: &MicrovmId) {
        let Ok(_turn) = self.removals.acquire().await else { return };
        let mut backoff = BACKOFF;
        for attempt in 0..REMOVE_ATTEMPTS {
            let removed = match self.some_host(attempt) {
                Ok(client) => remove(client, id, None).await,
                Err(away) => Err(away),
            };
            match removed {
                Ok(objects) => {
                    tracing::info!(microvm = %id, objects, "cleared from S3");
                    return;
                }
                Err(status) => tracing::debug!(microvm = %id, %status, "not cleared from S3 yet"),
            }
            backoff.pause().await;
        }
        tracing::warn!(microvm = %id, "its snapshots stay in S3 until the sweep finds them");
    }

    /// Looks through all of S3's microVMs, again and again, for those that no living record names.
    pub(super) async fn sweep_snapshots(self: Arc<Self>) {
        let pause = Duration::from_secs(self.config().orphan_sweep_seconds);
        while !pause.is_zero() {
            tokio::time::sleep(pause).await;
            if let Err(status) = self.sweep_snapshots_once().await {
                tracing::warn!(%status, "the sweep of snapshots did not get to its end; the next one begins anew");
            }
        }
    }

    /// A record is there before anything is uploaded, and one that is gone or has ended never names a snapshot again: so what has
    /// none now has no owner. The age is for what this leader cannot know, having been deposed a moment ago.
    async fn sweep_snapshots_once(&self) -> Result<(), Status> {
        let age = Duration::from_secs(self.config().orphan_age_seconds);
        let mut page_token = String::new();
        for page in 0.. {
            let request = ListSnapshotsRequest { page_size: PAGE, page_token };
            let mut client = self.some_host(page)?;
            let listed = bounded(LIST_TIMEOUT, client.list_snapshots(rpc::request(request))).await?;
            let ids = listed.microvm_ids.iter().filter_map(|id| id.parse::<MicrovmId>().ok());
            for id in ids.filter(|id| !self.may_need_snapshots(id)) {
                if self.is_over() {
                    return Ok(());
                }
                match remove(self.some_host(page)?, &id, Some(age)).await {
                    Ok(0) => {}
                    Ok(objects) => {
                        tracing::warn!(microvm = %id, objects, "no record named it; removed from S3")
                    }
                    Err(status) => tracing::warn!(microvm = %id, %status, "not removed from S3 yet"),
                }
            }
            page_token = listed.next_page_token;
            if page_token.is_empty() {
                break;
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
        Ok(())
    }

    /// Whether there is a record that names a snapshot or may come to name one.
    fn may_need_snapshots(&self, id: &MicrovmId) -> bool {
        let memory = self.memory();
        let alive = |record: &Microvm| record.state != MicrovmState::Terminated;
        memory.unreadable.contains(id) || memory.get(id).is_some_and(|handle| alive(&handle.current()))
    }

    /// A client of a host whose lease is there; another one each time.
    fn some_host(&self, attempt: usize) -> Result<HostAgentServiceClient<Transport>, Status> {
        let hosts = self.memory().hosts.leased();
        let host = hosts.get(attempt % hosts.len().max(1));
        let found = host.and_then(|host| Some((host, self.grpc_address(host)?)));
        let (host, address) = found.ok_or_else(|| Status::unavailable("no host can be asked"))?;
        self.context.agents.client(host, &address)
    }
}

/// Has a host remove everything of a microVM; returns how many objects that were.
async fn remove(
    mut client: HostAgentServiceClient<Transport>,
    id: &MicrovmId,
    minimum_age: Option<Duration>,
) -> Result<u64, Status> {
    let minimum_age = minimum_age.map(api::duration_proto);
    let request = RemoveSnapshotsRequest { microvm_id: id.to_string(), minimum_age };
    let answer = bounded(REMOVE_TIMEOUT, client.remove_snapshots(rpc::request(request))).await?;
    Ok(answer.removed_objects)
}
