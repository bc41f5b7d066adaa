//! Browser sessions: a cookie carries the token, since a browser that follows a link sets no header.
//!
//! A browser sends a cookie whoever made it ask, another site's page too; and the endpoints of other microVMs, whose apps are
//! strangers to this one, are the same site to it. So a request that the cookie opens must also come from the endpoint's own
//! pages, or from the user: see [`Source::is_trusted`].

/// The session's cookie. The prefix has browsers take it over TLS only, from this very host and for all its paths.
pub const COOKIE: &str = "__Host-torpor";

/// The session's token in the values of `Cookie`; none when there are several.
pub fn cookie<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<&'a str> {
    let mut found = values.flat_map(pairs).filter_map(|pair| {
        let (name, value) = split(pair);
        (name == COOKIE.as_bytes()).then_some(value)
    });
    let token = found.next()?;
    if found.next().is_some() { None } else { std::str::from_utf8(token).ok() }
}

/// A value of `Cookie` without the session's, the others as they were; `None` when it has none of the session's.
pub fn without_cookie(value: &[u8]) -> Option<Vec<u8>> {
    let is_ours = |pair: &&[u8]| split(pair).0 == COOKIE.as_bytes();
    if !pairs(value).any(|pair| is_ours(&pair)) {
        return None;
    }
    let rest: Vec<&[u8]> = pairs(value).filter(|pair| !is_ours(pair)).collect();
    Some(rest.join(&b"; "[..]))
}

/// True when a value of `Set-Cookie` sets the session's cookie, or one without a name whose value reads like it: browsers send
/// the two alike.
pub fn sets_cookie(value: &[u8]) -> bool {
    let pair = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let pair = pair.strip_prefix(b"=").unwrap_or(pair);
    split(pair).0 == COOKIE.as_bytes()
}

fn pairs(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

/// Name and value, each without spaces around it.
fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(equals) => (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()),
        None => (pair.trim_ascii(), b""),
    }
}

/// What a browser says of where a request comes from. Pages cannot set any of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Source<'a> {
    pub origin: Option<&'a [u8]>,
    /// `Sec-Fetch-Site`, and `-Mode` and `-Dest`.
    pub site: Option<&'a [u8]>,
    pub mode: Option<&'a [u8]>,
    pub destination: Option<&'a [u8]>,
}

impl Source<'_> {
    /// True when the session's cookie may open a request to `host`. `changes` marks handshakes, and methods that are not
    /// safe. From elsewhere the cookie opens only what a user does by following a link, in a tab of its own.
    pub fn is_trusted(&self, host: &str, changes: bool) -> bool {
        let own = || {
            let Some(origin) = self.origin.and_then(|origin| std::str::from_utf8(origin).ok()) else {
                return false;
            };
            origin.strip_prefix("https://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        };
        match self.site {
            Some(b"same-origin" | b"none") => true,
            Some(_) => {
                !changes && matches!((self.mode, self.destination), (Some(b"navigate"), Some(b"document")))
            }
            // A browser that does not say. Where it names an origin, that decides; it always does for what changes.
            None => own() || (!changes && self.origin.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_found_and_taken_out_of_cookies() {
        for (values, found, rest) in [
            (&["a=1"][..], None, &[None][..]),
            (&["__Host-torpor=x.y"], Some("x.y"), &[Some("")]),
            (&["a=1; __Host-torpor=x.y; b=\"2\""], Some("x.y"), &[Some("a=1; b=\"2\"")]),
            (&["a=1;__Host-torpor = x.y ;b=2"], Some("x.y"), &[Some("a=1; b=2")]),
            (&["a=1", "__Host-torpor=x"], Some("x"), &[None, Some("")]),
            (&["__Host-torpor=x; __Host-torpor=y; c=3"], None, &[Some("c=3")]),
            (&["__Host-torpor=x", "__Host-torpor=y"], None, &[Some(""), Some("")]),
            (&["a=__Host-torpor; x__Host-torpor=1; __host-torpor=2"], None, &[None]),
            (&["__Host-torpor"], Some(""), &[Some("")]),
        ] {
            assert_eq!(cookie(values.iter().map(|value| value.as_bytes())), found, "{values:?}");
            for (value, rest) in values.iter().zip(rest) {
                let left = without_cookie(value.as_bytes());
                assert_eq!(left.as_deref(), rest.map(str::as_bytes), "{value}");
            }
        }
    }

    #[test]
    fn apps_cannot_set_the_session() {
        for (value, sets) in [
            ("__Host-torpor=evil; Path=/; Secure", true),
            (" __Host-torpor = evil", true),
            ("=__Host-torpor=evil", true),
            ("__Host-torpor", true),
            ("a=__Host-torpor=evil", false),
            ("__Host-torpor2=x", false),
            ("a=1; __Host-torpor=x", false),
            ("", false),
        ] {
            assert_eq!(sets_cookie(value.as_bytes()), sets, "{value}");
        }
    }

    #[test]
    fn requests_from_elsewhere_are_not_trusted() {
        let (own, other) = ("https://app.example:8443", "https://other.example:8443");
        for (origin, site, mode, destination, reads, changes) in [
            (None, Some("same-origin"), Some("cors"), None, true, true),
            (Some("null"), Some("same-origin"), Some("navigate"), None, true, true),
            (None, Some("none"), Some("navigate"), Some("document"), true, true),
            (None, Some("cross-site"), Some("navigate"), Some("document"), true, false),
            (None, Some("same-site"), Some("navigate"), Some("iframe"), false, false),
            (None, Some("same-site"), Some("no-cors"), Some("image"), false, false),
            (Some(own), Some("same-site"), Some("websocket"), None, false, false),
            (Some(own), None, None, None, true, true),
            (Some("https://APP.example:8443"), None, None, None, true, true),
            (Some(other), None, None, None, false, false),
            (Some("null"), None, None, None, false, false),
            (Some("http://app.example:8443"), None, None, None, false, false),
            (Some("https://app.example"), None, None, None, false, false),
            (None, None, None, None, true, false),
        ] {
            let bytes = |text: Option<&'static str>| text.map(str::as_bytes);
            let source = Source {
                origin: bytes(origin),
                site: bytes(site),
                mode: bytes(mode),
                destination: bytes(destination),
            };
            assert_eq!(source.is_trusted("app.example:8443", false), reads, "{origin:?} {site:?} {mode:?}");
            assert_eq!(source.is_trusted("app.example:8443", true), changes, "{origin:?} {site:?} {mode:?}");
        }
    }
}
