//! The header form: `Authorization: AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...`.

use crate::unverified::{Parameters, clip, only, only_text};
use crate::{AUTHORIZATION_LENGTH_MAX, Error, Request, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// In the order in which AWS tells what is absent.
const REQUIRED: [&str; 3] = ["Credential", "Signature", "SignedHeaders"];

pub(crate) fn parse<'a>(request: &Request<'a>) -> Result<Parameters<'a>, Error> {
    let raw = only(request, "authorization")?.map_or(&[][..], |value| value.as_bytes());
    if raw.len() > AUTHORIZATION_LENGTH_MAX {
        return Err(Error::IncompleteSignature(format!(
            "Authorization header must not be longer than {AUTHORIZATION_LENGTH_MAX} bytes, got {}. {}",
            raw.len(),
            hashed(raw)
        )));
    }
    let text = std::str::from_utf8(raw).ok().filter(|text| text.is_ascii()).ok_or_else(|| {
        Error::IncompleteSignature(format!("Authorization header must be ASCII. {}", hashed(raw)))
    })?;
    let (algorithm, rest) = text.trim().split_once([' ', '\t']).unwrap_or((text, ""));
    let values = pairs(rest, raw)?;
    let dates = [only_text(request, "x-amz-date")?, only_text(request, "date")?];

    let mut absent = String::new();
    for (name, value) in REQUIRED.iter().zip(values) {
        if value.is_none_or(str::is_empty) {
            absent += &format!("Authorization header requires '{name}' parameter. ");
        }
    }
    if dates == [None, None] {
        absent += "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ";
    }
    let ([Some(credential), Some(signature), Some(signed_headers)], true) = (values, absent.is_empty())
    else {
        return Err(Error::IncompleteSignature(absent + &hashed(raw)));
    };
    Ok(Parameters {
        algorithm: Cow::Borrowed(algorithm),
        credential: Cow::Borrowed(credential),
        signed_headers: Cow::Borrowed(signed_headers),
        signature: Cow::Borrowed(signature),
        signed_at: signed_at(dates)?,
        expires: None,
        security_token: only_text(request, "x-amz-security-token")?.map(Cow::Borrowed),
        payload_hash: only_text(request, "x-amz-content-sha256")?.map(Cow::Borrowed),
    })
}

/// The values of [`REQUIRED`]. Other parameters are passed over.
fn pairs<'a>(text: &'a str, raw: &[u8]) -> Result<[Option<&'a str>; 3], Error> {
    let mut values = [None; REQUIRED.len()];
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Error::IncompleteSignature(format!(
                "Invalid key=value pair (missing equal-sign) in Authorization header (hashed with SHA-256 and \
                 encoded with Base64): '{}'.",
                STANDARD.encode(Sha256::digest(raw))
            ))
        })?;
        let Some(slot) = REQUIRED.iter().position(|required| *required == name) else {
            continue;
        };
        if values[slot].replace(value).is_some() {
            return Err(Error::Ambiguous(format!(
                "Authorization header has more than one '{name}' parameter."
            )));
        }
    }
    Ok(values)
}

/// `x-amz-date` decides; `date` stands in for it.
fn signed_at([amz, http]: [Option<&str>; 2]) -> Result<Timestamp, Error> {
    let text = amz.or(http).unwrap_or_default().trim();
    let time = if amz.is_some() { Timestamp::from_basic(text) } else { Timestamp::from_http(text) };
    time.ok_or_else(|| bad_date(text))
}

/// The answer to a date in no known form.
pub(crate) fn bad_date(text: &str) -> Error {
    Error::IncompleteSignature(format!(
        "Date must be in ISO-8601 'basic format'. Got '{}'. See http://en.wikipedia.org/wiki/ISO_8601",
        clip(text)
    ))
}

/// The header as a message may repeat it: what was sent by mistake, a password
/// perhaps, does not go into logs.
fn hashed(raw: &[u8]) -> String {
    format!(
        "(Hashed with SHA-256 and encoded with Base64) Authorization={}",
        STANDARD.encode(Sha256::digest(raw))
    )
}
