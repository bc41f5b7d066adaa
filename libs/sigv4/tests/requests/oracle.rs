//! Whatever the crate `aws-sigv4` signs is believed, and nothing near it.

use super::{Message, Side, at, like, secret};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use proptest::prelude::*;
use sigv4::{Error, Payload, Verifier, parse};
use std::time::Duration;

/// How a request is to be signed.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Plain,
    DeclaredHash,
    Unsigned,
    Presigned(u64),
}

#[derive(Debug, Clone)]
struct Case {
    message: Message,
    manner: Manner,
    key: String,
    secret: String,
    token: Option<String>,
    region: String,
    signed_at: u64,
}

/// A piece of a path or query: characters that may stand there as they are, and escapes in either case.
fn piece() -> impl Strategy<Value = String> {
    let raw = like("[A-Za-z0-9._~!$'()*,;:@-]{0,8}");
    let escape = prop_oneof![
        any::<char>().prop_map(|c| c
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect::<String>()),
        any::<char>().prop_map(|c| c
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect::<String>()),
    ];
    proptest::collection::vec(prop_oneof![3 => raw.boxed(), 1 => escape.boxed()], 0..4)
        .prop_map(|all| all.concat())
}

fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![8 => piece(), 1 => Just(".".to_owned()), 1 => Just("..".to_owned()), 1 => Just(String::new())];
    (proptest::collection::vec(segment, 0..6), piece(), any::<bool>()).prop_map(|(segments, last, slash)| {
        // A last segment of dots is read in two ways by the two signers we know.
        let last = if last.chars().all(|c| c == '.') { "last" } else { &last };
        let start: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        format!("{start}/{last}{}", if slash { "/" } else { "" })
    })
}

fn query() -> impl Strategy<Value = String> {
    let text = || prop_oneof![4 => piece(), 1 => piece().prop_map(|text| format!("{text}+"))];
    let pair = (prop_oneof![text(), Just("tagKeys".to_owned())], text(), 0..8u8);
    let pair = pair.prop_map(|(name, value, form)| if form == 0 { name } else { format!("{name}={value}") });
    proptest::collection::vec(pair, 0..8).prop_map(|pairs| pairs.join("&"))
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = prop_oneof![
        Just("content-type".to_owned()),
        Just("user-agent".to_owned()),
        Just("x-amzn-trace-id".to_owned()),
        like("x-amz-meta-[a-z0-9]{0,3}"),
        like("[a-z]{3}-[a-z0-9]{1,3}"),
    ];
    proptest::collection::vec((name, prop_oneof![like("[ -~]{0,30}"), like("[ aé☕\u{a0}]{0,12}")]), 0..8)
}

fn case() -> impl Strategy<Value = Case> {
    let manner = prop_oneof![
        Just(Manner::Plain),
        Just(Manner::DeclaredHash),
        Just(Manner::Unsigned),
        (1..=604_800u64).prop_map(Manner::Presigned),
    ];
    let method = prop_oneof!["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"];
    let message = (method, path(), query(), headers(), proptest::collection::vec(any::<u8>(), 0..100))
        .prop_map(|(method, path, query, headers, body)| Message {
            name: String::new(),
            method,
            path,
            query,
            authority: None,
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect(),
            body,
        });
    let who =
        ("[A-Z0-9]{16,32}", "[!-~]{1,60}", proptest::option::of("[!-~]{1,60}"), "[a-z]{2}-[a-z]{4,9}-[1-9]");
    (message, manner, who, 946_684_800..4_102_444_800u64).prop_map(
        |(message, manner, (key, secret, token, region), signed_at)| Case {
            message,
            manner,
            key,
            secret,
            token,
            region,
            signed_at,
        },
    )
}

/// The message as its signer sends it.
fn signed(case: &Case) -> Message {
    let identity = Credentials::new(&case.key, &case.secret, case.token.clone(), None, "test").into();
    let mut settings = SigningSettings::default();
    match case.manner {
        Manner::Plain => {}
        Manner::DeclaredHash | Manner::Unsigned => {
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256
        }
        Manner::Presigned(expires) => {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(Duration::from_secs(expires));
        }
    }
    let parameters = SigningParams::builder()
        .identity(&identity)
        .region(&case.region)
        .name("lambda")
        .time(at(case.signed_at))
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let message = &case.message;
    let uri = format!("https://localhost:8444{}?{}", message.path, message.query);
    let headers: Vec<(&str, &str)> = (message.headers.iter())
        .map(|(name, value)| (name.as_str(), std::str::from_utf8(value.as_bytes()).unwrap()))
        .collect();
    let body = match case.manner {
        Manner::Unsigned => SignableBody::UnsignedPayload,
        _ => SignableBody::Bytes(&message.body),
    };
    let request = SignableRequest::new(&message.method, &*uri, headers.into_iter(), body).unwrap();
    let (instructions, _) = sign(request, &parameters).unwrap().into_parts();
    let mut request = http::Request::builder().method(&*message.method).uri(&uri).body(()).unwrap();
    *request.headers_mut() = message.headers.clone();
    instructions.apply_to_request_http1x(&mut request);
    let (head, ()) = request.into_parts();
    let signed = Message {
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        ..message.clone()
    };
    signed.with_header("host", "localhost:8444")
}

fn side(case: &Case) -> Side {
    Side {
        verifier: Verifier::new(&case.region, "lambda"),
        access_key_id: case.key.clone(),
        secret: secret(&case.secret),
        now: at(case.signed_at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn what_the_sdk_signs_is_believed(case in case(), late in 0..300u64) {
        let (message, mut side) = (signed(&case), side(&case));
        prop_assert_eq!(side.verify(&message), Ok(()), "{:?}", message);
        let unverified = parse(message.request()).unwrap();
        prop_assert_eq!(unverified.access_key_id(), &case.key);
        prop_assert_eq!(unverified.security_token(), case.token.as_deref());
        prop_assert_eq!(unverified.presigned(), matches!(case.manner, Manner::Presigned(_)));
        // Another body, another secret, another time.
        let body = [&message.body[..], b"x"].concat();
        let answer = side.verifier.verify(&unverified, &side.secret, Payload::Bytes(&body), side.now);
        let unsigned = matches!(case.manner, Manner::Unsigned);
        prop_assert_eq!(answer, if unsigned { Ok(()) } else { Err(Error::SignatureDoesNotMatch) });
        let other = secret(&format!("{}x", case.secret));
        let answer = side.verifier.verify(&unverified, &other, Payload::Bytes(&message.body), side.now);
        prop_assert_eq!(answer, Err(Error::SignatureDoesNotMatch));
        let life = match case.manner { Manner::Presigned(expires) => expires, _ => 300 };
        side.now = at(case.signed_at + late);
        prop_assert_eq!(side.verify(&message).is_ok(), late <= life);
    }

    #[test]
    fn a_flipped_bit_of_the_path_is_seen(case in case(), at in any::<prop::sample::Index>(), bit in 0..7u8) {
        let mut message = signed(&case);
        let mut path = message.path.clone().into_bytes();
        let at = at.index(path.len());
        path[at] ^= 1 << bit;
        if let Ok(path) = String::from_utf8(path) {
            // Slashes and dots that a signature does not cover.
            prop_assume!(sigv4::normal_path(&path) != sigv4::normal_path(&message.path));
            message.path = path;
            prop_assert_eq!(side(&case).verify(&message), Err(Error::SignatureDoesNotMatch));
        }
    }
}
