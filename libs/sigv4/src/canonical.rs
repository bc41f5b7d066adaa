//! The canonical request: what the client hashed, built again from what came in.

use crate::query::RESERVED;
use crate::unverified::UnverifiedSignature;
use percent_encoding::{AsciiSet, percent_encode};
use std::borrow::Cow;

/// The path is hashed with its percent-encoding encoded once more.
const PATH_RESERVED: &AsciiSet = &RESERVED.remove(b'/');

/// The path without empty, `.` and `..` segments: what a signature covers. Still
/// percent-encoded. A final slash stays; an empty path is `/`.
pub fn normal_path(raw: &str) -> Cow<'_, str> {
    let odd = |segment: &str| matches!(segment, "" | "." | "..");
    let body = raw.strip_prefix('/').unwrap_or(raw);
    let body = body.strip_suffix('/').unwrap_or(body);
    if raw.starts_with('/') && (raw.len() == 1 || !body.split('/').any(odd)) {
        return Cow::Borrowed(raw);
    }
    let mut segments = Vec::new();
    for segment in raw.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let end = if raw.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    Cow::Owned(format!("/{}{end}", segments.join("/")))
}

/// The canonical request that was signed, with this text for the payload's hash.
/// `None` where a signed header did not come.
pub(crate) fn request(unverified: &UnverifiedSignature<'_>, payload_hash: &str) -> Option<Vec<u8>> {
    let request = &unverified.request;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(request.method.as_bytes());
    out.push(b'\n');
    for piece in percent_encode(normal_path(request.raw_path).as_bytes(), PATH_RESERVED) {
        out.extend_from_slice(piece.as_bytes());
    }
    out.push(b'\n');
    unverified.query.canonical(&mut out);
    out.push(b'\n');
    for name in unverified.signed_headers() {
        header(unverified, name, &mut out)?;
    }
    out.push(b'\n');
    out.extend_from_slice(unverified.signed_headers.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(payload_hash.as_bytes());
    Some(out)
}

/// `name:value,value\n`, the values in the order sent.
fn header(unverified: &UnverifiedSignature<'_>, name: &str, out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(name.as_bytes());
    let mut separator = b':';
    for value in unverified.request.headers.get_all(name) {
        out.push(separator);
        trimmed(value.as_bytes(), out);
        separator = b',';
    }
    if separator == b':' {
        let authority = unverified.request.authority.filter(|_| name == "host")?;
        out.push(separator);
        trimmed(authority.as_bytes(), out);
    }
    out.push(b'\n');
    Some(())
}

/// Without spaces at the ends, and one for each run of them inside.
fn trimmed(value: &[u8], out: &mut Vec<u8>) {
    let words = value.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    for (i, word) in words.enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_loses_what_a_signature_does_not_cover() {
        for (raw, normal) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("//a//b//", "/a/b/"),
            ("/./a/./b/.", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("a/b", "/a/b"),
            ("/a/%2E%2E/b", "/a/%2E%2E/b"),
            ("/...", "/..."),
        ] {
            assert_eq!(normal_path(raw), normal, "{raw}");
        }
    }
}
