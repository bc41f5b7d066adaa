//! Tokens through the public interface: tables, and that nothing forged opens.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use proptest::prelude::*;
use token::{Claims, Key, KeySet, Kind, MintError, PortScope, TOKEN_LENGTH_MAX, VerifyError};

const NOW: u64 = 1_800_000_000;

fn claims() -> Claims {
    Claims {
        microvm_id: "microvm-0b6e5e1e-0000-4000-8000-000000000001".into(),
        kind: Kind::Endpoint,
        ports: vec![PortScope::Single(8080), PortScope::Range(9000, 9010)],
        paths: vec![],
        methods: vec![],
        issued_at: NOW,
        expires_at: NOW + 900,
        revocations: 0,
    }
}

fn set(created: &[u64]) -> KeySet {
    KeySet::new(created.iter().map(|at| Key::generate(*at).unwrap()).collect()).unwrap()
}

#[test]
fn a_token_opens_until_it_expires() {
    let keys = set(&[NOW]);
    let token = keys.mint(&claims()).unwrap();
    assert_eq!(token.split('.').count(), 5);
    assert_eq!(token.split('.').nth(1), Some(""));
    assert_eq!(keys.verify(&token, NOW), Ok(claims()));
    assert_eq!(keys.verify(&token, NOW + 899), Ok(claims()));
    assert_eq!(keys.verify(&token, NOW + 900), Err(VerifyError::Expired));
}

#[test]
fn two_tokens_of_the_same_claims_differ() {
    let keys = set(&[NOW]);
    assert_ne!(keys.mint(&claims()).unwrap(), keys.mint(&claims()).unwrap());
}

#[test]
fn the_newest_key_seals_and_all_open() {
    let old = set(&[NOW - 100]);
    let token = old.mint(&claims()).unwrap();
    let newer = Key::generate(NOW).unwrap();
    let both = KeySet::new(vec![old.keys()[0].clone(), newer.clone()]).unwrap();
    assert_eq!(both.newest(), Some(&newer));
    assert_eq!(both.verify(&token, NOW), Ok(claims()));
    let only_new = KeySet::new(vec![newer]).unwrap();
    assert_eq!(only_new.verify(&token, NOW), Err(VerifyError::UnknownKey));
    assert_eq!(only_new.verify(&both.mint(&claims()).unwrap(), NOW), Ok(claims()));
}

#[test]
fn what_is_not_a_token_is_malformed() {
    let keys = set(&[NOW]);
    let token = keys.mint(&claims()).unwrap();
    let long = "a".repeat(TOKEN_LENGTH_MAX + 1);
    let extra = format!("{token}.x");
    let filled = token.replacen("..", ".eA.", 1);
    for text in ["", "....", "a.b.c", "Bearer x", &long, &extra, &filled, "e30..AAAA.AAAA.AAAA"] {
        assert_eq!(keys.verify(text, NOW), Err(VerifyError::Malformed), "{text:.40}");
    }
}

#[test]
fn another_key_under_the_same_id_does_not_open() {
    let keys = set(&[NOW]);
    let token = keys.mint(&claims()).unwrap();
    let mut other = serde_json::to_value(set(&[NOW])).unwrap();
    other[0]["id"] = serde_json::to_value(keys.keys()[0].id).unwrap();
    let other: KeySet = serde_json::from_value(other).unwrap();
    assert_eq!(other.verify(&token, NOW), Err(VerifyError::Bad));
}

#[test]
fn claims_that_do_not_fit_are_refused() {
    let keys = set(&[NOW]);
    let huge = Claims { ports: vec![PortScope::Range(10_000, 60_000); 1000], ..claims() };
    assert_eq!(keys.mint(&huge), Err(MintError::TooLong));
    let most = Claims { ports: vec![PortScope::Range(10_000, 60_000); 100], ..claims() };
    assert!(keys.mint(&most).is_ok());
    // The longest scopes that the scheduler takes, all of them together.
    let paths = vec!["/".repeat(3072 / 16); 16];
    let scoped = Claims { paths, methods: vec!["M".repeat(32); 16], revocations: u64::MAX, ..most };
    assert!(keys.mint(&scoped).is_ok());
    assert_eq!(KeySet::default().mint(&claims()), Err(MintError::NoKey));
}

#[test]
fn keys_survive_json_and_hide_in_debug() {
    let keys = set(&[NOW, NOW + 1]);
    let text = serde_json::to_string(&keys).unwrap();
    assert_eq!(serde_json::from_str::<KeySet>(&text).unwrap(), keys);
    let value = serde_json::to_value(&keys).unwrap();
    let secret = value[0]["secret"].as_str().unwrap();
    assert!(!format!("{keys:?}").contains(secret));
    let broken = text.replace(secret, "c2hvcnQ=");
    let error = serde_json::from_str::<KeySet>(&broken).unwrap_err().to_string();
    assert!(!error.contains("c2hvcnQ"), "{error}");
}

