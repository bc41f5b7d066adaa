//! `torpor checkpoint`.

use std::time::{Duration, Instant, SystemTime};

use api::microvm::v1::{CheckpointMicrovmRequest, CheckpointMicrovmResponse, Microvm, SnapshotCopies};

use super::Session;
use super::calls::microvm_id;
use super::microvm::fetch;
use crate::cli::microvm::Checkpoint;
use crate::durations;
use crate::error::{CliError, Kind};
use crate::output;

/// Full name of the message shown here.
const RESPONSE: &str = "torpor.microvm.v1.CheckpointMicrovmResponse";
/// Longest wait for S3 to have a recovery point.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
const UPLOAD_PAUSE: Duration = Duration::from_millis(200);

pub async fn run(session: &Session, arguments: Checkpoint) -> Result<(), CliError> {
    let id = microvm_id(session, &arguments.id).await?;
    let message = CheckpointMicrovmRequest { microvm_id: id.clone() };
    let mut made = session.call_slowly(message).await?;
    if arguments.wait {
        let point = made.recovery_point.clone().unwrap_or_default();
        let microvm = uploaded(session, &id, &point).await?;
        made = CheckpointMicrovmResponse { recovery_point: microvm.snapshot.clone(), microvm: Some(microvm) };
    }
    session.show(RESPONSE, &made, |made| {
        let point = made.recovery_point.clone().unwrap_or_default();
        output::fields(vec![
            ("recovery point", name(&point)),
            ("made", durations::age(point.time.as_ref(), SystemTime::now())),
            ("size", output::bytes(point.difference_bytes)),
            ("stood still", stood_still(&point)),
            ("on S3", if point.remote { "yes" } else { "not yet; it is on its way" }.to_owned()),
        ])
    })
}

/// Waits until S3 has a point, or a newer one.
async fn uploaded(session: &Session, id: &str, point: &SnapshotCopies) -> Result<Microvm, CliError> {
    let started = Instant::now();
    loop {
        let microvm = fetch(session, id).await?;
        let there = |found: &SnapshotCopies| {
            found.remote && (found.generation, found.sequence) >= (point.generation, point.sequence)
        };
        if microvm.snapshot.as_ref().is_some_and(there) {
            return Ok(microvm);
        }
        if started.elapsed() > UPLOAD_TIMEOUT {
            let seconds = UPLOAD_TIMEOUT.as_secs();
            let late = format!("the recovery point {} is not on S3 after {seconds} s", name(point));
            return Err(CliError::new(Kind::Timeout, late).next(format!("look again: torpor get {id}")));
        }
        tokio::time::sleep(UPLOAD_PAUSE).await;
    }
}

/// Its number: the placement that it was made under, and its place in the microVM's life.
fn name(point: &SnapshotCopies) -> String {
    format!("{}-{}", point.generation, point.sequence)
}

fn stood_still(point: &SnapshotCopies) -> String {
    let stood = point.stood_still.as_ref().and_then(|stood| api::duration(stood).ok());
    stood.map(|stood| format!("{} ms", stood.as_millis())).unwrap_or_default()
}
