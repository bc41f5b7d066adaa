//! What is half signed, there twice, or to be read in two ways is refused.

use super::recorded::one;
use super::{INCOMPLETE, INVALID, Message, check};
use sigv4::{Error, SIGNED_HEADERS_MAX};

#[test]
fn headers_that_must_be_signed() {
    let (side, message) = one("get_microvm");
    let host = "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.";
    check(&side, &message.with_authorization("host;x-amz-date", "x-amz-date"), INVALID, host);
    let date = "'x-amz-date' must be a 'SignedHeader' in the AWS Authorization.";
    check(&side, &message.with_authorization("host;x-amz-date", "host"), INVALID, date);
    let meta = "'x-amz-meta' must be a 'SignedHeader' in the AWS Authorization.";
    check(&side, &message.with_header("X-Amz-Meta", "1"), INVALID, meta);
    let (_, presigned) = one("presigned");
    check(&side, &presigned.with_header("X-Amz-Meta", "1"), INVALID, meta);
    // Signed, and not there.
    let more = message.with_authorization("host;x-amz-date", "host;x-amz-date;x-amz-meta");
    assert_eq!(side.verify(&more), Err(Error::SignatureDoesNotMatch));
    for (name, value) in [("x-amzn-trace-id", "Root=1"), ("content-type", "text/plain"), ("cookie", "a=b")] {
        assert_eq!(side.verify(&message.with_header(name, value)), Ok(()), "{name}");
    }
}

#[test]
fn lists_of_signed_headers_of_another_form() {
    let (side, message) = one("get_microvm");
    for list in [
        "Host;x-amz-date",
        "x-amz-date;host",
        "host;host;x-amz-date",
        "host;;x-amz-date",
        ";host;x-amz-date",
        "host;x-amz-date;",
        "host; x-amz-date",
        "host:x;x-amz-date",
        "host x-amz-date",
    ] {
        let text = format!(
            "SignedHeaders must be header names in lower case, sorted, each once, separated by semicolons, got '{list}'."
        );
        check(&side, &message.with_authorization("host;x-amz-date", list), INCOMPLETE, &text);
    }
    let names = |count: usize| {
        (0..count - 2).fold(String::new(), |list, i| format!("{list}a{i:03};")) + "host;x-amz-date"
    };
    let most = message.with_authorization("host;x-amz-date", &names(SIGNED_HEADERS_MAX));
    assert_eq!(side.verify(&most), Err(Error::SignatureDoesNotMatch));
    let more = message.with_authorization("host;x-amz-date", &names(SIGNED_HEADERS_MAX + 1));
    check(&side, &more, INCOMPLETE, "SignedHeaders must not have more than 64 names.");
}

#[test]
fn what_is_there_twice() {
    let (side, message) = one("a declared hash");
    for (name, value) in [
        ("authorization", message.header("authorization").to_owned()),
        ("authorization", "Bearer x".to_owned()),
        ("x-amz-date", "20260301T235958Z".to_owned()),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD".to_owned()),
        ("host", "elsewhere".to_owned()),
    ] {
        let text = format!("The header '{name}' must not be sent more than once.");
        check(&side, &message.with_one_more(name, &value), INVALID, &text);
    }
    let text = "The header 'date' must not be sent more than once.";
    check(&side, &message.with_one_more("date", "1").with_one_more("date", "2"), INVALID, text);
    for name in ["Credential", "SignedHeaders", "Signature"] {
        let text = format!("Authorization header has more than one '{name}' parameter.");
        let twice = message.with_authorization("AWS4-HMAC-SHA256 ", &format!("AWS4-HMAC-SHA256 {name}=x, "));
        check(&side, &twice, INVALID, &text);
    }
    for mark in ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"] {
        let text = format!("Found both '{mark}' as a query-string param and 'Authorization' as HTTP header.");
        check(&side, &message.with_query(format!("{mark}=x")), INVALID, &text);
        check(&side, &message.with_query(mark), INVALID, &text);
        check(&side, &message.with_query(mark.replace('-', "%2d")), INVALID, &text);
    }
    let (_, presigned) = one("get_microvm presigned with a session token");
    for name in [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Signature",
        "X-Amz-SignedHeaders",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-Security-Token",
    ] {
        let text = format!("The query-string parameter '{name}' must not be sent more than once.");
        check(&side, &presigned.with_query(format!("{}&{name}=", presigned.query)), INVALID, &text);
        check(
            &side,
            &presigned.with_query(format!("{}=&{}", name.replace('A', "%41"), presigned.query)),
            INVALID,
            &text,
        );
    }
    let both = presigned.with_header("x-amz-security-token", "other");
    let text = "Found both 'X-Amz-Security-Token' as a query-string param and 'x-amz-security-token' as HTTP header.";
    check(&side, &both, INVALID, text);
}

#[test]
fn hashes_that_are_none() {
    let (side, message) = one("a declared hash");
    let hash = message.header("x-amz-content-sha256").to_owned();
    for value in
        ["", "unsigned-payload", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", &hash[1..], &format!("{hash}0"), "é"]
    {
        let message = message.with_header("x-amz-content-sha256", value);
        let error = side.verify(&message).unwrap_err();
        assert!(matches!(error, Error::IncompleteSignature(_)), "{value}: {error}");
    }
    // A hash that was signed, of another body.
    let other = Message { body: b"{ }".to_vec(), ..message };
    assert_eq!(side.verify(&other), Err(Error::SignatureDoesNotMatch));
}

#[test]
fn signatures_that_are_none() {
    let (side, message) = one("get_microvm");
    let (before, signature) = message.header("authorization").split_once("Signature=").unwrap();
    for bad in
        ["0", &signature[..63], &format!("{signature}0"), &"g".repeat(64), &"0".repeat(64), &"é".repeat(32)]
    {
        let header = format!("{before}Signature={bad}");
        let error = side.verify(&message.with_header("authorization", &header)).unwrap_err();
        if bad.is_ascii() {
            assert_eq!(error, Error::SignatureDoesNotMatch, "{bad}");
        }
    }
}
