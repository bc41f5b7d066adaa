//! Headers on their way through: what belongs to one hop, or to the edge, stays here.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Scheme;
use http::{Method, Uri, Version, request};

use crate::domain::browser;
use crate::domain::host;
use crate::domain::refusal::Refusal;

pub const AUTH: HeaderName = HeaderName::from_static("x-aws-proxy-auth");
pub const PORT: HeaderName = HeaderName::from_static("x-aws-proxy-port");
/// Asks for HTTP/2 towards the app.
pub const FORCE_H2: HeaderName = HeaderName::from_static("x-aws-proxy-force-h2");
pub const ERROR: HeaderName = HeaderName::from_static("x-aws-proxy-error");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// Says what the time of a request went to.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const TRACEPARENT: HeaderName = HeaderName::from_static(telemetry::TRACEPARENT);
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
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

/// The host a request is for: the authority of its target (always so in HTTP/2), or the Host header.
///
/// # Errors
/// When it can be read in two ways: whoever reads it next might read it in the other.
pub fn host(parts: &request::Parts) -> Result<Option<&str>, Refusal> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let mut values = parts.headers.get_all(HOST).iter();
    let named = values.next().map(HeaderValue::to_str).transpose();
    let named = named.map_err(|_| Refusal::BadRequest("Invalid host"))?;
    if values.next().is_some() {
        return Err(Refusal::BadRequest("More than one host"));
    }
    match (authority, named) {
        (Some(authority), _) if authority.contains('@') => Err(Refusal::BadRequest("Invalid host")),
        (Some(authority), Some(named)) if !host::same(authority, named) => {
            Err(Refusal::BadRequest("More than one host"))
        }
        (authority, named) => Ok(authority.or(named)),
    }
}

/// Leaves a client's trace context as it is when it is valid; otherwise the edge's own takes its place, if it has one.
pub fn settle_trace(headers: &mut HeaderMap, own: impl FnOnce() -> Option<String>) {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let valid = values.next().is_some_and(|value| is_traceparent(value.as_bytes()));
    if valid && values.next().is_none() {
        return;
    }
    headers.remove(TRACEPARENT);
    // It is a part of the other.
    headers.remove(TRACESTATE);
    if let Some(own) = own().and_then(|own| HeaderValue::try_from(own).ok()) {
        headers.insert(TRACEPARENT, own);
    }
}

