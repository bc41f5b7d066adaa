//! The two tasks of a link and what they enforce on the guest's input.

use std::sync::Arc;
use std::time::Duration;

use api::guest::v1::{KeepAwake, StreamLogsResponse};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Event, Waiting};
use crate::frame::{self, Body, Frame, PREFIX_BYTES};
use crate::{
    KEEP_AWAKE_INTERVAL, KEEP_AWAKE_SECONDS, LOG_LINE_BYTES_MAX, LOG_LINES_PER_EVENT_MAX, truncate_text,
};

/// Places in the event queue for what is never dropped: AppExited and Closed.
pub(super) const EVENTS_RESERVED: usize = 2;

/// Longest wait for the rest of a frame, and for the stream to take one.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// What a guest may send for long, in bytes per second. The guest-agent keeps to
/// 1 MiB/s; a guest that sends more is read slower, and only it waits.
const READ_BYTES_PER_SECOND: f64 = 8.0 * 1024.0 * 1024.0;

/// What a guest may send at once before the rate counts, in bytes.
const READ_BURST_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

/// What a frame costs the rate beyond its bytes, so that empty frames count too.
const READ_FRAME_COST_BYTES: f64 = 1024.0;

/// Longest sentence taken from a guest, in bytes.
const MESSAGE_BYTES_MAX: usize = 512;

/// Runs a link until its stream ends, breaks a rule, or `stop` fires.
pub(super) async fn run<S>(
    stream: S,
    requests: mpsc::Receiver<Vec<u8>>,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (input, output) = tokio::io::split(stream);
    let reading = async {
        let mut reader = Reader {
            input: Box::pin(input),
            waiting: &waiting,
            events: &events,
            lost: 0,
            exited: false,
            kept_awake: None,
        };
        reader.run().await
    };
    let reason = tokio::select! {
        reason = reading => reason,
        reason = write_all(Box::pin(output), requests) => reason,
        () = stop.cancelled() => "closed by the host".to_owned(),
    };
    let reason = waiting.close(&reason);
    // The reserved place makes this succeed unless nobody listens any more.
    let _ = events.try_send(Event::Closed { reason });
}

async fn write_all(mut output: impl AsyncWrite + Unpin, mut requests: mpsc::Receiver<Vec<u8>>) -> String {
    while let Some(bytes) = requests.recv().await {
        match timeout(FRAME_TIMEOUT, output.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return format!("writing failed: {error}"),
            Err(_) => return "the guest takes no bytes".to_owned(),
        }
    }
    "closed by the host".to_owned()
}

struct Reader<'a, R> {
    input: R,
    waiting: &'a Waiting,
    events: &'a mpsc::Sender<Event>,
    /// Lines dropped here and not yet reported.
    lost: u64,
    /// AppExited was passed on; a guest that repeats it is not.
    exited: bool,
    /// When the guest last asked to be kept awake.
    kept_awake: Option<Instant>,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    async fn run(&mut self) -> String {
        let mut rate = Rate::new(Instant::now());
        loop {
            match self.read_frame().await {
                Ok(None) => return "the guest closed the stream".to_owned(),
                Err(reason) => return reason,
                Ok(Some((frame, bytes))) => {
                    if let Err(reason) = self.take(frame) {
                        return reason;
                    }
                    if let Some(until) = rate.spend(Instant::now(), bytes) {
                        sleep_until(until).await;
                    }
                }
            }
        }
    }

    /// A frame and its size. Between frames the guest may be silent for ever, inside one it may not.
    async fn read_frame(&mut self) -> Result<Option<(Frame, usize)>, String> {
        let mut prefix = [0; PREFIX_BYTES];
        match self.input.read(&mut prefix[..1]).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(format!("reading failed: {error}")),
        }
        let rest = async {
            self.input.read_exact(&mut prefix[1..]).await?;
            let mut body = vec![0; frame::announced_length(prefix)?];
            self.input.read_exact(&mut body).await?;
            Ok::<_, frame::FrameError>((frame::decode(&body)?, body.len()))
        };
        match timeout(FRAME_TIMEOUT, rest).await {
            Ok(Ok(frame)) => Ok(Some(frame)),
            Ok(Err(error)) => Err(format!("the guest sent no frame: {error}")),
            Err(_) => Err("the guest stopped inside a frame".to_owned()),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<(), String> {
        match frame.body {
            Some(Body::StreamLogsResponse(logs)) => self.take_logs(logs),
            Some(Body::AppExited(exited)) => {
                if !self.exited {
                    self.exited = true;
                    let _ = self.events.try_send(Event::AppExited(exited));
                }
                Ok(())
            }
            Some(Body::KeepAwake(KeepAwake { duration })) => {
                self.take_keep_awake(duration.as_ref());
                Ok(())
            }
            Some(body) if frame.exchange != 0 => {
                self.waiting.answer(frame.exchange, body);
                Ok(())
            }
            // An event this host does not know: a newer guest-agent.
            Some(_) | None => Ok(()),
        }
    }

    /// What comes too often, is out of bounds or finds no place is dropped: a guest-agent sends none of it.
    fn take_keep_awake(&mut self, duration: Option<&prost_types::Duration>) {
        let now = Instant::now();
        let soon = self.kept_awake.is_some_and(|at| now.duration_since(at) < KEEP_AWAKE_INTERVAL / 2);
        let asked = duration.map(api::duration).transpose();
        let good = asked
            .ok()
            .filter(|asked| asked.is_none_or(|asked| KEEP_AWAKE_SECONDS.contains(&asked.as_secs())));
        let Some(asked) = good.filter(|_| !soon && self.events.capacity() > EVENTS_RESERVED) else { return };
        self.kept_awake = Some(now);
        let _ = self.events.try_send(Event::KeepAwake(asked));
    }

    fn take_logs(&mut self, logs: StreamLogsResponse) -> Result<(), String> {
        if logs.lines.len() > LOG_LINES_PER_EVENT_MAX {
            return Err(format!("the guest sent {} log lines at once", logs.lines.len()));
        }
        let mut lines = logs.lines;
        for line in &mut lines {
            truncate_text(&mut line.text, LOG_LINE_BYTES_MAX);
        }
        let lost = self.lost.saturating_add(logs.dropped);
        if self.events.capacity() <= EVENTS_RESERVED {
            self.lost = lost.saturating_add(lines.len() as u64);
            return Ok(());
        }
        self.lost = 0;
        let _ = self.events.try_send(Event::Logs { lines, dropped: lost });
        Ok(())
    }
}

/// A token bucket over what the guest sends.
struct Rate {
    tokens: f64,
    at: Instant,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { tokens: READ_BURST_BYTES, at: now }
    }

    /// Charges a frame; the time until which to read nothing, if it overdrew.
    fn spend(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        #[allow(clippy::cast_precision_loss, reason = "a frame is at most 1 MiB")]
        let cost = bytes as f64 + READ_FRAME_COST_BYTES;
        let earned = now.duration_since(self.at).as_secs_f64() * READ_BYTES_PER_SECOND;
        self.tokens = (self.tokens + earned).min(READ_BURST_BYTES) - cost;
        self.at = now;
        (self.tokens < 0.0).then(|| now + Duration::from_secs_f64(-self.tokens / READ_BYTES_PER_SECOND))
    }
}

/// A guest's sentence, cut to [`MESSAGE_BYTES_MAX`].
pub(super) fn cut(mut message: String) -> String {
    truncate_text(&mut message, MESSAGE_BYTES_MAX);
    message
}
