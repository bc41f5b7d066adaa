//! Bytes into lines of bounded length.

use guest_link::LOG_LINE_BYTES_MAX;

/// Splits one stream. A line over [`LOG_LINE_BYTES_MAX`] comes out in pieces.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Takes bytes; `line` gets each line that they complete, without its end.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.take(&bytes[..end], &mut line);
            self.finish(&mut line);
            bytes = &bytes[end + 1..];
        }
        self.take(bytes, &mut line);
    }

    /// The stream has ended; what is left is a line.
    pub fn end(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            self.finish(&mut line);
        }
    }

    fn take(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&[u8])) {
        while self.partial.len() + bytes.len() > LOG_LINE_BYTES_MAX {
            let (piece, rest) = bytes.split_at(LOG_LINE_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(piece);
            line(&self.partial);
            self.partial.clear();
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn finish(&mut self, line: &mut impl FnMut(&[u8])) {
        line(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial));
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |line| lines.push(line.to_vec()));
        }
        splitter.end(|line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn lines() {
        for (chunks, expected) in [
            (vec![], vec![]),
            (vec!["a\nb\n"], vec!["a", "b"]),
            (vec!["a", "b\nc"], vec!["ab", "c"]),
            (vec!["a\r\n\n\nb"], vec!["a", "", "", "b"]),
            (vec!["a\r", "\n"], vec!["a"]),
        ] {
            let chunks: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
            let expected: Vec<Vec<u8>> = expected.iter().map(|line| line.as_bytes().to_vec()).collect();
            assert_eq!(split(&chunks), expected);
        }
    }

    proptest! {
        #[test]
        fn how_bytes_arrive_does_not_matter(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..500),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len() + 1);
            prop_assert_eq!(split(&[&bytes]), split(&[&bytes[..cut], &bytes[cut..]]));
        }

        #[test]
        fn no_byte_of_a_long_line_is_lost(length in 0_usize..60_000) {
            let line: Vec<u8> = (0..length).map(|index| b'a' + (index % 26) as u8).collect();
            let pieces = split(&[&line]);
            prop_assert!(pieces.iter().all(|piece| piece.len() <= LOG_LINE_BYTES_MAX));
            prop_assert_eq!(pieces.concat(), line);
        }
    }
}