/// True for a value of the form of W3C Trace Context, level 1: a version, a trace, a span, flags.
fn is_traceparent(value: &[u8]) -> bool {
    const LENGTH: usize = 55;
    let hex = |range: std::ops::Range<usize>| {
        value[range].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |range: std::ops::Range<usize>| value[range].iter().all(|byte| *byte == b'0');
    value.len() >= LENGTH
        && [2, 35, 52].iter().all(|at| value[*at] == b'-')
        && [0..2, 3..35, 36..52, 53..55].into_iter().all(hex)
        && !zero(3..35)
        && !zero(36..52)
        && &value[..2] != b"ff"
        // Later versions may add to the end.
        && (value.len() == LENGTH || (&value[..2] != b"00" && value[LENGTH] == b'-'))
}

/// True when the app is to be asked over HTTP/2 without TLS: the client says so, or it is gRPC, which is never HTTP/1.1.
/// (gRPC-Web is.)
pub fn wants_http2(parts: &request::Parts) -> bool {
    let forced = parts.headers.get(FORCE_H2).is_some_and(|value| value.as_bytes() == b"true");
    let grpc = || {
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let rest = kind.and_then(|kind| kind.strip_prefix("application/grpc"));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
    };
    forced || (parts.version == Version::HTTP_2 && grpc())
}

/// True when the client waits for "100 Continue" before it sends its body. Before HTTP/1.1 there was no such thing.
pub fn is_held_back(parts: &request::Parts) -> bool {
    let expected = parts.headers.get(EXPECT);
    parts.version > Version::HTTP_10
        && expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// True when the app will be asked whether it wants the body.
pub fn expects(parts: &request::Parts, body: &impl hyper::body::Body) -> bool {
    parts.headers.contains_key(EXPECT) && !body.is_end_stream()
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
    // Only an app that speaks HTTP/1.1 is heard when it says 100: hyper does not tell of it in HTTP/2.
    if http2 || !is_held_back(parts) {
        parts.headers.remove(EXPECT);
    }
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

/// Says what the time of a request went to, beside what the app says.
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
            .header("expect", "something-else")
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
    fn an_expectation_reaches_apps_that_can_answer_it() {
        for (value, version, http2, passed) in [
            ("100-continue", Version::HTTP_11, false, true),
            ("100-Continue", Version::HTTP_2, false, true),
            ("100-continue", Version::HTTP_10, false, false),
            ("100-continue", Version::HTTP_2, true, false),
            ("100-continue, more", Version::HTTP_11, false, false),
        ] {
            let request = Request::put("/").version(version).header("expect", value);
            assert_eq!(forwarded(request, http2).headers.contains_key(EXPECT), passed, "{value} {version:?}");
        }
    }

    #[test]
    fn grpc_and_who_asks_for_it_get_http2() {
        for (kind, forced, version, expected) in [
            ("application/grpc", None, Version::HTTP_2, true),
            ("application/grpc+proto", None, Version::HTTP_2, true),
            ("application/grpc;charset=utf-8", None, Version::HTTP_2, true),
            ("application/grpc", None, Version::HTTP_11, false),
            ("application/grpc-web", None, Version::HTTP_2, false),
            ("application/json", None, Version::HTTP_2, false),
            ("application/json", Some("true"), Version::HTTP_11, true),
            ("application/json", Some("false"), Version::HTTP_2, false),
        ] {
            let mut request = Request::post("/").version(version).header("content-type", kind);
            if let Some(value) = forced {
                request = request.header(FORCE_H2, value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(wants_http2(&parts), expected, "{kind} {forced:?} {version:?}");
        }
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
            host(&parts).map(|host| host.map(str::to_owned)).ok()
        };
        assert_eq!(of(Request::get("/").header("host", "a")), Some(Some("a".into())));
        assert_eq!(of(Request::get("https://b/").header("host", "B.:443")), Some(Some("b".into())));
        assert_eq!(of(Request::get("https://b/")), Some(Some("b".into())));
        assert_eq!(of(Request::get("https://b/").header("host", "a")), None);
        assert_eq!(of(Request::get("https://a@b/")), None);
        assert_eq!(of(Request::get("/").header("host", "a").header("host", "b")), None);
        assert_eq!(of(Request::get("/").header("host", "a").header("host", "a")), None);
        assert_eq!(of(Request::get("/").header("host", "\u{e4}")), None);
        assert_eq!(of(Request::get("/")), Some(None));
    }

    #[test]
    fn a_clients_trace_passes_when_it_is_one() {
        const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        const OWN: &str = "00-11111111111111111111111111111111-2222222222222222-01";
        let longer = format!("{VALID}-more");
        let next = longer.replacen("00", "cc", 1);
        for (values, passes) in [
            (vec![VALID], true),
            (vec![next.as_str()], true),
            (vec![], false),
            (vec![longer.as_str()], false),
            (vec![VALID, VALID], false),
            (vec!["00-00000000000000000000000000000000-b7ad6b7169203331-01"], false),
            (vec!["00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"], false),
            (vec!["ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], false),
            (vec!["x"], false),
        ] {
            for own in [None, Some(OWN)] {
                let mut headers = HeaderMap::new();
                headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
                for value in &values {
                    headers.append(TRACEPARENT, value.parse().unwrap());
                }
                settle_trace(&mut headers, || own.map(str::to_owned));
                let seen = headers.get(TRACEPARENT).map(|value| value.to_str().unwrap());
                assert_eq!(seen, if passes { Some(values[0]) } else { own }, "{values:?}");
                assert_eq!(headers.contains_key(TRACESTATE), passes, "{values:?}");
            }
        }
    }
}
