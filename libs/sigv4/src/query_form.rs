//! The presigned form: the signature and all about it as query parameters.

use crate::header_form::bad_date;
use crate::query::Pairs;
use crate::unverified::{Parameters, clip, only_text};
use crate::{EXPIRES_SECONDS_MAX, Error, Request, Timestamp};
use std::borrow::Cow;
use std::time::Duration;

/// Any of these makes a request presigned.
const MARKS: [&str; 3] = ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"];

/// In the order in which AWS tells what is absent.
const REQUIRED: [&str; 5] =
    ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date"];

/// The parameter, if any, by which a request is presigned.
pub(crate) fn parameter(query: &Pairs<'_>) -> Option<&'static str> {
    MARKS.into_iter().find(|name| query.values(name).next().is_some())
}

pub(crate) fn parse<'a>(request: &Request<'a>, query: &Pairs<'a>) -> Result<Parameters<'a>, Error> {
    let mut values = [const { None }; REQUIRED.len()];
    let mut absent = String::new();
    for (value, name) in values.iter_mut().zip(REQUIRED) {
        *value = one(query, name)?.filter(|value| !value.is_empty());
        if value.is_none() {
            absent += &format!("AWS query-string parameters must include '{name}'. ");
        }
    }
    let [Some(algorithm), Some(credential), Some(signature), Some(signed_headers), Some(date)] = values
    else {
        return Err(Error::IncompleteSignature(absent + "Re-examine the query-string parameters."));
    };
    Ok(Parameters {
        algorithm,
        credential,
        signed_headers,
        signature,
        signed_at: Timestamp::from_basic(&date).ok_or_else(|| bad_date(&date))?,
        expires: one(query, "X-Amz-Expires")?.map(|text| expires(&text)).transpose()?,
        security_token: either(request, query, "x-amz-security-token", "X-Amz-Security-Token")?,
        payload_hash: either(request, query, "x-amz-content-sha256", "X-Amz-Content-Sha256")?,
    })
}

/// A parameter that must not come twice, as text.
fn one<'a>(query: &Pairs<'a>, name: &str) -> Result<Option<Cow<'a, str>>, Error> {
    let mut values = query.values(name);
    let value = values.next();
    if values.next().is_some() {
        return Err(Error::Ambiguous(format!(
            "The query-string parameter '{name}' must not be sent more than once."
        )));
    }
    let text = |value: &Cow<'a, [u8]>| match value {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).ok(),
        Cow::Owned(bytes) => String::from_utf8(bytes.clone()).map(Cow::Owned).ok(),
    };
    match value.map(text) {
        None => Ok(None),
        Some(Some(text)) => Ok(Some(text)),
        Some(None) => {
            Err(Error::IncompleteSignature(format!("The query-string parameter '{name}' must be UTF-8.")))
        }
    }
}

/// What a client may put into a header or into the query, but not into both.
fn either<'a>(
    request: &Request<'a>,
    query: &Pairs<'a>,
    header: &str,
    parameter: &str,
) -> Result<Option<Cow<'a, str>>, Error> {
    match (only_text(request, header)?, one(query, parameter)?) {
        (Some(_), Some(_)) => Err(Error::Ambiguous(format!(
            "Found both '{parameter}' as a query-string param and '{header}' as HTTP header."
        ))),
        (in_header, in_query) => Ok(in_header.map(Cow::Borrowed).or(in_query)),
    }
}

fn expires(text: &str) -> Result<Duration, Error> {
    let seconds = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    match seconds {
        Some(seconds @ 1..=EXPIRES_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(Error::IncompleteSignature(format!(
            "X-Amz-Expires must be a number of seconds from 1 to {EXPIRES_SECONDS_MAX}, got '{}'.",
            clip(text)
        ))),
    }
}
