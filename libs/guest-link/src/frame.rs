//! The frame codec: u32 big-endian length, then one encoded [`Frame`].
//!
//! A length above [`FRAME_BYTES_MAX`] is refused before a byte of it is stored,
//! so a peer decides how much memory it takes only below that bound.

use std::io::{self, Read, Write};

pub use api::guest::v1::{Frame, frame::Body};
use prost::Message as _;

/// Largest encoded frame, without its length prefix, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why bytes are not a frame, or a frame does not fit the wire.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLarge(usize),
    #[error("malformed frame")]
    Malformed(#[from] prost::DecodeError),
    #[error("frame stream failed")]
    Io(#[from] io::Error),
}

/// Encodes a frame with its length prefix.
pub fn encode(frame: &Frame) -> Result<Vec<u8>, FrameError> {
    let length = frame.encoded_len();
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
    let prefix = u32::try_from(length).expect("FRAME_BYTES_MAX fits u32");
    bytes.extend_from_slice(&prefix.to_be_bytes());
    frame.encode_raw(&mut bytes);
    Ok(bytes)
}

/// Length of the frame that a prefix announces, in bytes.
pub fn announced_length(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > FRAME_BYTES_MAX { Err(FrameError::TooLarge(length)) } else { Ok(length) }
}

/// Decodes the body of a frame (without its prefix).
pub fn decode(body: &[u8]) -> Result<Frame, FrameError> {
    Ok(Frame::decode(body)?)
}

/// Takes the first frame out of `bytes`: the frame and how many bytes it took,
/// or `None` while it is incomplete.
pub fn split_first(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let end = PREFIX_BYTES + announced_length(*prefix)?;
    match bytes.get(PREFIX_BYTES..end) {
        Some(body) => Ok(Some((decode(body)?, end))),
        None => Ok(None),
    }
}

/// Reads one frame; `None` when the stream ends cleanly between frames.
pub fn read(stream: &mut impl Read) -> Result<Option<Frame>, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut filled = 0;
    while filled < PREFIX_BYTES {
        match stream.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut body = vec![0; announced_length(prefix)?];
    stream.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Writes one frame in a single `write_all`.
///
/// # Errors
/// [`FrameError::TooLarge`] before anything is written, or [`FrameError::Io`].
pub fn write(stream: &mut impl Write, frame: &Frame) -> Result<(), FrameError> {
    Ok(stream.write_all(&encode(frame)?)?)
}

#[cfg(test)]
mod tests {
    use api::guest::v1::{Failure, RepairIdentityRequest, StreamLogsRequest};
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let body = prop_oneof![
            (".{0,40}", any::<bool>())
                .prop_map(|(message, invalid)| Body::Failure(Failure { message, invalid })),
            any::<u64>()
                .prop_map(|from_sequence| Body::StreamLogsRequest(StreamLogsRequest { from_sequence })),
            (proptest::collection::vec(any::<u8>(), 0..600), any::<u64>()).prop_map(
                |(entropy, restore_count)| Body::RepairIdentityRequest(RepairIdentityRequest {
                    entropy,
                    restore_count,
                    ..Default::default()
                })
            ),
        ];
        (any::<u32>(), proptest::option::of(body)).prop_map(|(exchange, body)| Frame { exchange, body })
    }

    /// `RepairIdentityRequest` hides its secrets from `Debug`, so compare bytes.
    fn same(left: &Frame, right: &Frame) -> bool {
        left.encode_to_vec() == right.encode_to_vec()
    }

    proptest! {
        #[test]
        fn every_frame_survives_the_stream(sent in proptest::collection::vec(frames(), 0..5)) {
            let mut wire = Vec::new();
            for frame in &sent {
                write(&mut wire, frame).unwrap();
            }
            let mut stream = wire.as_slice();
            let mut rest = wire.as_slice();
            for frame in &sent {
                prop_assert!(same(&read(&mut stream).unwrap().unwrap(), frame));
                let (split, taken) = split_first(rest).unwrap().unwrap();
                prop_assert!(same(&split, frame));
                rest = &rest[taken..];
            }
            prop_assert!(read(&mut stream).unwrap().is_none());
        }

        #[test]
        fn a_cut_frame_is_incomplete_never_wrong(frame in frames(), cut in any::<prop::sample::Index>()) {
            let wire = encode(&frame).unwrap();
            let part = &wire[..cut.index(wire.len())];
            prop_assert!(split_first(part).unwrap().is_none());
            let mut stream = part;
            match read(&mut stream) {
                Ok(None) => prop_assert!(part.is_empty()),
                Ok(Some(_)) => prop_assert!(false, "read a frame out of a part of it"),
                Err(error) => prop_assert!(matches!(error, FrameError::Io(_))),
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = split_first(&bytes);
            let _ = read(&mut bytes.as_slice());
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body() {
        let prefix = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes();
        assert!(matches!(split_first(&prefix), Err(FrameError::TooLarge(_))));
        assert!(matches!(read(&mut prefix.as_slice()), Err(FrameError::TooLarge(_))));
        let big = Frame {
            exchange: 1,
            body: Some(Body::Failure(Failure { message: "x".repeat(FRAME_BYTES_MAX), invalid: false })),
        };
        assert!(matches!(encode(&big), Err(FrameError::TooLarge(_))));
    }
}
