//! Each bound of each time, from both sides.

use super::recorded::one;
use super::{Side, at};
use sigv4::{CLOCK_SKEW, Error};
use std::time::{Duration, UNIX_EPOCH};

/// 20260301T235958Z
const SIGNED_AT: u64 = 1_772_409_598;

fn later(side: &mut Side, seconds: i64) {
    side.now = at(SIGNED_AT.checked_add_signed(seconds).unwrap());
}

#[test]
fn a_signed_request_is_good_for_the_clock_skew_either_way() {
    let (mut side, message) = one("get_microvm");
    assert_eq!(CLOCK_SKEW, Duration::from_secs(300));
    for seconds in [-300, -299, 0, 1, 299, 300] {
        later(&mut side, seconds);
        assert_eq!(side.verify(&message), Ok(()), "{seconds}");
    }
    for (seconds, text) in [
        (
            301,
            "Signature expired: 20260301T235958Z is now earlier than 20260301T235959Z (20260302T000459Z - 5 min.)",
        ),
        (
            86_400,
            "Signature expired: 20260301T235958Z is now earlier than 20260302T235458Z (20260302T235958Z - 5 min.)",
        ),
        (
            -301,
            "Signature not yet current: 20260301T235958Z is still later than 20260301T235957Z (20260301T235457Z + 5 min.)",
        ),
    ] {
        later(&mut side, seconds);
        let error = side.verify(&message).unwrap_err();
        assert_eq!((error.class(), error.status()), ("InvalidSignatureException", 403));
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_presigned_request_is_good_for_as_long_as_it_says() {
    for (name, expires) in [
        ("presigned", 300),
        ("presigned for a second", 1),
        ("presigned for a week", 604_800),
        ("presigned with a header", 60),
    ] {
        let (mut side, message) = one(name);
        for seconds in [-300, 0, expires - 1, expires] {
            later(&mut side, seconds);
            assert_eq!(side.verify(&message), Ok(()), "{name}: {seconds}");
        }
        later(&mut side, expires + 1);
        let expired = side.verify(&message).unwrap_err();
        assert!(matches!(expired, Error::Expired { .. }), "{name}");
        let validity = match expires {
            1 => "1 sec.".to_owned(),
            seconds => format!("{} min.", seconds / 60),
        };
        assert!(expired.to_string().ends_with(&format!(" - {validity})")), "{expired}");
        later(&mut side, -301);
        assert!(matches!(side.verify(&message), Err(Error::NotYetCurrent { .. })), "{name}");
    }
    let (mut side, message) = one("presigned for a week");
    later(&mut side, 604_801);
    assert_eq!(
        side.verify(&message).unwrap_err().to_string(),
        "Signature expired: 20260301T235958Z is now earlier than 20260301T235959Z (20260308T235959Z - 10080 min.)"
    );
}

#[test]
fn a_presigned_life_has_bounds() {
    let (side, message) = one("presigned");
    for (expires, good) in [
        ("1", true),
        ("604800", true),
        ("0", false),
        ("604801", false),
        ("-1", false),
        ("+5", false),
        ("%2B5", false),
        ("1.5", false),
        ("", false),
        ("x", false),
        ("99999999999999999999", false),
    ] {
        let error =
            side.verify(&message.with_query_piece("X-Amz-Expires=300", &format!("X-Amz-Expires={expires}")));
        // Of the good ones, each but the one that was signed has a wrong signature.
        match error.unwrap_err() {
            Error::SignatureDoesNotMatch => assert!(good, "{expires}"),
            error => {
                assert!(!good, "{expires}: {error}");
                let got = expires.replace('+', " ").replace("%2B", "+");
                let text =
                    format!("X-Amz-Expires must be a number of seconds from 1 to 604800, got '{got}'.");
                assert_eq!((error.class(), error.to_string()), ("IncompleteSignatureException", text));
            }
        }
    }
}

#[test]
fn clocks_at_the_ends_of_time_are_only_wrong() {
    let (mut side, message) = one("get_microvm");
    for now in [UNIX_EPOCH - Duration::from_secs(1 << 40), UNIX_EPOCH, at(1 << 40), at(1 << 60)] {
        side.now = now;
        side.verify(&message).unwrap_err();
    }
}
