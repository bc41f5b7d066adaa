//! What a guest-agent says unasked: its log lines, that its app wants to stay awake, and the end of its app.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_link::{Event as GuestEvent, Link};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::GuestConnection;
use super::core::{Core, Notice};
use super::guest::connect_guest;
use crate::adapters::logs::Log;

/// Pause before a broken link is made again.
const RELINK_PAUSE: Duration = Duration::from_millis(100);

impl Core {
    /// Reads the link's events until the engine's run ends, and makes a new
    /// link when the old one breaks or there is none yet.
    pub fn pump(
        &self,
        mut connection: Option<GuestConnection>,
        dialer: slot::Dialer,
    ) -> (Arc<Mutex<Option<Link>>>, AbortHandle) {
        let shared = Arc::new(Mutex::new(connection.as_ref().map(|connection| connection.link.clone())));
        let link = Arc::clone(&shared);
        let log = Arc::clone(&self.log);
        let notices = self.notices.clone();
        let timeout = Duration::from_millis(self.host.config.timeouts.guest_connect_ms);
        let task = tokio::spawn(async move {
            // Nothing ends this loop while the engine runs; when it stops, the driver aborts the task.
            loop {
                let mut current = match connection.take() {
                    Some(connection) => connection,
                    None => match connect_guest(&dialer, timeout).await {
                        Ok(connection) => connection,
                        Err(_) => continue,
                    },
                };
                link.lock().unwrap_or_else(PoisonError::into_inner).replace(current.link.clone());
                let _ = current.link.stream_logs(log.next_guest()).await;
                read_events(&mut current.events, &log, &notices).await;
                link.lock().unwrap_or_else(PoisonError::into_inner).take();
                tokio::time::sleep(RELINK_PAUSE).await;
            }
        });
        (shared, task.abort_handle())
    }
}

async fn read_events(events: &mut mpsc::Receiver<GuestEvent>, log: &Log, notices: &mpsc::Sender<Notice>) {
    while let Some(event) = events.recv().await {
        match event {
            GuestEvent::Logs { lines, dropped } => log.append_guest(&lines, dropped),
            GuestEvent::AppExited(exit) => {
                let _ = notices.send(Notice::AppExited(exit.into())).await;
            }
            // A driver that is behind gets the next one.
            GuestEvent::KeepAwake(duration) => drop(notices.try_send(Notice::KeepAwake(duration))),
            GuestEvent::Closed { .. } => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use model::limits::{KEEP_AWAKE_MAX, KEEP_AWAKE_MIN};

    #[test]
    fn an_app_may_ask_for_what_a_caller_may() {
        let bounds = KEEP_AWAKE_MIN.as_secs()..=KEEP_AWAKE_MAX.as_secs();
        assert_eq!(guest_link::KEEP_AWAKE_SECONDS, bounds);
    }
}
