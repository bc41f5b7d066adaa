//! Page tokens.

use aws_model::{Input, Limits, PAGE_TOKEN_MAX, PageTokens, Routed, encode, parse, route};
use proptest::prelude::*;

const IMAGES: &str = "/2025-09-09/microvm-images";
const CONNECTORS: &str = "/2026-04-04/network-connectors";

fn listing(path: &str, query: &str) -> Input {
    let Routed::Operation(operation, parameters) = route("GET", path) else { panic!("{path} leads nowhere") };
    parse(operation, &parameters, query, b"", &Limits::default()).unwrap()
}

fn tokens() -> PageTokens {
    PageTokens::new(b"a secret of the fleet")
}

fn open(path: &str, query: &str, token: &str) -> Option<String> {
    let member = if path == CONNECTORS { "Marker" } else { "nextToken" };
    let input = listing(path, &format!("{query}&{member}={}", encode(token)));
    tokens().open(&input).ok()
}

#[test]
fn a_token_opens_for_its_own_listing_only() {
    let query = "nameFilter=app&maxResults=10";
    let token = tokens().seal(&listing(IMAGES, query), "images/app-7");
    assert!(
        token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'),
        "{token}"
    );
    assert_eq!(open(IMAGES, query, &token).as_deref(), Some("images/app-7"));
    assert_eq!(open(IMAGES, "nameFilter=app&maxResults=50", &token).as_deref(), Some("images/app-7"));
    assert_eq!(open(IMAGES, "nameFilter=app", &format!("{token}==")).as_deref(), Some("images/app-7"));
    assert_eq!(open(IMAGES, "nameFilter=other", &token), None);
    assert_eq!(open(IMAGES, "", &token), None);
    assert_eq!(open("/2025-09-09/managed-microvm-images", "", &token), None);
    let next = listing(IMAGES, &format!("{query}&nextToken={token}"));
    let second = tokens().seal(&next, "images/app-9");
    assert_eq!(
        open(IMAGES, query, &second).as_deref(),
        Some("images/app-9"),
        "a token does not depend on the one before"
    );
}

#[test]
fn no_token_is_the_first_page() {
    assert_eq!(tokens().open(&listing(IMAGES, "")).unwrap(), "");
    assert_eq!(tokens().open(&listing(CONNECTORS, "")).unwrap(), "");
}

#[test]
fn a_refusal_is_in_the_manner_of_the_service() {
    let refusal = |path: &str, query: &str| tokens().open(&listing(path, query)).unwrap_err();
    let rejection = refusal(IMAGES, "nextToken=x");
    assert_eq!(rejection.class.name(), "ValidationException");
    assert_eq!(rejection.message.as_deref(), Some("The nextToken is not valid for this request"));
    let rejection = refusal(CONNECTORS, "Marker=x");
    assert_eq!(rejection.class.name(), "InvalidParameterValueException");
    refusal(IMAGES, "nextToken=");
    refusal(IMAGES, &format!("nextToken={}", "A".repeat(PAGE_TOKEN_MAX + 1)));
}

#[test]
fn another_key_makes_other_tokens() {
    let token = PageTokens::new(b"another").seal(&listing(IMAGES, ""), "x");
    assert_eq!(open(IMAGES, "", &token), None);
}

proptest! {
    #[test]
    fn what_is_sealed_opens_and_what_is_changed_does_not(inner in "\\PC{0,300}", at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_-]") {
        let token = tokens().seal(&listing(CONNECTORS, "State=ACTIVE"), &inner);
        prop_assert_eq!(open(CONNECTORS, "State=ACTIVE", &token), Some(inner));
        let at = at.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(at..=at, &to);
        prop_assert_eq!(open(CONNECTORS, "State=ACTIVE", &changed).is_some(), changed == token);
    }

    #[test]
    fn any_text_is_refused(text in "\\PC{1,60}") {
        prop_assert_eq!(open(IMAGES, "", &text), None);
    }
}
