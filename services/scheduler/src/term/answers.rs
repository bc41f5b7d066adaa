//! Waiting for a host.

use std::time::Duration;

use model::HostId;
use tonic::{Response, Status};

use super::Term;
use crate::adapters::agents::bounded;

/// How often it is looked whether a host that is waited for has been given up.
const LOOK: Duration = Duration::from_millis(500);

impl Term {
    /// Waits for a host's answer, at most `timeout`, and not beyond the moment from which what it holds may go on elsewhere: whoever
    /// holds the turn of a microVM must not stand in the way of that. What the host still does is undone by its next report.
    pub(crate) async fn answer_of<T>(
        &self,
        host: &HostId,
        timeout: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let given_up = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if self.is_fenced(host, self.now()) {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = bounded(timeout, call) => answer,
            () = given_up => Err(Status::unavailable("the host was given up before it answered")),
        }
    }
}
