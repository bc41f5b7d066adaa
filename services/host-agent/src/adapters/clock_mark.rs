//! The mark of the time in the data directory, so that an agent that is started again goes on with the clock of the one before:
//! a wall clock that was set meanwhile ends no life.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clock::Mark;

use super::files::{self, DataDirectory};
use crate::host::Host;

/// How often it is left anew, and how long a jump may go unnoticed in the log.
const INTERVAL: Duration = Duration::from_secs(30);

fn file(data: &DataDirectory) -> PathBuf {
    data.root().join("clock.json")
}

/// What an earlier agent left; what cannot be read counts as none.
pub fn read(data: &DataDirectory) -> Option<Mark> {
    read_file(&file(data))
}

fn read_file(path: &Path) -> Option<Mark> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Leaves marks until it is dropped. Dying before one leaves the one before, which is as good within a boot.
pub async fn keep(host: Arc<Host>) {
    let mut jumped = false;
    loop {
        let jump = host.steady.jump();
        match jump {
            Some(jump) if !jumped => {
                tracing::error!(%jump, "the wall clock has jumped; lives and leases go on by the time that passes");
            }
            None if jumped => tracing::info!("the wall clock is followed again"),
            _ => {}
        }
        jumped = jump.is_some();
        if let Ok(mark) = serde_json::to_vec(&host.steady.mark())
            && let Err(error) = files::replace(&file(&host.data), &mark, false)
        {
            tracing::debug!(%error, "no mark of the time was left");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_counts_as_no_mark() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clock.json");
        let mark = Mark { boot: "b".to_owned(), uptime_ms: 1, unix_ms: 2 };
        for (text, found) in [("{", None), (&serde_json::to_string(&mark).unwrap(), Some(mark.clone()))] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_file(&path), found);
        }
    }
}
