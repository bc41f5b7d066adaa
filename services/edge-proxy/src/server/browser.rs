//! Browser sessions: the link that begins one, and who may use its cookie.

use http::header::{CACHE_CONTROL, COOKIE, HeaderName, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use model::limits::INVITATION_CODE_LENGTH;
use tokio::sync::Semaphore;
use tonic::Code;
use uuid::Uuid;

use crate::adapters::body::ResponseBody;
use crate::adapters::scheduler::Scheduler;
use crate::domain::browser::{self, Source};
use crate::domain::refusal::{Refusal, TOO_MANY_AGAIN};
use crate::domain::websocket::Offer;
use crate::server::headers;

/// Where invitations are taken.
const INVITATION_PATH: &str = "/.torpor/open";
/// Most invitations that are being redeemed: anybody may ask for that, and each asks the scheduler.
pub const REDEMPTIONS_MAX: usize = 8;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// A token, and what it came in.
#[derive(Clone, Copy)]
pub enum Shown<'a> {
    /// The header, or a subprotocol.
    Token(&'a str),
    /// The session's cookie.
    Cookie(&'a str),
}

/// The token that a request shows. The cookie counts where there is nothing else: a client that sets headers knows best.
pub fn shown<'a>(headers: &'a HeaderMap, offer: Option<&'a Offer>) -> Option<Shown<'a>> {
    let mut values = headers.get_all(headers::AUTH).iter();
    match (values.next(), values.next(), offer) {
        (Some(value), None, _) => value.to_str().ok().map(Shown::Token),
        (Some(_), Some(_), _) => None,
        (None, _, Some(offer)) if offer.token.is_some() => offer.marked_token().map(Shown::Token),
        (None, _, _) => {
            let cookies = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
            browser::cookie(cookies).map(Shown::Cookie)
        }
    }
}

/// True when the session's cookie may open the request, which is for `host`.
pub fn is_trusted(parts: &Parts, host: &str, handshake: bool) -> bool {
    let value = |name: HeaderName| parts.headers.get(name).map(HeaderValue::as_bytes);
    let source = Source {
        origin: value(ORIGIN),
        site: value(SEC_FETCH_SITE),
        mode: value(SEC_FETCH_MODE),
        destination: value(SEC_FETCH_DEST),
    };
    source.is_trusted(host, handshake || !parts.method.is_safe())
}

/// The code of an invitation, when the request follows its link. With a token it is a request like any other.
pub fn code(parts: &Parts) -> Option<&str> {
    if parts.uri.path() != INVITATION_PATH
        || parts.method != Method::GET
        || parts.headers.contains_key(headers::AUTH)
    {
        return None;
    }
    let code = parts.uri.query()?.split('&').find_map(|pair| pair.strip_prefix("code="))?;
    (code.len() == INVITATION_CODE_LENGTH).then_some(code)
}

/// Has an invitation redeemed, and begins the session. This is the one call that a caller without a token causes.
pub async fn begin(
    scheduler: &Scheduler,
    redemptions: &Semaphore,
    label: Uuid,
    code: &str,
) -> Result<Response<ResponseBody>, Refusal> {
    let _permit = redemptions.try_acquire().map_err(|_| Refusal::TooMany { retry_after: TOO_MANY_AGAIN })?;
    let session = scheduler.redeem(code, label).await.map_err(|code| match code {
        Code::NotFound => Refusal::InvitationSpent,
        _ => Refusal::NotReady,
    })?;
    let seconds = session.session_duration.unwrap_or_default().seconds;
    let cookie = format!(
        "{}={}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax",
        browser::COOKIE,
        session.session_token
    );
    let value = |text: String| HeaderValue::try_from(text).map_err(|_| Refusal::Internal);
    let mut response = Response::new(ResponseBody::text(""));
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(session.path)?);
    headers.insert(SET_COOKIE, value(cookie)?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}
