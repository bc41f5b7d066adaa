//! Length-prefixed protobuf messages.

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest message in bytes, without its length.
pub const FRAME_MAX: usize = 64 * 1024;
const LENGTH: usize = 4;

/// A message that could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed or ended within the frame.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The message is longer than [`FRAME_MAX`].
    #[error("a frame of {length} bytes is too long")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The bytes are not the message.
    #[error("a frame cannot be decoded")]
    Malformed(#[from] prost::DecodeError),
}

/// Reads one message and not a byte more.
///
/// # Errors
/// See [`FrameError`]; after one the connection is of no further use.
pub async fn read_frame<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<M, FrameError> {
    let mut length = [0; LENGTH];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(FrameError::TooLong { length });
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(M::decode(body.as_slice())?)
}

/// Writes one message in one piece and flushes it.
///
/// # Errors
/// See [`FrameError`].
pub async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
) -> Result<(), FrameError> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= FRAME_MAX);
    let prefix = prefix.ok_or(FrameError::TooLong { length })?;
    let mut bytes = Vec::with_capacity(LENGTH + length);
    bytes.extend_from_slice(&prefix.to_be_bytes());
    message.encode(&mut bytes).expect("a vector grows as needed");
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::tunnel::v1::OpenRequest;

    use super::*;

    #[tokio::test]
    async fn frames_come_back_and_leave_the_rest() {
        let request =
            OpenRequest { microvm_id: "microvm-x".into(), port: 8080, wake: true, ..Default::default() };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &request).await.unwrap();
        bytes.extend_from_slice(b"rest");
        let mut reader = bytes.as_slice();
        assert_eq!(read_frame::<OpenRequest>(&mut reader).await.unwrap(), request);
        assert_eq!(reader, b"rest");
    }

    #[tokio::test]
    async fn bad_frames_are_refused() {
        let too_long = u32::try_from(FRAME_MAX + 1).unwrap().to_be_bytes();
        assert!(matches!(
            read_frame::<OpenRequest>(&mut too_long.as_slice()).await,
            Err(FrameError::TooLong { .. })
        ));
        let cut = [0, 0, 0, 9, 1];
        assert!(matches!(read_frame::<OpenRequest>(&mut cut.as_slice()).await, Err(FrameError::Io(_))));
        let garbage = [0, 0, 0, 2, 0xff, 0xff];
        assert!(matches!(
            read_frame::<OpenRequest>(&mut garbage.as_slice()).await,
            Err(FrameError::Malformed(_))
        ));
        let long = OpenRequest { microvm_id: "x".repeat(FRAME_MAX), ..Default::default() };
        assert!(matches!(write_frame(&mut Vec::new(), &long).await, Err(FrameError::TooLong { .. })));
    }
}
