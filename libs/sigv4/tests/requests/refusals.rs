//! What is absent, malformed or out of scope is refused, in AWS's words.

use super::recorded::one;
use super::{INCOMPLETE, INVALID, check, check_hashed};
use sigv4::{AUTHORIZATION_LENGTH_MAX, Error, QUERY_LENGTH_MAX, QUERY_PARAMETERS_MAX};

#[test]
fn no_signature_at_all() {
    let (side, message) = one("list_microvm_images");
    let text = "Missing Authentication Token";
    let bare = message.without_header("authorization");
    check(&side, &bare, "MissingAuthenticationTokenException", text);
    check(
        &side,
        &bare.with_query("X-Amz-Date=1&x-amz-algorithm=a"),
        "MissingAuthenticationTokenException",
        text,
    );
}

#[test]
fn an_authorization_header_without_its_parts() {
    let (side, message) = one("list_microvm_images");
    let requires = |name: &str| format!("Authorization header requires '{name}' parameter. ");
    let date = "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ";
    let tail = "(Hashed with SHA-256 and encoded with Base64) Authorization=";
    let all = requires("Credential") + &requires("Signature") + &requires("SignedHeaders");
    for (header, text) in [
        ("", all.clone()),
        ("AWS4-HMAC-SHA256", all.clone()),
        ("AWS4-HMAC-SHA256 ", all.clone()),
        ("AWS4-HMAC-SHA256 ,,, ,", all.clone()),
        ("AWS AKIA:c2lnbmF0dXJl=", all.clone()),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIifQ.c2ln", all.clone()),
        ("AWS4-HMAC-SHA256 Credential=a, Signature=b", requires("SignedHeaders")),
        ("AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b", requires("Signature")),
        ("AWS4-HMAC-SHA256 Signature=a,SignedHeaders=b", requires("Credential")),
        ("AWS4-HMAC-SHA256 Credential=a, Signature=, SignedHeaders=b", requires("Signature")),
        ("AWS4-HMAC-SHA256 credential=a, Signature=b, SignedHeaders=c", requires("Credential")),
    ] {
        let message = message.with_header("authorization", header);
        check_hashed(&side, &message, &format!("{text}{tail}"));
        check_hashed(&side, &message.without_header("x-amz-date"), &format!("{text}{date}{tail}"));
    }
    check_hashed(&side, &message.without_header("x-amz-date"), &format!("{date}{tail}"));
    for header in ["Bearer abc", "Basic dXNlcjpwYXNz", "AWS4-HMAC-SHA256 Credential= a/b, SignedHeaders"] {
        check_hashed(
            &side,
            &message.with_header("authorization", header),
            "Invalid key=value pair (missing equal-sign) in Authorization header (hashed with SHA-256 and encoded with \
             Base64): '",
        );
    }
    // Known: base64 of the SHA-256 of nothing.
    let error = side.verify(&message.with_header("authorization", "")).unwrap_err().to_string();
    assert!(error.ends_with("Authorization=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="), "{error}");
}

#[test]
fn a_header_that_is_not_ascii_or_too_long() {
    let (side, message) = one("list_microvm_images");
    let tail = "(Hashed with SHA-256 and encoded with Base64) Authorization=";
    check_hashed(
        &side,
        &message.with_header("authorization", "AWS4-HMAC-SHA256 Credential=é"),
        &format!("Authorization header must be ASCII. {tail}"),
    );
    let long = "x".repeat(AUTHORIZATION_LENGTH_MAX + 1);
    check_hashed(
        &side,
        &message.with_header("authorization", &long),
        &format!("Authorization header must not be longer than 8192 bytes, got 8193. {tail}"),
    );
    let old = message.header("authorization").to_owned();
    let padded = format!("{old}{}", " ".repeat(AUTHORIZATION_LENGTH_MAX - old.len()));
    assert_eq!(side.verify(&message.with_header("authorization", &padded)), Ok(()));
    for name in ["x-amz-date", "x-amz-content-sha256", "x-amz-security-token"] {
        let text = format!("The header '{name}' must consist of visible ASCII characters.");
        check(&side, &message.with_header(name, "2026é"), INCOMPLETE, &text);
    }
}

