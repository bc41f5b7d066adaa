//! Nothing that comes in makes a panic, and nothing made up is believed.

use super::recorded::recorded;
use super::{Message, Side, at, like, secret};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use sigv4::{Payload, Verifier, normal_path, parse};
use std::sync::LazyLock;

/// Bits of signatures, which chance alone would seldom put together.
fn word() -> impl Strategy<Value = String> {
    let known = [
        "AWS4-HMAC-SHA256",
        "Credential=",
        "SignedHeaders=",
        "Signature=",
        "AKIA/20260301/us-east-1/lambda/aws4_request",
        "host;x-amz-date",
        "host",
        "20260301T235958Z",
        "Sun, 01 Mar 2026 23:59:58 GMT",
        "UNSIGNED-PAYLOAD",
        "95ced4ae1af5732ec1ecf78091f8737c3fc1c8054d2d7c2d7a43c91ff022d87d",
        "X-Amz-Algorithm=AWS4-HMAC-SHA256",
        "X-Amz-Credential=AKIA%2F20260301%2Fus-east-1%2Flambda%2Faws4_request",
        "X-Amz-Date=20260301T235958Z",
        "X-Amz-Expires=300",
        "X-Amz-SignedHeaders=host",
        "X-Amz-Signature=",
        "X-Amz-Security-Token=",
        "X-Amz-Content-Sha256=",
        "/",
        "..",
        ",",
        " ",
        "&",
        "=",
        "%",
        "%zz",
        "%c3",
        "+",
        ";",
    ];
    prop_oneof![3 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => like("\\PC{0,6}"), 1 => like("[ -~]{0,6}")]
}

fn words() -> impl Strategy<Value = String> {
    proptest::collection::vec(word(), 0..16).prop_map(|words| words.concat())
}

fn pairs() -> impl Strategy<Value = String> {
    proptest::collection::vec(word(), 0..12).prop_map(|words| words.join("&"))
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let names = [
        "authorization",
        "host",
        "date",
        "x-amz-date",
        "x-amz-content-sha256",
        "x-amz-security-token",
        "x-amz-meta",
        "content-type",
    ];
    let bytes = proptest::collection::vec(any::<u8>(), 0..20);
    let value = prop_oneof![4 => words().prop_map(String::into_bytes), 1 => bytes];
    proptest::collection::vec((proptest::sample::select(names.to_vec()), value), 0..8).prop_map(|headers| {
        headers
            .into_iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_bytes(&value).ok()?))
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn made_up_requests_are_refused(
        method in like("\\PC{0,5}"),
        path in prop_oneof![words(), like("(/|[.]|\\PC){0,12}")],
        query in prop_oneof![words(), pairs()],
        authority in proptest::option::of(words()),
        headers in headers(),
        body in proptest::collection::vec(any::<u8>(), 0..20),
        now in any::<u64>(),
    ) {
        let message = Message { name: String::new(), method, path, query, authority, headers, body };
        let verifier = Verifier::new("us-east-1", "lambda");
        let secret = secret("secret");
        for now in [at(now >> 1), at(1_772_409_598)] {
            let answer = parse(message.request())
                .and_then(|unverified| verifier.verify(&unverified, &secret, Payload::Bytes(&message.body), now));
            let error = answer.unwrap_err();
            prop_assert_eq!(error.status(), 403);
            prop_assert!(error.to_string().len() < 2048, "{}", error);
        }
    }

    #[test]
    fn a_normal_path_is_its_own(path in like("(/|[.]|[a-c%]){0,12}")) {
        let normal = normal_path(&path);
        prop_assert!(normal.starts_with('/') && !normal.contains("//"));
        prop_assert!(normal.split('/').all(|segment| segment != "." && segment != ".."));
        prop_assert_eq!(normal_path(&normal), &*normal);
    }

    /// Signatures that botocore made, with one part replaced.
    #[test]
    fn a_foreign_part_is_refused(
        which in any::<prop::sample::Index>(),
        part in 0..4u8,
        words in words(),
        bytes in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        static RECORDED: LazyLock<(Side, Vec<Message>)> = LazyLock::new(recorded);
        let (side, messages) = &*RECORDED;
        let mut message = which.get(messages).clone();
        let unsigned = message.name == "an unsigned payload";
        match part {
            0 if normal_path(&message.path) != normal_path(&words) => message.path = words,
            1 => message.query = format!("{}&a{words}", message.query),
            2 if !unsigned && message.body != bytes => message.body = bytes,
            3 => match HeaderValue::from_str(&words) {
                Ok(value) => drop(message.headers.insert("authorization", value)),
                Err(_) => return Ok(()),
            },
            _ => return Ok(()),
        }
        prop_assert!(side.verify(&message).is_err(), "{:?}", message);
    }
}
