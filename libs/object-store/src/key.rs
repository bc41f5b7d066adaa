//! Which object keys Torpor will send.

use crate::Error;

/// Longest key S3 takes, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// Refuses keys that S3 or a server that keeps objects as files would read
/// differently from how they were meant: empty ones, ones with empty, `.` or
/// `..` segments, control characters, or more than [`KEY_BYTES_MAX`] bytes.
pub fn check_key(key: &str) -> Result<(), Error> {
    let reason = if key.is_empty() {
        "it is empty"
    } else if key.len() > KEY_BYTES_MAX {
        "it is longer than 1024 bytes"
    } else if key.chars().any(char::is_control) {
        "it has control characters"
    } else if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        "a segment is empty, \".\" or \"..\""
    } else {
        return Ok(());
    };
    Err(Error::InvalidKey { key: key.chars().take(80).collect(), reason })
}

/// As [`check_key`] for a prefix: one slash at the end is fine.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), Error> {
    check_key(prefix.strip_suffix('/').unwrap_or(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let long = "k".repeat(KEY_BYTES_MAX);
        let too_long = "k".repeat(KEY_BYTES_MAX + 1);
        let cases: &[(&str, bool)] = &[
            ("a", true),
            ("a/b/c.json", true),
            ("images/app/1.0/memory/000001", true),
            ("..a/b..", true),
            (&long, true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("a/../b", false),
            ("..", false),
            ("./a", false),
            ("a\nb", false),
            ("a\0", false),
            (&too_long, false),
        ];
        for (key, fine) in cases {
            assert_eq!(check_key(key).is_ok(), *fine, "{key:?}");
        }
        assert!(check_prefix("a/").is_ok());
        assert!(check_prefix("/").is_err());
        assert!(check_prefix("a//").is_err());
    }
}
