//! A small client for QEMU's control protocol: one JSON object per line over a Unix socket.
//!
//! Commands may be sent by several tasks at once; QEMU answers by id. Events go to one function, called in order on the
//! reading task, so that no event is ever lost to a slow listener: it must be quick, like a send into a watch channel.
//! When the connection ends, commands fail with [`Error::Gone`] and the function is told once.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result};

/// Longest line accepted: the console ring in base64 takes 88 KiB.
const LINE_BYTES_MAX: usize = 256 << 10;
/// Commands answer at once or QEMU hangs; a busy host may need seconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// What the connection reports by itself.
#[derive(Debug)]
pub(crate) enum Report {
    Event { name: String, data: Value },
    Closed,
}

type Answer = Result<Value, String>;
/// `None` once the connection is closed, so that nobody waits for an answer that cannot come.
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next_id: AtomicU64,
    _reader: AbortOnDropHandle<()>,
}

impl Qmp {
    /// Waits for the greeting and enters command mode. QEMU serves one client at a time; the greeting comes when an
    /// earlier client is gone, so the caller bounds the time.
    pub(crate) async fn connect(
        stream: UnixStream,
        report: impl Fn(Report) + Send + 'static,
    ) -> Result<Self> {
        let (reader, writer) = stream.into_split();
        let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
        let greeting = match lines.next().await {
            Some(Ok(line)) => parse(&line)?,
            Some(Err(e)) => return Err(Error::Protocol(format!("no greeting: {e}"))),
            None => return Err(Error::Gone),
        };
        if greeting.get("QMP").is_none() {
            return Err(Error::Protocol("the first line is no greeting".into()));
        }
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(read(lines, pending.clone(), report));
        let qmp = Self {
            writer: tokio::sync::Mutex::new(writer),
            pending,
            next_id: AtomicU64::new(1),
            _reader: AbortOnDropHandle::new(reader),
        };
        qmp.command("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn command(&self, command: &'static str, arguments: Value) -> Result<Value> {
        self.command_with_file(command, arguments, None).await
    }

    /// Sends a command along with an open file.
    pub(crate) async fn command_with_file(
        &self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line =
            json!({ "execute": command, "arguments": arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        let (sender, answer) = oneshot::channel();
        self.pending().as_mut().ok_or(Error::Gone)?.insert(id, sender);
        let _forget = Forget { pending: &self.pending, id };
        let exchange = async {
            self.send(&line, file).await?;
            answer.await.map_err(|_| Error::Gone)
        };
        match tokio::time::timeout(COMMAND_TIMEOUT, exchange).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(message))) => Err(Error::Command { command, message }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout { step: command, limit: COMMAND_TIMEOUT }),
        }
    }

    /// One line is one message of a few hundred bytes, which the socket takes whole or not at all.
    async fn send(&self, line: &[u8], file: Option<BorrowedFd<'_>>) -> Result<()> {
        let writer = self.writer.lock().await;
        let stream = writer.as_ref();
        let files = file.as_slice();
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !files.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(files));
                }
                Ok(sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await
            .map_err(|_| Error::Gone)?;
        if sent == line.len() { Ok(()) } else { Err(Error::Protocol("a command was cut off".into())) }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the entry of a command that nobody waits for any more out of the table.
struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(table) = self.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            table.remove(&self.id);
        }
    }
}

async fn read(
    mut lines: FramedRead<OwnedReadHalf, LinesCodec>,
    pending: Pending,
    report: impl Fn(Report) + Send + 'static,
) {
    // A line that is too long or no JSON ends the connection: QEMU never sends one, so what speaks is not trusted.
    while let Some(Ok(line)) = lines.next().await {
        let Ok(mut message) = parse(&line) else { break };
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            report(Report::Event { name: name.to_owned(), data: message["data"].clone() });
            continue;
        }
        let Some(id) = message.get("id").and_then(Value::as_u64) else {
            continue;
        };
        let answer = match message.get("error") {
            Some(error) => Err(error["desc"].as_str().unwrap_or("an error without words").to_owned()),
            None => Ok(message["return"].take()),
        };
        let waiting =
            pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|t| t.remove(&id));
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer); // gone: its caller gave up
        }
    }
    pending.lock().unwrap_or_else(PoisonError::into_inner).take();
    report(Report::Closed);
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line).map_err(|e| Error::Protocol(format!("a line that is no JSON: {e}")))
}

#[cfg(test)]
#[path = "qmp/tests.rs"]
mod tests;
