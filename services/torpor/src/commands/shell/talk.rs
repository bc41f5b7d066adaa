//! One session: what is typed goes out, what the terminal shows comes in, until one side ends it.

use std::io::Write;
use std::time::Duration;

use futures::stream::SplitSink;
use futures::{SinkExt as _, Stream, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::console::{Console, Leave, Size};
use crate::error::{CliError, Kind};

/// Reason of the close of a shell that has ended.
const EXITED: &str = "shell exited";

/// How long the other side may take over the last words.
const PARTING_TIMEOUT: Duration = Duration::from_secs(1);

/// Typed where a pipe ends.
const EXIT: &[u8] = b"exit\n";

/// Typed once a second after that, for programs that still read: the key that ends their input.
const END_OF_INPUT: &[u8] = b"\x04";
const END_PAUSE: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Debug)]
pub enum End {
    Exited,
    Left(Leave),
    /// The other side has closed it for a reason that another attempt would not change.
    Refused(CliError),
    /// The connection broke; a sentence without its full stop.
    Broken(String),
}

/// Serves a session to its end.
///
/// # Errors
/// When the output cannot be written.
pub async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    line: WebSocketStream<S>,
    console: &mut Console,
    out: &mut impl Write,
) -> Result<End, CliError> {
    let (mut sink, mut stream) = line.split();
    let size = console.size;
    let Console { typed, leave, resized, .. } = console;
    // Both at once: a shell that waits for its output to be read reads nothing itself.
    let sending = async {
        send_size(&mut sink, size()).await?;
        let mut line_begun = false;
        loop {
            tokio::select! {
                keys = typed.recv() => match keys {
                    Some(keys) => {
                        line_begun = keys.last() != Some(&b'\n');
                        sink.send(Message::binary(keys)).await?;
                    }
                    None => return exit(&mut sink, line_begun).await,
                },
                () = resized.notified() => send_size(&mut sink, size()).await?,
            }
        }
    };
    let end = {
        tokio::pin!(sending);
        let receiving = receive(&mut stream, out);
        tokio::pin!(receiving);
        tokio::select! {
            biased;
            Some(leave) = leave.recv() => End::Left(leave),
            end = &mut receiving => end?,
            // What the other side said before it stopped listening counts for more.
            failed = &mut sending => match tokio::time::timeout(PARTING_TIMEOUT, receiving).await {
                Ok(end) => end?,
                Err(_) => End::Broken(failed.map_or_else(|error| broken(&error), |()| String::new())),
            },
        }
    };
    // Our close, or the answer to the other side's. A connection that takes neither is dropped all the same.
    let _ = tokio::time::timeout(PARTING_TIMEOUT, async {
        let _ = sink.close().await;
        while stream.next().await.is_some_and(|message| message.is_ok()) {}
    })
    .await;
    Ok(end)
}

async fn send_size<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    size: Option<Size>,
) -> Result<(), Error> {
    let Some((cols, rows)) = size else {
        return Ok(());
    };
    let text = json!({ "type": "resize", "cols": cols, "rows": rows }).to_string();
    sink.send(Message::text(text)).await
}

/// Has the shell exit after what a pipe brought. The end of input alone would not do: a key that arrives while a
/// program runs is nothing special any more when the shell reads it.
async fn exit<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    line_begun: bool,
) -> Result<(), Error> {
    if line_begun {
        sink.send(Message::binary(b"\n".as_slice())).await?;
    }
    sink.send(Message::binary(EXIT)).await?;
    loop {
        tokio::time::sleep(END_PAUSE).await;
        sink.send(Message::binary(END_OF_INPUT)).await?;
    }
}

/// Writes what the terminal shows, until the other side ends the session.
async fn receive(
    stream: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    out: &mut impl Write,
) -> Result<End, CliError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                out.write_all(&bytes)?;
                out.flush()?;
            }
            Some(Ok(Message::Close(frame))) => return Ok(closed(frame.as_ref())),
            // The session's id, which nothing is done with; what is not known yet.
            Some(Ok(_)) => {}
            Some(Err(error)) => return Ok(End::Broken(broken(&error))),
            None => return Ok(End::Broken("the connection was closed".to_owned())),
        }
    }
}

fn broken(error: &Error) -> String {
    format!("the connection broke: {error}")
}

fn closed(frame: Option<&CloseFrame>) -> End {
    let Some(CloseFrame { code, reason }) = frame else {
        return End::Broken("the connection was closed without a reason".to_owned());
    };
    match code {
        CloseCode::Normal if reason.as_str() == EXITED => End::Exited,
        CloseCode::Again => End::Refused(
            CliError::new(Kind::Unavailable, reason.as_str()).next("leave one of them, then try again"),
        ),
        CloseCode::Error | CloseCode::Policy | CloseCode::Size | CloseCode::Protocol | CloseCode::Invalid => {
            End::Refused(CliError::failed(format!("the shell was ended: {reason} ({code})")))
        }
        _ => End::Broken(format!("the connection was closed: {reason} ({code})")),
    }
}

#[cfg(test)]
mod tests;
