//! Signature Version 4 for requests of a known shape: plain paths, queries that
//! are canonical already. The signing key is kept, as AWS's SDKs keep it.

use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use time::OffsetDateTime;

/// Service in the scope of signatures.
const SERVICE: &str = "lambda";
const TERMINATOR: &str = "aws4_request";
/// Header that makes every request's bytes differ; AWS's SDKs send it too.
pub const INVOCATION_ID: &str = "amz-sdk-invocation-id";
pub const DATE: &str = "x-amz-date";

pub struct Signer {
    access_key_id: String,
    secret: String,
    region: String,
    host: String,
    /// The key of the day the run began on.
    key: (String, hmac::Key),
}

pub struct Unsigned<'a> {
    pub method: &'a str,
    /// Path of characters that need no encoding.
    pub path: &'a str,
    /// Query in canonical form: encoded and sorted.
    pub query: &'a str,
    /// Type of the body; requests without one have none.
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
    pub invocation_id: &'a str,
}

#[derive(Debug)]
pub struct Signed {
    pub date: String,
    pub authorization: String,
}

impl Signer {
    pub fn new(access_key_id: &str, secret: &str, region: &str, host: &str, now: SystemTime) -> Self {
        let day = date(now)[..8].to_owned();
        let key = signing_key(secret, &day, region);
        Self {
            access_key_id: access_key_id.to_owned(),
            secret: secret.to_owned(),
            region: region.to_owned(),
            host: host.to_owned(),
            key: (day, key),
        }
    }

    /// Signs every header that a request of ours has.
    pub fn sign(&self, request: &Unsigned<'_>, now: SystemTime) -> Signed {
        let date = date(now);
        let day = &date[..8];
        let (names, content_type) = match request.content_type {
            Some(kind) => {
                ("amz-sdk-invocation-id;content-type;host;x-amz-date", format!("content-type:{kind}\n"))
            }
            None => ("amz-sdk-invocation-id;host;x-amz-date", String::new()),
        };
        let Unsigned { method, path, query, body, invocation_id, .. } = request;
        let canonical = format!(
            "{method}\n{path}\n{query}\n{INVOCATION_ID}:{invocation_id}\n{content_type}host:{}\n{DATE}:{date}\n\n\
             {names}\n{}",
            self.host,
            hex(digest::digest(&digest::SHA256, body).as_ref()),
        );
        let scope = format!("{day}/{}/{SERVICE}/{TERMINATOR}", self.region);
        let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}");
        let (known, key) = &self.key;
        let signature = match known == day {
            true => hmac::sign(key, text.as_bytes()),
            // A run that goes past midnight.
            false => hmac::sign(&signing_key(&self.secret, day, &self.region), text.as_bytes()),
        };
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            self.access_key_id,
            hex(signature.as_ref()),
        );
        Signed { date, authorization }
    }
}

fn signing_key(secret: &str, day: &str, region: &str) -> hmac::Key {
    let start = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    [day, region, SERVICE, TERMINATOR].into_iter().fold(start, |key, part| {
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
    })
}

/// "20261122T110000Z".
fn date(now: SystemTime) -> String {
    let now = OffsetDateTime::from(now);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use sigv4::{Payload, Request, Secret, Verifier};

    use super::*;

    #[test]
    fn the_edges_verifier_accepts_what_is_signed_and_nothing_else() {
        let (id, secret, region, host) = ("AKIAIOSFODNN7EXAMPLE", "secret", "eu-west-1", "localhost:1");
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let signer = Signer::new(id, secret, region, host, began);
        let verifier = Verifier::new(region, SERVICE);
        let check = |request: &Unsigned<'_>, body: &[u8], now: SystemTime| {
            let signed = signer.sign(request, now);
            let mut headers = HeaderMap::new();
            headers.insert("host", host.parse().unwrap());
            headers.insert(INVOCATION_ID, request.invocation_id.parse().unwrap());
            headers.insert(DATE, signed.date.parse().unwrap());
            headers.insert("authorization", signed.authorization.parse().unwrap());
            if let Some(kind) = request.content_type {
                headers.insert("content-type", kind.parse().unwrap());
            }
            let claim = sigv4::parse(Request {
                method: request.method,
                authority: None,
                raw_path: request.path,
                raw_query: request.query,
                headers: &headers,
            });
            let claim = claim.unwrap();
            assert_eq!(claim.access_key_id(), id);
            let secret = Secret::new(secret.to_owned()).unwrap();
            verifier.verify(&claim, &secret, Payload::Bytes(body), now).is_ok()
        };
        let get = Unsigned {
            method: "GET",
            path: "/2025-09-09/microvms",
            query: "imageIdentifier=arn%3Aaws&maxResults=50",
            content_type: None,
            body: b"",
            invocation_id: "1",
        };
        let post = Unsigned {
            method: "POST",
            query: "",
            content_type: Some("application/json"),
            body: b"{}",
            ..get
        };
        // Also on another day than the one the signer began on.
        for now in [began, began + Duration::from_secs(86_400)] {
            assert!(check(&get, b"", now));
            assert!(check(&post, b"{}", now));
            assert!(!check(&post, b"{ }", now));
        }
    }
}