#[test]
fn spaces_and_order_in_the_header_do_not_matter() {
    let (side, message) = one("list_microvm_images");
    let old = message.header("authorization").to_owned();
    let (algorithm, rest) = old.split_once(' ').unwrap();
    let [credential, headers, signature] =
        <[&str; 3]>::try_from(rest.split(", ").collect::<Vec<_>>()).unwrap();
    for header in [
        format!("{algorithm} {signature},{headers},{credential}"),
        format!("  {algorithm}   {credential}  ,\t{headers} , {signature} , "),
        format!("{algorithm} Other=1,{credential},{headers},{signature}"),
    ] {
        assert_eq!(side.verify(&message.with_header("authorization", &header)), Ok(()), "{header}");
    }
    for header in [
        format!("aws4-hmac-sha256 {rest}"),
        format!("AWS4-HMAC-SHA512 {rest}"),
        format!("AWS4-ECDSA-P256-SHA256 {rest}"),
    ] {
        let algorithm = header.split_once(' ').unwrap().0;
        let text = format!("Unsupported AWS 'algorithm': '{algorithm}' (only AWS4-HMAC-SHA256 for now).");
        check(&side, &message.with_header("authorization", &header), INCOMPLETE, &text);
    }
}

#[test]
fn a_query_without_its_parts() {
    let (side, message) = one("presigned");
    let tail = "Re-examine the query-string parameters.";
    for name in
        ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date"]
    {
        let text = format!("AWS query-string parameters must include '{name}'. {tail}");
        check(&side, &message.with_query_piece(&format!("{name}="), "other="), INCOMPLETE, &text);
        let empty = message.query.split('&').map(|pair| if pair.starts_with(name) { name } else { pair });
        check(&side, &message.with_query(empty.collect::<Vec<_>>().join("&")), INCOMPLETE, &text);
        let other = format!("{name}=%ff");
        let odd = message.query.split('&').map(|pair| if pair.starts_with(name) { &*other } else { pair });
        let text = format!("The query-string parameter '{name}' must be UTF-8.");
        check(&side, &message.with_query(odd.collect::<Vec<_>>().join("&")), INCOMPLETE, &text);
    }
    let all: String = ["Algorithm", "Credential", "SignedHeaders", "Date"]
        .map(|name| format!("AWS query-string parameters must include 'X-Amz-{name}'. "))
        .concat();
    check(&side, &message.with_query("X-Amz-Signature=1"), INCOMPLETE, &format!("{all}{tail}"));
}

#[test]
fn a_presigned_request_that_does_not_say_how_long() {
    let (side, message) = one("presigned");
    let error = side.verify(&message.with_query_piece("&X-Amz-Expires=300", "")).unwrap_err();
    assert_eq!(error, Error::SignatureDoesNotMatch, "it is well-formed, and was signed with a life");
}

#[test]
fn a_query_has_bounds() {
    let (side, message) = one("list_microvm_images");
    let long = format!("a={}", "x".repeat(QUERY_LENGTH_MAX - 2));
    assert_eq!(side.verify(&message.with_query(&*long)), Err(Error::SignatureDoesNotMatch));
    let text = "The query-string must not be longer than 32768 bytes, got 32769.";
    check(&side, &message.with_query(long + "x"), INCOMPLETE, text);
    let many = "a&".repeat(QUERY_PARAMETERS_MAX);
    assert_eq!(side.verify(&message.with_query(&*many)), Err(Error::SignatureDoesNotMatch));
    let text = "The query-string must not have more than 512 parameters.";
    check(&side, &message.with_query(many + "a"), INCOMPLETE, text);
}

