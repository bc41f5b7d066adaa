//! What a request says of itself: who signed, when, for what and over what.

use crate::query::Pairs;
use crate::{
    ALGORITHM, ECHO_LENGTH_MAX, Error, Request, SIGNED_HEADERS_MAX, Timestamp, header_form, query_form,
};
use std::borrow::Cow;
use std::time::Duration;

/// Where the signature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In the header `Authorization`.
    Header,
    /// In the query: a presigned request.
    Query,
}

/// The parameters that both forms have, as sent.
pub(crate) struct Parameters<'a> {
    pub(crate) algorithm: Cow<'a, str>,
    pub(crate) credential: Cow<'a, str>,
    pub(crate) signed_headers: Cow<'a, str>,
    pub(crate) signature: Cow<'a, str>,
    pub(crate) signed_at: Timestamp,
    pub(crate) expires: Option<Duration>,
    pub(crate) security_token: Option<Cow<'a, str>>,
    pub(crate) payload_hash: Option<Cow<'a, str>>,
}

/// A well-formed signature, not yet believed. It borrows the request that it
/// was read from, so that no other request can be verified by it.
#[derive(Debug)]
pub struct UnverifiedSignature<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) query: Pairs<'a>,
    pub(crate) form: Form,
    pub(crate) access_key_id: String,
    pub(crate) day: String,
    pub(crate) region: String,
    pub(crate) service: String,
    pub(crate) terminator: String,
    pub(crate) signed_at: Timestamp,
    pub(crate) expires: Option<Duration>,
    pub(crate) signed_headers: Cow<'a, str>,
    /// `None`: not 64 hexadecimal digits, so no signature of anything.
    pub(crate) signature: Option<[u8; 32]>,
    pub(crate) security_token: Option<Cow<'a, str>>,
    pub(crate) declared: Declared<'a>,
}

/// What the request says its payload hashes to.
#[derive(Debug)]
pub(crate) enum Declared<'a> {
    /// Nothing: the body's hash is in the signature all the same.
    Nothing,
    /// `UNSIGNED-PAYLOAD`: the signature does not cover the body.
    Unsigned,
    /// This hash, as it was written.
    Hash([u8; 32], Cow<'a, str>),
}

impl UnverifiedSignature<'_> {
    /// The access key id, as sent: at least one byte, and no `/`.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The region in the credential's scope, as sent.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The service in the credential's scope, as sent.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// When the client signed.
    pub fn signed_at(&self) -> Timestamp {
        self.signed_at
    }

    /// Whether the signature is in the query.
    pub fn presigned(&self) -> bool {
        self.form == Form::Query
    }

    /// How long a presigned request is good for, where it says so.
    pub fn expires(&self) -> Option<Duration> {
        self.expires
    }

    /// The session token of temporary credentials. Whether there are any is the
    /// caller's to say: refuse what is not yours with [`Error::UnrecognizedClient`].
    pub fn security_token(&self) -> Option<&str> {
        self.security_token.as_deref()
    }

    /// The names of the signed headers: lower case, sorted, each once.
    pub fn signed_headers(&self) -> impl Iterator<Item = &str> {
        self.signed_headers.split(';')
    }

    /// Whether the signature leaves the body out.
    pub fn payload_unsigned(&self) -> bool {
        matches!(self.declared, Declared::Unsigned)
    }
}

