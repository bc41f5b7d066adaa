//! Lines of a program's output, each of bounded length, whatever the program writes.

use std::io;

use log_store::LINE_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt as _};

const BUFFER_BYTES: usize = 64 * 1024;
const CUT: &str = " [line cut]";

/// Splits a stream at line feeds and carriage returns (progress bars).
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Unread part of `buffer`.
    start: usize,
    end: usize,
    line: Vec<u8>,
    cut: bool,
    /// The last line ended with a carriage return: a line feed belongs to it.
    returned: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            line: Vec::new(),
            cut: false,
            returned: false,
        }
    }

    /// The next line without its end, invalid UTF-8 replaced; `None` at the end of the stream. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            let stop = unread.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let length = stop.unwrap_or(unread.len());
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&unread[..length.min(room)]);
            self.cut |= length > room;
            self.start += length;
            if let Some(at) = stop {
                let feed = unread[at] == b'\n';
                self.start += 1;
                let same_end = feed && length == 0 && self.line.is_empty() && self.returned;
                self.returned = !feed;
                if same_end || (!feed && self.line.is_empty()) {
                    continue;
                }
                return Ok(Some(self.take()));
            }
            self.start = 0;
            self.end = 0;
            self.end = self.reader.read(&mut self.buffer).await?;
            if self.end == 0 {
                return Ok((!self.line.is_empty()).then(|| self.take()));
            }
        }
    }

    fn take(&mut self) -> String {
        let mut text = String::from_utf8_lossy(&self.line).into_owned();
        if self.cut {
            let mut end = text.len().min(LINE_BYTES_MAX - CUT.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(CUT);
        }
        self.line.clear();
        self.cut = false;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new(bytes);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_are_split_and_bounded() {
        assert_eq!(lines(b"a\nb\n\nc").await, ["a", "b", "", "c"]);
        assert_eq!(lines(b"10%\r20%\r\ndone\n").await, ["10%", "20%", "done"]);
        assert_eq!(lines(b"\xff\n").await, ["\u{fffd}"]);
        assert!(lines(b"").await.is_empty());
        let long = vec![b'x'; 3 * LINE_BYTES_MAX];
        let cut = lines(&[long.as_slice(), b"\nnext"].concat()).await;
        assert_eq!((cut.len(), cut[0].len(), cut[1].as_str()), (2, LINE_BYTES_MAX, "next"));
        assert!(cut[0].ends_with(CUT));
    }
}