#[test]
fn dates_in_no_known_form() {
    let (side, message) = one("list_microvm_images");
    let (_, presigned) = one("presigned");
    for date in [
        "",
        "2026",
        "20260301",
        "20260301T235958",
        "20260301T235958z",
        "20260301T235960Z",
        "20260301T245958Z",
        "20260230T000000Z",
        "2026-03-01T23:59:58Z",
        "+0260301T235958Z",
        "Sun, 01 Mar 2026 23:59:58 GMT",
    ] {
        let text = format!(
            "Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601"
        );
        check(&side, &message.with_header("x-amz-date", date), INCOMPLETE, &text);
        if !date.is_empty() && !date.contains('+') {
            let encoded = format!("X-Amz-Date={}", date.replace(' ', "%20"));
            check(
                &side,
                &presigned.with_query_piece("X-Amz-Date=20260301T235958Z", &encoded),
                INCOMPLETE,
                &text,
            );
        }
    }
    // Where there is an X-Amz-Date, nobody reads the other one.
    assert_eq!(side.verify(&message.with_header("date", "Mon, 02 Mar 2026 23:59:58 GMT")), Ok(()));
    let (side, message) = one("Date instead of X-Amz-Date");
    assert_eq!(message.header("date"), "Sun, 01 Mar 2026 23:59:58 -0000");
    // Read, and then found to be not what was signed.
    for date in ["Sun, 01 Mar 2026 23:59:58 GMT", "20260301T235958Z", "Sun, 01 Mar 2026 18:59:58 -0500"] {
        assert_eq!(
            side.verify(&message.with_header("date", date)),
            Err(Error::SignatureDoesNotMatch),
            "{date}"
        );
    }
    for date in ["Sun, 32 Mar 2026 23:59:58 GMT", "now", "Mon, 01 Mar 2026 23:59 GMT +"] {
        let error = side.verify(&message.with_header("date", date)).unwrap_err();
        assert!(matches!(error, Error::IncompleteSignature(_)), "{date}: {error}");
    }
}

#[test]
fn credentials_of_another_form_or_scope() {
    let (side, message) = one("list_microvm_images");
    let good = "AKIATORPOREXAMPLE001/20260301/us-east-1/lambda/aws4_request";
    for bad in ["AKIA", "a/b/c/d", "a/b/c/d/e/f", "a/20260301/us-east-1/lambda/aws4_request/"] {
        let text = format!(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{bad}'"
        );
        check(&side, &message.with_authorization(good, bad), INCOMPLETE, &text);
    }
    let region = "Credential should be scoped to a valid region.";
    let service = "Credential should be scoped to correct service: 'lambda'.";
    let terminator = "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5'.";
    let day = "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20260302' != \
               '20260301', from '20260301T235958Z'.";
    for (scope, text) in [
        ("20260301/us-east-2/lambda/aws4_request", region.to_owned()),
        ("20260301/US-EAST-1/lambda/aws4_request", region.to_owned()),
        ("20260301//lambda/aws4_request", region.to_owned()),
        ("20260301/us-east-1/s3/aws4_request", service.to_owned()),
        ("20260301/us-east-1/lambda/aws5", terminator.to_owned()),
        ("20260302/us-east-1/lambda/aws4_request", day.to_owned()),
        ("20260302/x/y/aws5", format!("{region} {service} {terminator} {day}")),
    ] {
        check(&side, &message.with_authorization(good, &format!("AKIA/{scope}")), INVALID, &text);
    }
}

#[test]
fn an_expired_request_is_told_before_a_wrong_scope_and_a_malformed_one_before_both() {
    let (mut side, message) = one("list_microvm_images");
    side.now += std::time::Duration::from_secs(3600);
    let scoped = message.with_authorization("/us-east-1/", "/us-east-2/");
    assert!(matches!(side.verify(&scoped), Err(Error::Expired { .. })));
    let malformed = scoped.with_authorization("/aws4_request", "");
    assert!(matches!(side.verify(&malformed), Err(Error::IncompleteSignature(_))));
}
