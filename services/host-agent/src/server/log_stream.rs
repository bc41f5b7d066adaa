//! Following the output of an app, of a microVM that lives or has ended.

use std::sync::Arc;

use api::hostagent::v1::{FollowLogRequest, FollowLogResponse};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::adapters::logs;
use crate::domain::fence::{Fence, fence};
use crate::domain::{HostError, LocalState};
use crate::host::Host;
use crate::microvm::Handle;
use crate::microvms::Microvms;

/// Messages that may wait for a slow reader.
const BUFFER: usize = 4;

type Item = Result<FollowLogResponse, Status>;

/// Lines from the position asked for; with `follow` until the microVM ends.
pub fn follow(
    host: &Arc<Host>,
    microvms: &Arc<Microvms>,
    request: FollowLogRequest,
) -> Result<impl Stream<Item = Item> + Send + use<>, HostError> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    if let Some(handle) = microvms.get(&request.microvm_id) {
        let held = handle.view.borrow().generation;
        if fence(held, request.generation) == Fence::Stale && request.generation != 0 {
            return Err(HostError::StaleGeneration { held, offered: request.generation });
        }
        let ended = host.data.ended().join(&request.microvm_id).join("logs");
        tokio::spawn(follow_live(handle, request, ended, sender));
    } else if microvms.end_reason(&request.microvm_id).is_some() {
        let directory = host.data.ended().join(&request.microvm_id).join("logs");
        tokio::spawn(async move {
            read_all(&directory, request.from_sequence, &sender).await;
        });
    } else {
        return Err(HostError::NotHere { id: request.microvm_id });
    }
    Ok(ReceiverStream::new(receiver))
}

async fn follow_live(
    mut handle: Handle,
    request: FollowLogRequest,
    ended: std::path::PathBuf,
    sender: mpsc::Sender<Item>,
) {
    let mut end = handle.log.end();
    let mut next = request.from_sequence;
    let mut reader = handle.log.reader(next);
    loop {
        end.mark_unchanged();
        let gone = handle.view.borrow_and_update().state == LocalState::Gone;
        let lines = reader.read().unwrap_or_default();
        if let Some(last) = lines.last() {
            next = last.sequence + 1;
            if sender.send(Ok(FollowLogResponse { lines })).await.is_err() {
                return;
            }
            continue;
        }
        if gone {
            // Its last lines have moved to where the ended are kept.
            read_all(&ended, next, &sender).await;
            return;
        }
        if !request.follow {
            return;
        }
        tokio::select! {
            changed = end.changed() => if changed.is_err() { return },
            changed = handle.view.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

async fn read_all(directory: &std::path::Path, from: u64, sender: &mpsc::Sender<Item>) {
    let mut reader = logs::reader(directory, from);
    loop {
        let lines = reader.read().unwrap_or_default();
        if lines.is_empty() || sender.send(Ok(FollowLogResponse { lines })).await.is_err() {
            return;
        }
    }
}
