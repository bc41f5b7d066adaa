//! `torpor logs`: an app's output.

use api::microvm::v1::FollowMicrovmLogRequest;

use super::Session;
use super::calls::microvm_id;
use super::follow::{Position, print_lines};
use crate::cli::microvm::Logs;
use crate::error::CliError;

/// Prints the log; with `--follow` until the microVM ends.
pub async fn run(session: &Session, arguments: Logs) -> Result<(), CliError> {
    let microvm_id = microvm_id(session, &arguments.id).await?;
    let mut position = Position::default();
    loop {
        let message = FollowMicrovmLogRequest {
            microvm_id: microvm_id.clone(),
            from_sequence: position.next,
            follow: arguments.follow,
        };
        let result = async {
            let mut client = session.context.settled().await?.microvms()?;
            let mut stream = client.follow_microvm_log(message).await?.into_inner();
            while let Some(response) = stream.message().await? {
                position.advance(&response.lines);
                print_lines(&response.lines, arguments.timestamps, session.json())?;
            }
            Ok::<_, CliError>(())
        }
        .await;
        match result {
            Ok(()) => return Ok(()),
            // The scheduler may have been restarted: go on where we were.
            Err(failure) if arguments.follow => position.pause_after(failure).await?,
            Err(failure) => return Err(failure),
        }
    }
}
