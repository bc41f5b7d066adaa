//! `data/botocore-requests.json`: what botocore sent, byte for byte.

use super::{Message, Side, at, secret};
use serde::Deserialize;
use sigv4::{Error, Payload, Verifier, parse};
use std::time::UNIX_EPOCH;

#[derive(Deserialize)]
struct Document {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    region: String,
    service: String,
    signed_at: u64,
    requests: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Recorded {
    fn message(self) -> Message {
        let headers =
            self.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let digits = |at: usize| u8::from_str_radix(&self.body[at..at + 2], 16).unwrap();
        Message {
            headers: headers.collect(),
            body: (0..self.body.len()).step_by(2).map(digits).collect(),
            name: self.name,
            method: self.method,
            path: self.path,
            query: self.query,
            authority: None,
        }
    }
}

fn document() -> Document {
    serde_json::from_str(include_str!("../data/botocore-requests.json")).unwrap()
}

/// All the requests, and who takes them, at the second in which they were signed.
pub(super) fn recorded() -> (Side, Vec<Message>) {
    let document = document();
    let side = Side {
        verifier: Verifier::new(document.region, document.service),
        access_key_id: document.access_key_id,
        secret: secret(&document.secret_access_key),
        now: at(document.signed_at),
    };
    (side, document.requests.into_iter().map(Recorded::message).collect())
}

/// The request of this name, and who takes it.
pub(super) fn one(name: &str) -> (Side, Message) {
    let (side, messages) = recorded();
    (side, messages.into_iter().find(|message| message.name == name).unwrap())
}

#[test]
fn botocore_is_believed() {
    let (side, messages) = recorded();
    for method in ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"] {
        assert!(messages.iter().any(|message| message.method == method), "{method}");
    }
    assert!(messages.iter().filter(|message| message.query.contains("X-Amz-Signature=")).count() > 10);
    for message in &messages {
        assert_eq!(side.verify(message), Ok(()), "{}", message.name);
    }
}

#[test]
fn a_signature_says_who_and_when() {
    let (document, (_, messages)) = (document(), recorded());
    for message in &messages {
        let unverified = parse(message.request()).unwrap();
        let (presigned, token) = (message.name.contains("presigned"), message.name.contains("session token"));
        assert_eq!(unverified.access_key_id(), document.access_key_id);
        assert_eq!((unverified.region(), unverified.service()), (&*document.region, &*document.service));
        assert_eq!(unverified.signed_at().to_string(), "20260301T235958Z");
        assert_eq!(
            std::time::SystemTime::from(unverified.signed_at()).duration_since(UNIX_EPOCH).unwrap().as_secs(),
            document.signed_at
        );
        assert_eq!(unverified.presigned(), presigned, "{}", message.name);
        assert_eq!(unverified.expires().is_some(), presigned, "{}", message.name);
        assert_eq!(
            unverified.security_token(),
            token.then_some(&*document.session_token),
            "{}",
            message.name
        );
        assert_eq!(unverified.payload_unsigned(), message.name == "an unsigned payload");
        assert!(unverified.signed_headers().any(|name| name == "host"));
    }
}

#[test]
fn another_secret_region_or_service_is_refused() {
    let (mut side, messages) = recorded();
    let right = side.secret.clone();
    for message in &messages {
        side.secret = secret("bW9ja2luZ2JpcmRz/c2Vjcm+ldHNlY3JldDAwMDF");
        assert_eq!(side.verify(message), Err(Error::SignatureDoesNotMatch), "{}", message.name);
        side.secret = right.clone();
        assert_eq!(side.verify(message), Ok(()), "{}", message.name);
        for verifier in [Verifier::new("us-east-2", "lambda"), Verifier::new("us-east-1", "s3")] {
            let unverified = parse(message.request()).unwrap();
            let answer = verifier.verify(&unverified, &right, Payload::Bytes(&message.body), side.now);
            assert!(matches!(answer, Err(Error::Scope(_))), "{}: {answer:?}", message.name);
        }
    }
}

#[test]
fn a_changed_secret_ends_the_old_one_at_once() {
    let (mut side, message) = one("run_microvm");
    assert_eq!(side.verify(&message), Ok(()));
    let old = std::mem::replace(&mut side.secret, secret("the key of the same id, rotated"));
    assert_eq!(side.verify(&message), Err(Error::SignatureDoesNotMatch));
    side.secret = old;
    assert_eq!(side.verify(&message), Ok(()));
}

#[test]
fn signing_keys_of_several_secrets_do_not_mix() {
    let (mut side, messages) = recorded();
    let secrets = [side.secret.clone(), secret("another"), secret("third")];
    for (i, message) in messages.iter().enumerate() {
        side.secret = secrets[i % secrets.len()].clone();
        let expected = if i % secrets.len() == 0 { Ok(()) } else { Err(Error::SignatureDoesNotMatch) };
        assert_eq!(side.verify(message), expected, "{}", message.name);
    }
}

#[test]
fn a_body_read_in_pieces_is_told_by_its_hash() {
    use sha2::{Digest, Sha256};
    let (side, messages) = recorded();
    for message in &messages {
        let unverified = parse(message.request()).unwrap();
        let hash = Sha256::digest(&message.body).into();
        let verify = |hash| side.verifier.verify(&unverified, &side.secret, Payload::Sha256(hash), side.now);
        assert_eq!(verify(hash), Ok(()), "{}", message.name);
        assert_eq!(verify([0; 32]).is_ok(), unverified.payload_unsigned(), "{}", message.name);
    }
}

#[test]
fn the_authority_stands_for_the_host() {
    let (side, messages) = recorded();
    for message in &messages {
        let host = message.header("host").to_owned();
        let mut message = message.without_header("host");
        assert_eq!(side.verify(&message), Err(Error::SignatureDoesNotMatch), "{}", message.name);
        message.authority = Some(host.clone());
        assert_eq!(side.verify(&message), Ok(()), "{}", message.name);
        message = message.with_header("host", &host);
        assert_eq!(side.verify(&message), Ok(()), "{}", message.name);
        message.authority = Some("elsewhere:1".to_owned());
        assert!(matches!(side.verify(&message), Err(Error::Ambiguous(_))), "{}", message.name);
    }
}

#[test]
fn the_authority_stands_for_nothing_else() {
    let (side, message) = one("a header that repeats the host");
    let mut message = message.without_header("host");
    message.authority = Some(message.header("x-amz-meta").to_owned());
    assert_eq!(side.verify(&message), Ok(()));
    assert_eq!(side.verify(&message.without_header("x-amz-meta")), Err(Error::SignatureDoesNotMatch));
}
