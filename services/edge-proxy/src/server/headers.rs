//! Headers on their way through: what belongs to one hop, or to the edge, stays here.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Scheme;
use http::{Method, Uri, Version, request};

use crate::domain::browser;

pub const AUTH: HeaderName = HeaderName::from_static("x-aws-proxy-auth");
pub const PORT: HeaderName = HeaderName::from_static("x-aws-proxy-port");
/// Asks for HTTP/2 towards the app.
pub const FORCE_H2: HeaderName = HeaderName::from_static("x-aws-proxy-force-h2");
pub const ERROR: HeaderName = HeaderName::from_static("x-aws-proxy-error");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// Names the phases of a wake.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const RESERVED: &str = "x-aws-proxy-";
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// Most headers a "Connection" header may name.
const NAMED_MAX: usize = 32;

/// The host a request is for: the authority of HTTP/2 or the Host header.
pub fn host(parts: &request::Parts) -> Option<&str> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| {
        let mut values = parts.headers.get_all(HOST).iter();
        let first = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(first)
    })
}

/// Makes a client's request one for the app. `host` is the name it was for.
pub fn forward_request(parts: &mut request::Parts, host: &HeaderValue, client: IpAddr, http2: bool) {
    let trailers = parts.headers.get_all(TE).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|text| text.split(',').any(|one| one.trim().eq_ignore_ascii_case("trailers")))
    });
    strip_hop(&mut parts.headers);
    strip_reserved(&mut parts.headers);
    // The client's own waiting for "100 Continue" is answered by this hop, when the app begins to read.
    parts.headers.remove(EXPECT);
    for name in [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PORT] {
        parts.headers.remove(name);
    }
    let address = HeaderValue::try_from(client.to_string()).expect("an address is visible ASCII");
    parts.headers.insert(FORWARDED_FOR, address);
    parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    if trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(&mut parts.headers);
    strip_session(&mut parts.headers);
    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if http2 {
        parts.version = Version::HTTP_2;
        parts.headers.remove(HOST);
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = host.to_str().ok().and_then(|host| host.parse().ok());
    } else {
        parts.version = Version::HTTP_11;
        parts.headers.insert(HOST, host.clone());
    }
    // Without a valid authority the app gets a relative target, which hyper
    // refuses for HTTP/2; the request then fails rather than goes astray.
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

/// Makes an app's response one for the client.
pub fn forward_response(headers: &mut HeaderMap) {
    strip_hop(headers);
    strip_reserved(headers);
    keep_session(headers);
}

/// Names the phases of a request that had to wait for its microVM.
pub fn add_server_timing(headers: &mut HeaderMap, text: Option<String>) {
    if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.append(SERVER_TIMING, value);
    }
}

/// True for methods that may be sent twice.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// Removes what the two ends of one connection say to each other.
fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A sender may not use this to take from us what frames the message.
        .filter(|name| *name != CONTENT_LENGTH && *name != HOST)
        .take(NAMED_MAX)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn strip_reserved(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(RESERVED)).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}

/// The cookie of a browser session is between browser and edge: an app that knew it could call other paths as the user.
fn strip_session(headers: &mut HeaderMap) {
    let Some(rest) = headers.get(COOKIE).and_then(|value| browser::without_cookie(value.as_bytes())) else {
        return;
    };
    match HeaderValue::from_bytes(&rest) {
        Ok(rest) if !rest.is_empty() => drop(headers.insert(COOKIE, rest)),
        _ => drop(headers.remove(COOKIE)),
    }
}

/// An app sets no cookie of that name.
fn keep_session(headers: &mut HeaderMap) {
    let ours = |value: &HeaderValue| browser::sets_cookie(value.as_bytes());
    if headers.get_all(SET_COOKIE).iter().any(ours) {
        let kept: Vec<HeaderValue> =
            headers.get_all(SET_COOKIE).iter().filter(|value| !ours(value)).cloned().collect();
        headers.remove(SET_COOKIE);
        for value in kept {
            headers.append(SET_COOKIE, value);
        }
    }
}

/// HTTP/2 clients may send a cookie header per cookie; HTTP/1.1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    if cookies.len() > 1 {
        let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            headers.insert(COOKIE, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn forwarded(request: http::request::Builder, http2: bool) -> request::Parts {
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        forward_request(
            &mut parts,
            &HeaderValue::from_static("app.example:8443"),
            [192, 0, 2, 7].into(),
            http2,
        );
        parts
    }

    #[test]
    fn what_belongs_to_the_hop_or_the_edge_stays() {
        let request = Request::get("https://app.example:8443/path?x=1")
            .header("host", "app.example:8443")
            .header("connection", "keep-alive, x-private, content-length, host")
            .header("keep-alive", "timeout=5")
            .header("x-private", "1")
            .header("content-length", "0")
            .header("transfer-encoding", "chunked")
            .header("te", "gzip, trailers")
            .header("expect", "100-continue")
            .header("x-aws-proxy-auth", "secret")
            .header("x-aws-proxy-anything", "1")
            .header("x-forwarded-for", "6.6.6.6")
            .header("forwarded", "for=6.6.6.6")
            .header("cookie", "a=1; __Host-torpor=secret")
            .header("cookie", "b=2")
            .header("accept", "*/*");
        let parts = forwarded(request, false);
        let mut seen: Vec<String> = parts
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                "accept: */*",
                "content-length: 0",
                "cookie: a=1; b=2",
                "host: app.example:8443",
                "te: trailers",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-proto: https",
            ]
        );
        assert_eq!(parts.uri, "/path?x=1");
    }

    #[test]
    fn http2_gets_an_authority_instead_of_a_host() {
        let parts = forwarded(Request::get("/grpc").header("host", "app.example:8443"), true);
        assert_eq!(parts.uri, "http://app.example:8443/grpc");
        assert!(!parts.headers.contains_key(HOST));
    }

    #[test]
    fn responses_lose_the_same() {
        let mut headers = HeaderMap::new();
        for name in ["connection", "keep-alive", "transfer-encoding", "x-aws-proxy-error", "content-type"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        for cookie in ["a=1", "__Host-torpor=x", "b=2"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        forward_response(&mut headers);
        let cookies: Vec<&[u8]> = headers.get_all(SET_COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, [b"a=1", b"b=2"]);
        headers.remove(SET_COOKIE);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["content-type"]);
    }

    #[test]
    fn hosts_are_found_once() {
        let of = |request: http::request::Builder| {
            let (parts, ()) = request.body(()).unwrap().into_parts();
            host(&parts).map(str::to_owned)
        };
        assert_eq!(of(Request::get("/").header("host", "a")), Some("a".into()));
        assert_eq!(of(Request::get("https://b/").header("host", "a")), Some("b".into()));
        assert_eq!(of(Request::get("/").header("host", "a").header("host", "b")), None);
        assert_eq!(of(Request::get("/")), None);
    }
}