/// Reads the signature of a request. Takes no key and no clock; what it
/// allocates is bounded by the head it is given.
///
/// # Errors
/// `MissingAuthenticationToken`, `IncompleteSignature`, `Ambiguous`, `HeaderNotSigned`.
pub fn parse(request: Request<'_>) -> Result<UnverifiedSignature<'_>, Error> {
    let query = Pairs::parse(request.raw_query)?;
    let in_query = query_form::parameter(&query);
    let (form, parameters) = match (request.headers.contains_key(http::header::AUTHORIZATION), in_query) {
        (false, None) => return Err(Error::MissingAuthenticationToken),
        (true, Some(name)) => {
            return Err(Error::Ambiguous(format!(
                "Found both '{name}' as a query-string param and 'Authorization' as HTTP header."
            )));
        }
        (true, None) => (Form::Header, header_form::parse(&request)?),
        (false, Some(_)) => (Form::Query, query_form::parse(&request, &query)?),
    };
    if parameters.algorithm != ALGORITHM {
        return Err(Error::IncompleteSignature(format!(
            "Unsupported AWS 'algorithm': '{}' (only {ALGORITHM} for now).",
            clip(&parameters.algorithm)
        )));
    }
    let [access_key_id, day, region, service, terminator] = credential(&parameters.credential)?;
    check_host(&request)?;
    check_signed_headers(&request, &parameters.signed_headers)?;
    Ok(UnverifiedSignature {
        request,
        query,
        form,
        access_key_id,
        day,
        region,
        service,
        terminator,
        signed_at: parameters.signed_at,
        expires: parameters.expires,
        signature: hex(&parameters.signature),
        signed_headers: parameters.signed_headers,
        security_token: parameters.security_token,
        declared: declared(parameters.payload_hash)?,
    })
}

/// A header that must not come twice: its value.
pub(crate) fn only<'a>(request: &Request<'a>, name: &str) -> Result<Option<&'a http::HeaderValue>, Error> {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next();
    match values.next() {
        None => Ok(value),
        Some(_) => Err(Error::Ambiguous(format!("The header '{name}' must not be sent more than once."))),
    }
}

/// As [`only`], as text.
pub(crate) fn only_text<'a>(request: &Request<'a>, name: &str) -> Result<Option<&'a str>, Error> {
    let Some(value) = only(request, name)? else {
        return Ok(None);
    };
    value.to_str().map(Some).map_err(|_| {
        Error::IncompleteSignature(format!("The header '{name}' must consist of visible ASCII characters."))
    })
}

/// The start of a text, as far as a message repeats it.
pub(crate) fn clip(text: &str) -> &str {
    let end = (0..=text.len().min(ECHO_LENGTH_MAX)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// One host: two headers, or one that is not the authority, would let a signature be read in two ways.
fn check_host(request: &Request<'_>) -> Result<(), Error> {
    let Some(host) = only(request, "host")? else {
        return Ok(());
    };
    match request.authority {
        Some(authority) if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            Err(Error::Ambiguous("The header 'host' must not differ from ':authority'.".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The list's form, and that it has what it must: `host`, and every `x-amz-*` header that came.
fn check_signed_headers(request: &Request<'_>, list: &str) -> Result<(), Error> {
    let mut last = "";
    for (i, name) in list.split(';').enumerate() {
        if i == SIGNED_HEADERS_MAX {
            return Err(Error::IncompleteSignature(format!(
                "SignedHeaders must not have more than {SIGNED_HEADERS_MAX} names."
            )));
        }
        let lower = http::HeaderName::from_lowercase(name.as_bytes()).is_ok();
        if !lower || name <= last {
            return Err(Error::IncompleteSignature(format!(
                "SignedHeaders must be header names in lower case, sorted, each once, separated by semicolons, got '{}'.",
                clip(list)
            )));
        }
        last = name;
    }
    let signed = |name: &str| list.split(';').any(|signed| signed == name);
    if !signed("host") {
        return Err(Error::HeaderNotSigned("'Host' or ':authority'".to_owned()));
    }
    for name in request.headers.keys().map(http::HeaderName::as_str) {
        if name.starts_with("x-amz-") && !signed(name) {
            return Err(Error::HeaderNotSigned(format!("'{}'", clip(name))));
        }
    }
    Ok(())
}

fn credential(text: &str) -> Result<[String; 5], Error> {
    let parts: Vec<&str> = text.splitn(6, '/').collect();
    <[&str; 5]>::try_from(parts).map(|parts| parts.map(str::to_owned)).map_err(|_| {
        Error::IncompleteSignature(format!(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{}'",
            clip(text)
        ))
    })
}

fn declared(text: Option<Cow<'_, str>>) -> Result<Declared<'_>, Error> {
    let Some(text) = text else {
        return Ok(Declared::Nothing);
    };
    if text == "UNSIGNED-PAYLOAD" {
        return Ok(Declared::Unsigned);
    }
    match hex(&text) {
        Some(hash) => Ok(Declared::Hash(hash, text)),
        None => Err(Error::IncompleteSignature(
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, or a valid sha256 value.".to_owned(),
        )),
    }
}

/// 64 hexadecimal digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = [0; 32];
    if text.len() != 2 * out.len() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}
