//! The query string: pairs, decoded once, and its canonical form.

use crate::{Error, QUERY_LENGTH_MAX, QUERY_PARAMETERS_MAX};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use std::borrow::Cow;

/// All that RFC 3986 does not call unreserved.
pub(crate) const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A query's pairs, decoded, in the order sent. Empty pairs (`&&`) are none; a
/// name without `=` has the empty value; `+` is a space.
#[derive(Debug)]
pub(crate) struct Pairs<'a>(Vec<Pair<'a>>);

/// A name and a value, decoded: bytes, since nothing says that they are text.
type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl<'a> Pairs<'a> {
    pub(crate) fn parse(raw: &'a str) -> Result<Self, Error> {
        if raw.len() > QUERY_LENGTH_MAX {
            return Err(Error::IncompleteSignature(format!(
                "The query-string must not be longer than {QUERY_LENGTH_MAX} bytes, got {}.",
                raw.len()
            )));
        }
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == QUERY_PARAMETERS_MAX {
                return Err(Error::IncompleteSignature(format!(
                    "The query-string must not have more than {QUERY_PARAMETERS_MAX} parameters."
                )));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name), decode(value)));
        }
        Ok(Self(pairs))
    }

    /// The values of a name, in the order sent.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &Cow<'a, [u8]>> {
        self.0.iter().filter(move |pair| *pair.0 == *name.as_bytes()).map(|pair| &pair.1)
    }

    /// Appends the canonical form: encoded, sorted by name and then by value,
    /// without the signature itself (which only presigned requests have).
    pub(crate) fn canonical(&self, out: &mut Vec<u8>) {
        let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = (self.0.iter())
            .filter(|pair| *pair.0 != *b"X-Amz-Signature")
            .map(|(name, value)| {
                (percent_encode(name, RESERVED).into(), percent_encode(value, RESERVED).into())
            })
            .collect();
        pairs.sort_unstable();
        for (i, (name, value)) in pairs.iter().enumerate() {
            if i > 0 {
                out.push(b'&');
            }
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
        }
    }
}

/// One percent-decoding, `+` for a space. A `%` without two hex digits stands for itself.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('+') {
        return percent_decode(text.as_bytes()).into();
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode(spaced.as_bytes()).collect())
}
