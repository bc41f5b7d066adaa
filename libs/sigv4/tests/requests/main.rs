//! Whole requests, as signed by other people's signers, and what is made of them.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::string::{RegexGeneratorStrategy, string_regex};
use sigv4::{Error, Payload, Request, Secret, Verifier, parse};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod ambiguous;
mod hostile;
mod oracle;
mod recorded;
mod refusals;
mod tampered;
mod texts;
mod times;

/// Text that matches an expression, which is read once. (A pattern that is a strategy itself is read again for each case.)
fn like(pattern: &str) -> RegexGeneratorStrategy<String> {
    string_regex(pattern).unwrap()
}

/// A request as it comes in, to be changed at will.
#[derive(Debug, Clone)]
struct Message {
    name: String,
    method: String,
    path: String,
    query: String,
    authority: Option<String>,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Message {
    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            authority: self.authority.as_deref(),
            raw_path: &self.path,
            raw_query: &self.query,
            headers: &self.headers,
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap().to_str().unwrap()
    }

    fn with_header(&self, name: &str, value: &str) -> Self {
        let mut message = self.clone();
        message.headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        message
    }

    fn with_one_more(&self, name: &str, value: &str) -> Self {
        let mut message = self.clone();
        message.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        message
    }

    fn without_header(&self, name: &str) -> Self {
        let mut message = self.clone();
        message.headers.remove(name).unwrap();
        message
    }

    fn with_query(&self, query: impl Into<String>) -> Self {
        Self { query: query.into(), ..self.clone() }
    }

    /// With a piece of the `Authorization` header replaced, which must be there.
    fn with_authorization(&self, piece: &str, by: &str) -> Self {
        let old = self.header("authorization");
        assert!(old.contains(piece), "{piece} in {old}");
        self.with_header("authorization", &old.replace(piece, by))
    }

    /// With a piece of the query replaced, which must be there.
    fn with_query_piece(&self, piece: &str, by: &str) -> Self {
        assert!(self.query.contains(piece), "{piece} in {}", self.query);
        self.with_query(self.query.replace(piece, by))
    }
}

/// Who verifies: a region's verifier, the one key that there is, and a clock.
struct Side {
    verifier: Verifier,
    access_key_id: String,
    secret: Secret,
    now: SystemTime,
}

impl Side {
    fn verify(&self, message: &Message) -> Result<(), Error> {
        let unverified = parse(message.request())?;
        self.verifier.check(&unverified, self.now)?;
        if unverified.access_key_id() != self.access_key_id {
            return Err(Error::UnrecognizedClient);
        }
        self.verifier.verify(&unverified, &self.secret, Payload::Bytes(&message.body), self.now)
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned()).unwrap()
}

const INCOMPLETE: &str = "IncompleteSignatureException";
const INVALID: &str = "InvalidSignatureException";

/// Refused by this side with this class and message.
fn check(side: &Side, message: &Message, class: &str, text: &str) {
    let error = side.verify(message).unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!((error.class(), error.status()), (class, 403), "{text}");
}

/// As [`check`], for messages that begin like this and end with a hash.
fn check_hashed(side: &Side, message: &Message, text: &str) {
    let error = side.verify(message).unwrap_err();
    let all = error.to_string();
    assert!(matches!(error, Error::IncompleteSignature(_)), "{error:?}");
    let rest = all.strip_prefix(text).unwrap_or_else(|| panic!("{all}"));
    assert!(rest.trim_end_matches("'.").len() == 44 && rest.contains('='), "{all}");
}
