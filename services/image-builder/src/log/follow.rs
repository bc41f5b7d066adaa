//! Following a build's log: live from this replica's file, from S3 when the build is over. On a replica that
//! does not run the build, its lines come when it is over; its state comes at once.

use std::sync::Arc;

use api::common::v1::LogLine;
use api::image::v1::{FollowBuildLogRequest, FollowBuildLogResponse, ImageBuild};
use log_store::{Batch, Reader};
use object_store::Store as Objects;
use prost::Message as _;
use records::Event;
use tokio::sync::{mpsc, watch};

use super::Logs;
use crate::adapters::catalog::Catalog;
use crate::config::Config;
use crate::domain::lifecycle::is_over;
use crate::refusal::Refusal;

/// Messages a slow follower may leave unread before its stream waits for it.
const QUEUE_MESSAGES: usize = 4;
/// Bytes of a stored log read at a time.
const PIECE_BYTES: u64 = 1 << 20;

pub type Messages = mpsc::Receiver<Result<FollowBuildLogResponse, Refusal>>;

/// Logs of builds, wherever they run or ran.
#[derive(Debug, Clone)]
pub struct BuildLogs {
    pub catalog: Catalog,
    pub objects: Objects,
    pub config: Arc<Config>,
    /// Logs of builds that run here.
    pub local: Arc<Logs>,
}

impl BuildLogs {
    /// Starts a follower of `build`'s log. It ends when the caller hangs up.
    pub fn follow(&self, build: ImageBuild, request: &FollowBuildLogRequest) -> Messages {
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let mut follower = Follower { logs: self.clone(), sender, next: request.from_sequence, shown: None };
        let follow = request.follow;
        tokio::spawn(async move {
            if let Err(Ended::Failed(refusal)) = follower.run(build, follow).await {
                let _ = follower.sender.send(Err(refusal)).await;
            }
        });
        receiver
    }
}

enum Ended {
    HungUp,
    Failed(Refusal),
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Self::Failed(refusal)
    }
}

struct Follower {
    logs: BuildLogs,
    sender: mpsc::Sender<Result<FollowBuildLogResponse, Refusal>>,
    /// First line that was not sent yet.
    next: u64,
    /// State and step that were sent last.
    shown: Option<(i32, i32)>,
}

impl Follower {
    async fn run(&mut self, mut build: ImageBuild, follow: bool) -> Result<(), Ended> {
        let (mut reader, mut lines) = self.local(&build.build_id);
        let mut records = self.logs.catalog.store().watch(&format!("builds/{}", build.build_id));
        loop {
            self.show(&build).await?;
            if let Some(reader) = &mut reader {
                self.send_new(reader).await?;
            }
            if is_over(&build) {
                break;
            }
            if !follow {
                return Ok(());
            }
            if reader.is_none() {
                // It may have begun here since.
                (reader, lines) = self.local(&build.build_id);
            }
            let more = async {
                match &mut lines {
                    Some(lines) => lines.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.sender.closed() => return Err(Ended::HungUp),
                alive = more => if !alive {
                    (reader, lines) = (None, None);
                },
                event = records.next() => build = changed(event, build)?,
            }
        }
        // The log ended elsewhere, or here before the reader had its file.
        if self.next < build.log_lines && !build.log_key.is_empty() {
            self.send_stored(&build.log_key).await?;
        }
        // The end comes after all lines.
        self.send(Vec::new(), Some(build)).await
    }

    /// A reader of the build's log, and the news of its end, if it runs here.
    fn local(&self, build: &str) -> (Option<Reader>, Option<watch::Receiver<u64>>) {
        self.logs.local.find(build).map(|log| (log.reader(self.next), log.end())).unzip()
    }

    async fn show(&mut self, build: &ImageBuild) -> Result<(), Ended> {
        let now = (build.state, build.step);
        if self.shown != Some(now) && !is_over(build) {
            self.shown = Some(now);
            self.send(Vec::new(), Some(build.clone())).await?;
        }
        Ok(())
    }

    async fn send(&self, lines: Vec<LogLine>, build: Option<ImageBuild>) -> Result<(), Ended> {
        let message = FollowBuildLogResponse { lines, build };
        self.sender.send(Ok(message)).await.map_err(|_| Ended::HungUp)
    }

    async fn send_lines(&mut self, lines: Vec<LogLine>) -> Result<(), Ended> {
        if let Some(last) = lines.last() {
            self.next = last.sequence + 1;
            self.send(lines, None).await?;
        }
        Ok(())
    }

    /// Sends what the file has beyond what was sent.
    async fn send_new(&mut self, reader: &mut Reader) -> Result<(), Ended> {
        loop {
            let lines = reader.read().map_err(|error| broken(&error.to_string()))?;
            if lines.is_empty() {
                return Ok(());
            }
            self.send_lines(lines).await?;
        }
    }

    /// Sends the rest from S3, piece by piece.
    async fn send_stored(&mut self, key: &str) -> Result<(), Ended> {
        let (objects, config) = (self.logs.objects.clone(), Arc::clone(&self.logs.config));
        let bucket = &config.log_bucket;
        let unavailable = |error: object_store::Error| Refusal::Unavailable(error.to_string());
        let size = objects.head(bucket, key).await.map_err(unavailable)?.size;
        let mut batch = Batch::new(self.next);
        let mut rest: Vec<u8> = Vec::new();
        let mut at = 0;
        while at < size {
            let end = (at + PIECE_BYTES).min(size);
            rest.extend_from_slice(&objects.get_range(bucket, key, at..end).await.map_err(unavailable)?);
            at = end;
            let complete = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            for line in rest[..complete].split_inclusive(|byte| *byte == b'\n') {
                batch.add(line);
                if batch.is_full() {
                    self.send_lines(batch.take()).await?;
                }
            }
            rest.drain(..complete);
        }
        self.send_lines(batch.take()).await
    }
}

fn changed(event: Event, build: ImageBuild) -> Result<ImageBuild, Ended> {
    let bytes = match event {
        Event::Put(_, found) => found.value,
        Event::Snapshot(mut all) => match all.pop() {
            Some((_, found)) => found.value,
            None => return Err(Refusal::BuildNotFound(build.build_id).into()),
        },
        Event::Delete(_) => return Err(Refusal::BuildNotFound(build.build_id).into()),
    };
    ImageBuild::decode(bytes.as_slice()).map_err(|error| broken(&error.to_string()).into())
}

fn broken(detail: &str) -> Refusal {
    Refusal::Internal(format!("the build's log cannot be read: {detail}"))
}
