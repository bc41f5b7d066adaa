//! Keeps the route table as the scheduler tells it: list, then changes; after a
//! disconnection the old table serves until a new listing is complete.

use std::sync::Arc;
use std::time::Duration;

use backoff::Backoff;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::adapters::scheduler::{Scheduler, label, route};
use crate::domain::route::Table;

/// Pauses between attempts while no scheduler answers.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

pub fn follow(scheduler: Arc<Scheduler>, table: Arc<Table>, stop: CancellationToken) {
    tokio::spawn(async move {
        tokio::select! {
            () = keep_following(&scheduler, &table) => {}
            () = stop.cancelled() => {}
        }
    });
}

async fn keep_following(scheduler: &Scheduler, table: &Table) {
    let (mut backoff, mut listing) = (PAUSES, 0);
    loop {
        listing += 1;
        if follow_once(scheduler, table, listing).await {
            backoff.reset();
        }
        backoff.pause().await;
    }
}

/// One stream from its listing to its end; true when the listing was complete.
async fn follow_once(scheduler: &Scheduler, table: &Table, listing: u64) -> bool {
    let mut stream = match scheduler.watch().await {
        Ok(stream) => stream,
        Err(status) => {
            tracing::debug!(code = ?status.code(), message = status.message(), "cannot watch microVMs");
            return false;
        }
    };
    let mut complete = false;
    loop {
        match stream.message().await {
            Ok(Some(message)) if message.synced => {
                complete = true;
                table.finish_listing(listing);
                tracing::info!(microvms = table.len(), "routes are complete");
            }
            Ok(Some(message)) if message.deleted => {
                if let Some(label) = message.microvm.as_ref().and_then(label) {
                    table.remove(label);
                }
            }
            Ok(Some(message)) => match route(&message) {
                Some((label, route)) => table.put(label, route, listing),
                None => tracing::error!("a microVM without an endpoint or a state; left out"),
            },
            ended => {
                if complete {
                    tracing::warn!("lost the scheduler; serving with the routes of before");
                }
                scheduler.leave(&ended.err().unwrap_or_else(|| Status::unavailable("the stream ended")));
                return complete;
            }
        }
    }
}
