//! The keys that are not for the shell: `~.` at the beginning of a line.

const ESCAPE: u8 = b'~';
const LEAVE: u8 = b'.';

/// What has been typed so far, as far as it matters.
#[derive(Debug)]
pub struct Keys {
    at_line_start: bool,
    /// True after a tilde at the beginning of a line, which is held back.
    escaped: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Self { at_line_start: true, escaped: false }
    }
}

impl Keys {
    /// What goes to the shell, and whether the user wants to leave; what follows that is dropped.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.escaped) {
                match byte {
                    LEAVE => return (passed, true),
                    // Twice is once.
                    ESCAPE => {}
                    _ => passed.push(ESCAPE),
                }
            } else if byte == ESCAPE && self.at_line_start {
                self.escaped = true;
                self.at_line_start = false;
                continue;
            }
            passed.push(byte);
            self.at_line_start = matches!(byte, b'\r' | b'\n');
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_means_something_at_the_beginning_of_a_line_only() {
        for (typed, passed, leaves) in [
            ("ls\r", "ls\r", false),
            ("~.", "", true),
            ("ls\r~.rest", "ls\r", true),
            ("ls ~.\r", "ls ~.\r", false),
            ("~~.", "~.", false),
            ("~/bin\r~a\r~.", "~/bin\r~a\r", true),
            ("~\r~.", "~\r", true),
            ("a~\r", "a~\r", false),
        ] {
            let mut whole = Keys::default();
            assert_eq!(whole.take(typed.as_bytes()), (passed.as_bytes().to_vec(), leaves), "{typed:?}");
            // However the keys arrive, they mean the same.
            let (mut keys, mut all, mut left) = (Keys::default(), Vec::new(), false);
            for byte in typed.bytes() {
                if !left {
                    let (some, leave) = keys.take(&[byte]);
                    all.extend(some);
                    left = leave;
                }
            }
            assert_eq!((all, left), (passed.as_bytes().to_vec(), leaves), "{typed:?}, key by key");
        }
    }
}