#[test]
fn ports_are_as_scoped() {
    for (port, allowed) in
        [(8080, true), (8081, false), (8999, false), (9000, true), (9010, true), (9011, false)]
    {
        assert_eq!(claims().allows(port), allowed, "{port}");
    }
    assert!(PortScope::ALL.allows(1) && PortScope::ALL.allows(65535));
    assert!(!Claims { ports: vec![], ..claims() }.allows(8080));
}

#[test]
fn paths_and_methods_are_as_scoped() {
    let of = |paths: &[&str]| Claims { paths: paths.iter().map(|path| (*path).into()).collect(), ..claims() };
    for (prefix, path, allowed) in [
        ("/api", "/api", true),
        ("/api", "/api/", true),
        ("/api", "/api/x/y;z=1", true),
        ("/api", "/apix", false),
        ("/api", "/ap", false),
        ("/api", "/API", false),
        ("/api", "/%61pi", false),
        ("/api", "/api%2fx", false),
        ("/api", "/api;v=1", false),
        ("/api", "/x/api", false),
        ("/api", "", false),
        ("/api", "*", false),
        ("/api/", "/api", true),
        ("/api/", "/api/x", true),
        ("/api/", "/apix", false),
        ("/", "/", true),
        ("/", "/anything/at..all/...", true),
        ("/", "/a%20b", true),
        ("/", "//", false),
        ("/", "*", false),
        ("/api", "/api/../admin", false),
        ("/api", "/api/..", false),
        ("/api", "/api/.", false),
        ("/api", "/api/./x", false),
        ("/api", "/api/..;/admin", false),
        ("/api", "/api/.;x=1/y", false),
        ("/api", "/api/;/x", false),
        ("/api", "/api//x", false),
        ("/api", "/api/%2e%2E/admin", false),
        ("/api", "/api/.%2e/admin", false),
        ("/api", "/api/x%2Fy", false),
        ("/api", "/api/x%5cy", false),
        ("/api", "/api/x\\y", false),
    ] {
        assert_eq!(of(&[prefix]).allows_path(path), allowed, "{prefix} {path}");
        assert_eq!(of(&["/other", prefix]).allows_path(path), allowed, "{prefix} {path}");
        assert!(of(&[]).allows_path(path), "{path} without a scope");
    }
    let methods =
        |methods: &[&str]| Claims { methods: methods.iter().map(|one| (*one).into()).collect(), ..claims() };
    for (allowed, method, expected) in [
        (&[][..], "DELETE", true),
        (&["GET"], "GET", true),
        (&["GET", "HEAD"], "HEAD", true),
        (&["GET"], "HEAD", false),
        (&["GET"], "get", false),
    ] {
        assert_eq!(methods(allowed).allows_method(method), expected, "{allowed:?} {method}");
    }
}

#[test]
fn a_revocation_is_counted() {
    let keys = set(&[NOW]);
    for (made_after, now, revoked) in
        [(0, 0, false), (0, 1, true), (1, 1, false), (1, 7, true), (2, 1, false)]
    {
        let token = keys.mint(&Claims { revocations: made_after, ..claims() }).unwrap();
        assert_eq!(keys.verify(&token, NOW).unwrap().is_revoked(now), revoked, "{made_after} {now}");
    }
    // Tokens of versions that knew neither revocations nor scopes say nothing of them.
    let text = serde_json::to_string(&claims()).unwrap();
    assert!(!["rev", "paths", "methods"].iter().any(|claim| text.contains(claim)), "{text}");
    assert_eq!(serde_json::from_str::<Claims>(&text).unwrap(), claims());
}

proptest! {
    #[test]
    fn any_changed_character_closes_it(position in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.=-]") {
        let keys = set(&[NOW]);
        let token = keys.mint(&claims()).unwrap();
        let position = position.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(position..=position, &with);
        prop_assume!(changed != token);
        prop_assert!(keys.verify(&changed, NOW).is_err());
    }

    #[test]
    fn any_text_is_an_error_and_no_panic(text in "\\PC{0,200}") {
        prop_assert!(set(&[NOW]).verify(&text, NOW).is_err());
    }

    #[test]
    fn any_claims_come_back(first in 1u16.., last in 1u16.., seconds in 1u64..100_000, shell: bool) {
        let keys = set(&[1, 2, 3]);
        let kind = if shell { Kind::Shell } else { Kind::Endpoint };
        let claims = Claims { ports: vec![PortScope::Range(first, last)], kind, expires_at: NOW + seconds, ..claims() };
        prop_assert_eq!(keys.verify(&keys.mint(&claims).unwrap(), NOW), Ok(claims));
    }
}
