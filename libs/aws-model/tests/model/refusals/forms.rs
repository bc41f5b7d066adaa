//! Bodies that cannot be read, and values that must not come back.

use aws_model::{ErrorClass, Limits, Routed, parse, route};
use serde_json::json;

use super::{IMAGES, MICROVM, MICROVMS, ask, check, image, launch, refusal};

#[test]
fn sensitive_values_are_not_repeated() {
    let secret = "s3cr3t".repeat(700);
    check(
        "POST",
        MICROVMS,
        &launch(json!({"runHookPayload": secret})),
        "1 validation error detected: Value at 'runHookPayload' failed to satisfy constraint: Member must have length \
         less than or equal to 4096",
    );
    check(
        "POST",
        IMAGES,
        &image(json!({"environmentVariables": {"KEY": secret}})),
        "1 validation error detected: Value at 'environmentVariables' failed to satisfy constraint: Map value must \
         satisfy constraint: [Member must have length less than or equal to 4096, Member must have length greater than or \
         equal to 0, Member must not be null]",
    );
    let members = image(json!({"environmentVariables": {"KEY": "s3cr3t"}}));
    let input = ask("POST", IMAGES, &members.to_string()).unwrap();
    assert!(!format!("{input:?}").contains("s3cr3t"));
    assert_eq!(input.redacted()["environmentVariables"], json!({"KEY": "[redacted]"}));
    assert_eq!(input.redacted()["name"], "app");
    assert_eq!(input.members().map("environmentVariables")["KEY"], "s3cr3t");
    let input = ask("POST", MICROVMS, &launch(json!({"runHookPayload": "s3cr3t"})).to_string()).unwrap();
    assert!(!format!("{input:?}").contains("s3cr3t"));
    let broken = refusal("POST", MICROVMS, r#"{"runHookPayload": "s3cr3t", "imageIdentifier": s3cr3t}"#);
    assert!(!broken.1.contains("s3cr3t"));
}

#[test]
fn the_run_hook_payload_is_measured_in_bytes() {
    let most = launch(json!({"runHookPayload": "é".repeat(2048)}));
    assert!(ask("POST", MICROVMS, &most.to_string()).is_ok());
    let more = launch(json!({"runHookPayload": "é".repeat(2049)}));
    assert!(ask("POST", MICROVMS, &more.to_string()).is_err());
    let name = image(json!({"clientToken": "é".repeat(128)}));
    assert!(ask("POST", IMAGES, &name.to_string()).is_ok(), "other lengths are in characters");
}

#[test]
fn bodies_that_are_not_of_the_form() {
    let deep = format!("{}1{}", r#"{"x":"#.repeat(32), "}".repeat(32));
    assert!(ask("POST", MICROVMS, &deep.replacen(r#"{"x":"#, r#"{"imageIdentifier":"a","x":"#, 1)).is_ok());
    let too_deep = format!("{}1{}", r#"{"x":"#.repeat(33), "}".repeat(33));
    for (body, expected) in [
        (too_deep.as_str(), "The request body is nested deeper than 32 levels"),
        (&"[".repeat(100_000), "Start of list found where not expected"),
        (&format!(r#"{{"x":{}"#, "[".repeat(100_000)), "The request body is nested deeper than 32 levels"),
        (r#"{"imageIdentifier":"a","imageIdentifier":"b"}"#, "Duplicate key in the request body"),
        (r#"{"imageIdentifier":"a","imageIdentifier":null}"#, "Duplicate key in the request body"),
        (r#"{"x":{"y":1,"y":2}}"#, "Duplicate key in the request body"),
        (
            r#"{"imageIdentifier""#,
            "Could not parse request body into json: Unexpected end-of-input at line 1, column 18",
        ),
        ("{'a':1}", "Could not parse request body into json: Unexpected character at line 1, column 2"),
        ("{} {}", "Could not parse request body into json: Unexpected character at line 1, column 4"),
        (
            r#"{"imageIdentifier":"\ud800"}"#,
            "Could not parse request body into json: Unexpected character at line 1, column 27",
        ),
        (r#"{"imageIdentifier":1}"#, "NUMBER_VALUE cannot be converted to String"),
        (r#"{"imageIdentifier":true}"#, "TRUE_VALUE cannot be converted to String"),
        (r#"{"imageIdentifier":{}}"#, "Start of structure or map found where not expected."),
        (r#"{"imageIdentifier":[]}"#, "Start of list found where not expected"),
        (r#"{"maximumDurationInSeconds":"1"}"#, "STRING_VALUE cannot be converted to Integer"),
        (r#"{"maximumDurationInSeconds":1.5}"#, "DECIMAL_VALUE cannot be converted to Integer"),
        (r#"{"maximumDurationInSeconds":2147483648}"#, "NUMBER_VALUE is out of the range of Integer"),
        (
            r#"{"maximumDurationInSeconds":99999999999999999999999}"#,
            "NUMBER_VALUE is out of the range of Integer",
        ),
        (r#"{"ingressNetworkConnectors":"a"}"#, "Expected list or null"),
        (r#"{"idlePolicy":3}"#, "Expected null"),
        (r#"{"idlePolicy":{"autoResumeEnabled":"yes"}}"#, "STRING_VALUE cannot be converted to Boolean"),
        ("7", "Expected null"),
    ] {
        let (class, message) = refusal("POST", MICROVMS, body);
        let shown: String = body.chars().take(60).collect();
        assert_eq!((class, message.as_str()), (ErrorClass::Serialization, expected), "{shown}");
    }
    let Routed::Operation(operation, parameters) = route("POST", MICROVMS) else { panic!("leads nowhere") };
    let invalid = b"{\"imageIdentifier\":\"\xff\"}";
    let rejection = parse(operation, &parameters, "", invalid, &Limits::default()).unwrap_err();
    assert_eq!(rejection.class, ErrorClass::Serialization);
    let long = vec![b' '; (1 << 20) + 1];
    let rejection = parse(operation, &parameters, "", &long, &Limits::default()).unwrap_err();
    assert_eq!(rejection.class.status(), 413);
    assert_eq!(rejection.message.as_deref(), Some("The request body must be at most 1048576 bytes"));
}

#[test]
fn a_body_cannot_set_what_the_path_says() {
    let body = json!({"microvmIdentifier": "microvm-2", "expirationInMinutes": 5});
    let input = ask("POST", &format!("{MICROVM}/shell-auth-token"), &body.to_string()).unwrap();
    assert_eq!(input.members().text("microvmIdentifier"), Some(&MICROVM[MICROVMS.len() + 1..]));
    assert_eq!(input.members().integer("expirationInMinutes"), Some(5));
    let input = ask("POST", &format!("{MICROVM}/suspend"), r#"{"microvmIdentifier":{"a":[1]}}"#).unwrap();
    assert_eq!(input.members().iter().count(), 1);
    assert!(
        ask("POST", &format!("{MICROVM}/suspend"), "{").is_err(),
        "a body is JSON also where none is wanted"
    );
}
