//! What is shown of errors and secrets.

use super::recorded::one;
use super::secret;
use sigv4::{ECHO_LENGTH_MAX, Error, SECRET_LENGTH_MAX, Secret, Verifier};

#[test]
fn fixed_texts() {
    for (error, class, text) in [
        (
            Error::MissingAuthenticationToken,
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        ),
        (
            Error::UnrecognizedClient,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            Error::SignatureDoesNotMatch,
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access \
             Key and signing method. Consult the service documentation for details.",
        ),
    ] {
        assert_eq!((error.class(), error.status(), &*error.to_string()), (class, 403, text));
    }
}

#[test]
fn a_message_repeats_only_so_much() {
    let (side, message) = one("presigned");
    for piece in
        ["X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Date=20260301T235958Z", "X-Amz-SignedHeaders=host"]
    {
        let (name, _) = piece.split_once('=').unwrap();
        for much in ["x".repeat(20_000), "%C3%A9".repeat(5_000)] {
            let error = side.verify(&message.with_query_piece(piece, &format!("{name}={much}"))).unwrap_err();
            assert!(error.to_string().len() < ECHO_LENGTH_MAX + 200, "{error}");
        }
    }
    let (side, message) = one("get_microvm");
    let long = "x".repeat(7_000);
    for (piece, by) in [
        ("/aws4_request", format!("/{long}")),
        ("/us-east-1/", format!("/{long}/")),
        ("AKIA", format!("{long}/")),
    ] {
        let error = side.verify(&message.with_authorization(piece, &by)).unwrap_err();
        assert!(error.to_string().len() < ECHO_LENGTH_MAX + 400, "{error}");
    }
}

#[test]
fn a_secret_shows_nothing_and_has_bounds() {
    let long = "s3cr3t".repeat(8);
    let shown = format!("{:?} {:?}", secret(&long), Some(secret("s3cr3t")));
    assert_eq!(shown, "Secret(redacted) Some(Secret(redacted))");
    assert_eq!(secret(&long).expose(), long);
    assert_eq!(secret("a"), secret("a"));
    assert_ne!(secret("a"), secret("b"));
    Secret::new("x".repeat(SECRET_LENGTH_MAX)).unwrap();
    assert_eq!(
        Secret::new("x".repeat(SECRET_LENGTH_MAX + 1)).unwrap_err().to_string(),
        "a secret access key has 1 to 256 bytes, this one has 257"
    );
    assert_eq!(Secret::new(String::new()).unwrap_err().length, 0);
}

#[test]
fn signatures_and_verifiers_go_between_threads() {
    fn goes<T: Send + Sync>() {}
    goes::<sigv4::UnverifiedSignature<'_>>();
    goes::<Verifier>();
}

#[test]
fn a_verifier_shows_no_keys() {
    let (side, message) = one("get_microvm");
    side.verify(&message).unwrap();
    assert_eq!(format!("{:?}", side.verifier), "Verifier { region: \"us-east-1\", service: \"lambda\", .. }");
    assert_eq!(format!("{:?}", Verifier::new("r", "s")), "Verifier { region: \"r\", service: \"s\", .. }");
}
