//! WebSocket messages of one size, both ends of them: a client's question and the same bytes in return. Not a
//! general implementation: every message is one frame of [`MESSAGE_BYTES`], and whatever else comes ends the
//! connection.

use std::io;

use anyhow::bail;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::app::SMALL_BYTES;

pub const MESSAGE_BYTES: usize = SMALL_BYTES;
/// FIN and "binary", then the length in two bytes.
const SERVER_HEAD: [u8; 4] = [0x82, 126, (MESSAGE_BYTES >> 8) as u8, (MESSAGE_BYTES & 0xff) as u8];
const CLIENT_HEAD: usize = 8;
/// What the client XORs its bytes with, chosen once: nothing on loopback needs it to be new.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];
/// Longest answer to the handshake in bytes.
const HEAD_MAX: usize = 16 * 1024;

/// A server that does not switch to WebSocket, with the first line of its answer.
#[derive(Debug, thiserror::Error)]
#[error("not supported: a WebSocket handshake is answered '{0}'")]
pub struct NotSupported(pub String);

/// Asks the server to switch; `headers` are whole lines.
pub async fn handshake<S>(stream: &mut S, host: &str, path: &str, headers: &str) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bG9hZHRlc3QgaXMgaGVyZQ==\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            bail!("the answer to a WebSocket handshake is longer than {HEAD_MAX} bytes");
        }
        head.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head);
    let line = text.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some("101") => Ok(()),
        _ => Err(NotSupported(line.to_owned()).into()),
    }
}

/// Sends one message and waits until it is back.
pub async fn exchange<S>(stream: &mut S) -> anyhow::Result<usize>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frame = [b'x'; CLIENT_HEAD + MESSAGE_BYTES];
    frame[..SERVER_HEAD.len()].copy_from_slice(&SERVER_HEAD);
    frame[1] |= 0x80;
    frame[4..CLIENT_HEAD].copy_from_slice(&MASK);
    xor(&mut frame[CLIENT_HEAD..]);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    let mut answer = [0; SERVER_HEAD.len() + MESSAGE_BYTES];
    stream.read_exact(&mut answer).await?;
    if answer[..SERVER_HEAD.len()] != SERVER_HEAD
        || answer[SERVER_HEAD.len()..].iter().any(|byte| *byte != b'x')
    {
        bail!("a WebSocket message came back changed");
    }
    Ok(MESSAGE_BYTES)
}

/// Returns messages until the client leaves.
pub async fn echo<S>(mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Ok(true) = echo_one(&mut stream).await {}
}

async fn echo_one<S>(stream: &mut S) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frame = [0; CLIENT_HEAD + MESSAGE_BYTES];
    stream.read_exact(&mut frame).await?;
    let mut expected = SERVER_HEAD;
    expected[1] |= 0x80;
    if frame[..SERVER_HEAD.len()] != expected || frame[4..CLIENT_HEAD] != MASK {
        return Ok(false);
    }
    xor(&mut frame[CLIENT_HEAD..]);
    frame[CLIENT_HEAD - SERVER_HEAD.len()..CLIENT_HEAD].copy_from_slice(&SERVER_HEAD);
    stream.write_all(&frame[CLIENT_HEAD - SERVER_HEAD.len()..]).await?;
    Ok(true)
}

fn xor(bytes: &mut [u8]) {
    for (byte, mask) in bytes.iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_back_and_other_frames_end_the_connection() {
        let (mut client, server) = tokio::io::duplex(4096);
        let served = tokio::spawn(echo(server));
        for _ in 0..3 {
            assert_eq!(exchange(&mut client).await.unwrap(), MESSAGE_BYTES);
        }
        client.write_all(&[0; CLIENT_HEAD + MESSAGE_BYTES]).await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_handshake_says_what_the_server_said() {
        let (mut client, mut server) = tokio::io::duplex(4096);
        server.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let refused = handshake(&mut client, "app", "/ws", "").await.unwrap_err();
        assert!(refused.is::<NotSupported>());
        assert!(refused.to_string().ends_with("'HTTP/1.1 400 Bad Request'"), "{refused}");
    }
}
