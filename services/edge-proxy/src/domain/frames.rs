//! Where the frames of a WebSocket end (RFC 6455, section 5.2), in the direction from an app to its client. Only their heads
//! are read: a close frame of the edge's own would be taken for content anywhere but between two of them.

/// First byte of the largest head: flags and opcode, length, extended length. An app's frames are not masked.
const HEAD_MAX: usize = 10;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
/// What a length byte means that is no length: 2 or 8 bytes of length follow.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
const CLOSE: u8 = 0x8;

/// How far the bytes of one direction have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frames {
    /// In a frame's head, of which this much is there; between two frames when that is nothing.
    Head { bytes: [u8; HEAD_MAX], count: usize },
    /// In a frame's payload, of which so many bytes are still to come.
    Payload(u64),
    /// The app has begun its own close frame: nothing may follow it.
    Closing,
    /// These are no frames.
    Lost,
}

impl Default for Frames {
    fn default() -> Self {
        Self::Head { bytes: [0; HEAD_MAX], count: 0 }
    }
}

impl Frames {
    /// Takes note of bytes that have passed.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = self.step(bytes);
            bytes = &bytes[count..];
        }
    }

    /// How many of `bytes` belong to the frame that is under way, or begins with them.
    pub fn rest(&self, bytes: &[u8]) -> usize {
        self.clone().step(bytes)
    }

    /// True where a frame may begin.
    pub fn is_between(&self) -> bool {
        matches!(self, Self::Head { count: 0, .. })
    }

    /// True where the frame under way has an end to wait for.
    pub fn is_within(&self) -> bool {
        matches!(self, Self::Head { count: 1.., .. } | Self::Payload(_))
    }

    /// Goes on to the end of a frame or of `bytes`, which are not empty; says how many it took.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while let Self::Head { bytes: head, count } = self {
            let Some(byte) = bytes.get(taken) else { return taken };
            head[*count] = *byte;
            (taken, *count) = (taken + 1, *count + 1);
            if let Some(next) = after_head(&head[..*count]) {
                *self = next;
                if self.is_between() {
                    return taken;
                }
            }
        }
        let Self::Payload(left) = self else { return bytes.len() };
        let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - taken);
        *left -= count as u64;
        if *left == 0 {
            *self = Self::default();
        }
        taken + count
    }
}

/// What follows a head; `None` when it is not whole.
fn after_head(head: &[u8]) -> Option<Frames> {
    let &[flags, length, ref extended @ ..] = head else { return None };
    if length & MASKED != 0 || !matches!(flags & OPCODE, 0..=2 | 8..=10) {
        return Some(Frames::Lost);
    }
    let length = match (length & LENGTH, extended) {
        (LENGTH_16, &[a, b]) => u64::from(u16::from_be_bytes([a, b])),
        (LENGTH_64, extended) => u64::from_be_bytes(extended.try_into().ok()?),
        (LENGTH_16, _) => return None,
        (length, _) => u64::from(length),
    };
    if flags & OPCODE == CLOSE {
        return Some(Frames::Closing);
    }
    Some(if length == 0 { Frames::default() } else { Frames::Payload(length) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(flags: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![flags];
        match payload {
            0..126 => frame.push(u8::try_from(payload).unwrap()),
            126..65_536 => {
                frame.push(LENGTH_16);
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(LENGTH_64);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        // What looks like a close frame, all through.
        frame.extend([0x88, 0].iter().cycle().take(payload));
        frame
    }

    #[test]
    fn the_end_of_each_frame_is_known() {
        for payload in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let bytes = frame(0x82, payload);
            let mut frames = Frames::default();
            for (at, byte) in bytes.iter().enumerate() {
                assert_eq!(frames.is_between(), at == 0, "{payload}: {at}");
                assert_eq!(frames.is_within(), at > 0, "{payload}: {at}");
                frames.pass(&[*byte]);
            }
            assert!(frames.is_between(), "{payload}");
            let more = [bytes.as_slice(), b"\x89\x00"].concat();
            assert_eq!(frames.rest(&more), bytes.len(), "{payload}");
        }
    }

    #[test]
    fn a_close_frame_and_what_is_no_frame_end_the_reckoning() {
        for (bytes, expected) in [
            (&b"\x88\x00"[..], Frames::Closing),
            (b"\x81\x01x\x88\x02\x03\xe8", Frames::Closing),
            (b"\x81\x81", Frames::Lost),
            (b"\x83\x00", Frames::Lost),
            (b"echo", Frames::Lost),
        ] {
            let mut frames = Frames::default();
            frames.pass(bytes);
            assert_eq!(frames, expected, "{bytes:?}");
            assert!(!frames.is_between() && !frames.is_within());
            frames.pass(b"more");
            assert_eq!(frames, expected, "{bytes:?}");
        }
    }

    proptest! {
        /// However the bytes are cut, the reckoning is the same.
        #[test]
        fn pieces_do_not_matter(
            sizes in prop::collection::vec(0usize..300, 1..20),
            pieces in prop::collection::vec(1usize..200, 1..50),
        ) {
            let bytes: Vec<u8> = sizes.iter().flat_map(|size| frame(0x02, *size)).collect();
            let (mut whole, mut cut) = (Frames::default(), Frames::default());
            whole.pass(&bytes);
            let (mut rest, mut pieces) = (bytes.as_slice(), pieces.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(pieces.next().unwrap().min(rest.len()));
                cut.pass(piece);
                rest = after;
            }
            prop_assert!(whole.is_between() && cut.is_between());
        }
    }
}
