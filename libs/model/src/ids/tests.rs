use super::*;
use proptest::prelude::*;

#[test]
fn roles_are_judged_by_their_form() {
    let longest = format!("arn:aws:iam::000000000000:role/{}", "r".repeat(2048 - 31));
    for (text, good) in [
        ("arn:aws:iam::000000000000:role/build", true),
        ("arn:aws-cn:iam::123456789012:role/path/Name_1+=,.@-", true),
        ("arn:aws:iam::123456789012:rolex", true),
        (longest.as_str(), true),
        (&format!("{longest}r"), false),
        ("", false),
        ("build", false),
        ("arn:aws:iam::12345678901:role/x", false),
        ("arn:aws:iam::12345678901x:role/x", false),
        ("arn:aws:iam::123456789012:user/x", false),
        ("arn:aws:iam::123456789012:role/", false),
        ("arn:aws:iam::123456789012:role/a b", false),
        ("arn:gcp:iam::123456789012:role/x", false),
        ("arn:aws1:iam::123456789012:role/x", false),
    ] {
        assert_eq!(text.parse::<RoleArn>().is_ok(), good, "{text}");
    }
}

#[test]
fn kms_keys_are_judged_by_their_form() {
    let longest = format!("alias/{}", "k".repeat(2048 - 6));
    for (text, good) in [
        ("arn:aws:kms:us-east-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab", true),
        ("arn:aws-cn:kms:cn-north-1:123456789012:alias/team/images_1:a", true),
        ("alias/images", true),
        ("1234abcd-12ab-34cd-56ef-1234567890ab", true),
        (longest.as_str(), true),
        (&format!("{longest}k"), false),
        ("", false),
        ("alias/", false),
        ("a b", false),
        ("key/1", false),
        ("arn:aws:kms:us-east-1:000000000000:key/", false),
        ("arn:aws:kms:us-east-1:000000000000:grant/1", false),
        ("arn:aws:kms:us-east-1:00000000000:key/1", false),
        ("arn:aws:kms::000000000000:key/1", false),
        ("arn:aws:kms:US:000000000000:key/1", false),
        ("arn:aws:iam:us-east-1:000000000000:key/1", false),
        ("arn:gcp:kms:us-east-1:000000000000:key/1", false),
        ("arn", true),
    ] {
        assert_eq!(text.parse::<KmsKeyIdentifier>().is_ok(), good, "{text}");
    }
}

#[test]
fn ids_accept_their_form_and_nothing_else() {
    let microvm = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    assert_eq!(microvm.parse::<MicrovmId>().unwrap().to_string(), microvm);
    for bad in ["", "microvm-", "mvm-0190a5e2-7c3b-3f00-8000-000000000001", &microvm.to_uppercase()] {
        assert!(bad.parse::<MicrovmId>().is_err(), "{bad}");
    }
    for (text, good) in [("a", true), ("my-image_1", true), ("", false), ("bad name!", false)] {
        assert_eq!(text.parse::<ImageName>().is_ok(), good, "{text}");
    }
    assert!("a".repeat(64).parse::<ImageName>().is_ok());
    assert!("a".repeat(65).parse::<ImageName>().is_err());
    for (text, good) in
        [("1.0", true), ("12.3", true), ("1", false), ("01.0", false), ("0.1", false), ("+1.0", false)]
    {
        assert_eq!(text.parse::<VersionNumber>().is_ok(), good, "{text}");
    }
    assert!("t".repeat(128).parse::<ClientToken>().is_ok());
    assert!("t".repeat(129).parse::<ClientToken>().is_err());
}

#[test]
fn image_identifiers_are_names_or_arns_of_this_fleet() {
    let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:app";
    for text in ["app", arn] {
        let parsed = ImageIdentifier::parse(text, "us-east-1", "000000000000").unwrap();
        assert_eq!(parsed.name().as_str(), "app");
    }
    assert!(ImageIdentifier::parse(arn, "us-east-1", "111111111111").is_err());
    assert!(ImageIdentifier::parse("arn:aws:s3:::bucket", "us-east-1", "000000000000").is_err());
}

proptest! {
    #[test]
    fn parsing_never_panics_and_round_trips(text in ".{0,80}") {
        if let Ok(id) = text.parse::<MicrovmId>() { prop_assert_eq!(id.to_string(), text.clone()); let _ = id.uuid(); }
        if let Ok(version) = text.parse::<VersionNumber>() { prop_assert_eq!(version.to_string(), text.clone()); }
        if let Ok(arn) = text.parse::<ImageArn>() { prop_assert_eq!(arn.to_string(), text); }
    }
}
