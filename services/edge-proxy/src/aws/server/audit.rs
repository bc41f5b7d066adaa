//! Who asked for what, and what came of it: one record per request, to the log
//! and, if so set, to a file of JSON lines. No secrets, no payloads.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

/// Records that may wait for the disk; beyond them requests wait too. What a full
/// disk does not take is lost, and the log, which has every record too, says so.
const QUEUE_RECORDS: usize = 4096;
/// How often it is checked that the file is still in its place.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes that go to the disk at once.
const BATCH_BYTES: usize = 256 * 1024;
/// The file is for its owner only.
const MODE: u32 = 0o600;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// When the request came, RFC 3339 in UTC.
    pub time: String,
    pub request_id: String,
    /// Access key, as the request names it; empty when it names none.
    pub access_key_id: String,
    /// Whether that key's holder signed the request.
    pub authenticated: bool,
    /// Account of the key; empty while nobody is authenticated.
    pub account_id: String,
    pub source_address: IpAddr,
    /// "lambda:RunMicrovm"; empty when the path leads nowhere.
    pub action: &'static str,
    /// ARN, or "*"; empty when it was not looked at.
    pub resource: String,
    /// The right that the key lacks, "iam:PassRole on arn:...", when that is why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub missing_right: String,
    /// "ok", or the class of the error.
    pub result: &'static str,
    pub status: u16,
    /// How long the answer took, in microseconds.
    pub duration_us: u64,
}

pub fn timestamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.format(&Rfc3339).unwrap_or_default()
}

#[derive(Debug)]
pub struct Audit {
    file: Option<Sender<Vec<u8>>>,
    unauthenticated: Option<Sender<Vec<u8>>>,
}

/// Writes records; ends when nobody takes any more and all are written.
#[derive(Debug)]
pub struct Writer(Vec<JoinHandle<()>>);

impl Audit {
    /// Records go to the log and to a file, if there is one: to `path`, or to
    /// `unauthenticated` when nobody is known to have signed the request.
    pub fn open(path: Option<&Path>, unauthenticated: Option<&Path>) -> std::io::Result<(Self, Writer)> {
        let mut writing = Vec::new();
        let mut open = |path: Option<&Path>| -> std::io::Result<_> {
            let Some(path) = path else { return Ok(None) };
            let mut lines = Lines::open(path)?;
            let (sender, receiver) = channel(QUEUE_RECORDS);
            writing.push(tokio::task::spawn_blocking(move || lines.write_all(receiver)));
            Ok(Some(sender))
        };
        let file = open(path)?;
        let unauthenticated = open(unauthenticated)?.or_else(|| file.clone());
        let audit = Self { file, unauthenticated };
        Ok((audit, Writer(writing)))
    }

    /// Takes one record. Waits for the disk when that is far behind.
    pub async fn record(&self, record: &Record) {
        tracing::info!(
            target: "audit",
            request_id = record.request_id,
            access_key_id = record.access_key_id,
            authenticated = record.authenticated,
            account_id = record.account_id,
            source_address = %record.source_address,
            action = record.action,
            resource = record.resource,
            missing_right = record.missing_right,
            result = record.result,
            status = record.status,
            duration_us = record.duration_us,
            "request"
        );
        let file = if record.authenticated { &self.file } else { &self.unauthenticated };
        let Some(file) = file else { return };
        let Ok(mut line) = serde_json::to_vec(record) else {
            return;
        };
        line.push(b'\n');
        if file.send(line).await.is_err() {
            tracing::error!(request_id = record.request_id, "an audit record is lost");
        }
    }
}

impl Writer {
    /// Waits until everything is written, at most `wait`.
    pub async fn ended(self, wait: Duration) {
        let all = futures::future::join_all(self.0);
        if tokio::time::timeout(wait, all).await.is_err() {
            tracing::error!("audit records are lost: they were not written in time");
        }
    }
}

/// The file, opened again when somebody moved it away.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
    looked: Instant,
}

impl Lines {
    fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append(path)?, looked: Instant::now() })
    }

    /// Writes until nobody sends any more.
    fn write_all(&mut self, mut lines: Receiver<Vec<u8>>) {
        while let Some(mut batch) = lines.blocking_recv() {
            // What is there already goes along.
            while let Ok(line) = lines.try_recv() {
                batch.extend(line);
                if batch.len() >= BATCH_BYTES {
                    break;
                }
            }
            if let Err(error) = self.write(&batch) {
                tracing::error!(%error, file = %self.path.display(), "audit records are lost");
            }
        }
    }

    fn write(&mut self, batch: &[u8]) -> std::io::Result<()> {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            let same = std::fs::metadata(&self.path)
                .and_then(|at_path| Ok(at_path.ino() == self.file.metadata()?.ino()));
            if !same.unwrap_or(false) {
                self.file = append(&self.path)?;
            }
        }
        self.file.write_all(batch)
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request_id: &str) -> Record {
        Record {
            time: timestamp(SystemTime::UNIX_EPOCH),
            request_id: request_id.to_owned(),
            access_key_id: "AKIAONE".to_owned(),
            authenticated: true,
            account_id: "000000000000".to_owned(),
            source_address: [127, 0, 0, 1].into(),
            action: "lambda:GetMicrovm",
            resource: "a \"quoted\"\nresource".to_owned(),
            missing_right: String::new(),
            result: "ok",
            status: 200,
            duration_us: 5,
        }
    }

    /// The request ids in a file, once it has `lines` lines.
    async fn ids(path: &Path, lines: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= lines && text.ends_with('\n') {
                let id = |line: &str| {
                    let value: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(value["resource"], "a \"quoted\"\nresource");
                    assert_eq!(value["time"], "1970-01-01T00:00:00Z");
                    value["request_id"].as_str().unwrap().to_owned()
                };
                return text.lines().map(id).collect();
            }
            assert!(Instant::now() < deadline, "only {text:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn records_are_lines_and_a_moved_file_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let (audit, writer) = Audit::open(Some(&path), None).unwrap();
        audit.record(&record("one")).await;
        audit.record(&record("two")).await;
        assert_eq!(ids(&path, 2).await, ["one", "two"]);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        let moved = directory.path().join("audit.1");
        std::fs::rename(&path, &moved).unwrap();
        tokio::time::sleep(LOOK_EVERY).await;
        audit.record(&record("three")).await;
        drop(audit);
        writer.ended(Duration::from_secs(10)).await;
        assert_eq!(ids(&path, 1).await, ["three"]);
        assert_eq!(ids(&moved, 2).await.len(), 2);
    }

    #[tokio::test]
    async fn who_is_not_known_writes_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let (known, unknown) = (directory.path().join("known"), directory.path().join("unknown"));
        let (audit, writer) = Audit::open(Some(&known), Some(&unknown)).unwrap();
        audit.record(&record("one")).await;
        let stranger = Record { authenticated: false, ..record("two") };
        audit.record(&stranger).await;
        drop(audit);
        writer.ended(Duration::from_secs(10)).await;
        assert_eq!(ids(&known, 1).await, ["one"]);
        assert_eq!(ids(&unknown, 1).await, ["two"]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_opened_is_said_at_once() {
        assert!(Audit::open(Some(Path::new("/proc/none/audit")), None).is_err());
        assert!(Audit::open(None, None).is_ok());
    }
}
