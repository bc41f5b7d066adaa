//! The exact words for what is wrong with a request.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use aws_model::{ErrorClass, Input, Limits, Rejection, Routed, parse, route};
use serde_json::{Value, json};

const IMAGES: &str = "/2025-09-09/microvm-images";
const IMAGE: &str = "/2025-09-09/microvm-images/arn:aws:lambda:us-east-1:000000000000:microvm-image:app";
const MICROVMS: &str = "/2025-09-09/microvms";
const MICROVM: &str = "/2025-09-09/microvms/microvm-0190a5e2-7c3b-3f00-8000-000000000001";
const CONNECTORS: &str = "/2026-04-04/network-connectors";

fn ask(method: &str, path_and_query: &str, body: &str) -> Result<Input, Rejection> {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let Routed::Operation(operation, parameters) = route(method, path) else {
        panic!("{method} {path} leads nowhere")
    };
    parse(operation, &parameters, query, body.as_bytes(), &Limits::default())
}

/// Class and message of a refusal.
fn refusal(method: &str, path: &str, body: &str) -> (ErrorClass, String) {
    let rejection = ask(method, path, body).expect_err("the request is wrong");
    (rejection.class, rejection.message.expect("there is a message"))
}

fn check(method: &str, path: &str, body: &Value, expected: &str) {
    let (class, message) = refusal(method, path, &body.to_string());
    assert_eq!(message, expected, "{method} {path} {body}");
    assert_eq!(class, ErrorClass::Validation, "{method} {path} {body}");
}

fn image(more: Value) -> Value {
    with(
        json!({
            "name": "app",
            "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
            "buildRoleArn": "arn:aws:iam::000000000000:role/build",
            "codeArtifact": {"uri": "s3://bucket/app.zip"},
        }),
        more,
    )
}

fn launch(more: Value) -> Value {
    with(
        json!({"imageIdentifier": "arn:aws:lambda:us-east-1:000000000000:microvm-image:app"}),
        more,
    )
}

fn connector(vpc: Value) -> Value {
    let vpc = with(
        json!({
            "SubnetIds": ["subnet-1"],
            "NetworkProtocol": "IPv4",
            "AssociatedComputeResourceTypes": ["MicroVm"],
        }),
        vpc,
    );
    json!({
        "Name": "office",
        "Configuration": {"VpcEgressConfiguration": vpc},
        "OperatorRole": "arn:aws:iam::000000000000:role/operator",
        "ClientToken": "token",
    })
}

/// Overwrites members; null takes one away.
fn with(mut value: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("members are an object")
    };
    let members = value.as_object_mut().expect("members are an object");
    for (name, value) in more {
        match value {
            Value::Null => drop(members.remove(&name)),
            value => drop(members.insert(name, value)),
        }
    }
    value
}

#[test]
fn a_pattern_is_quoted_with_the_value() {
    check(
        "POST",
        IMAGES,
        &image(json!({"name": "bad name!"})),
        "1 validation error detected: Value 'bad name!' at 'name' failed to satisfy constraint: Member must satisfy \
         regular expression pattern: [a-zA-Z0-9-_]+",
    );
}

#[test]
fn every_violation_is_in_one_message() {
    check(
        "POST",
        IMAGES,
        &json!({"name": "app"}),
        "3 validation errors detected: Value null at 'baseImageArn' failed to satisfy constraint: Member must not be \
         null; Value null at 'buildRoleArn' failed to satisfy constraint: Member must not be null; Value null at \
         'codeArtifact' failed to satisfy constraint: Member must not be null",
    );
    check(
        "POST",
        IMAGES,
        &image(json!({"name": ""})),
        "2 validation errors detected: Value '' at 'name' failed to satisfy constraint: Member must have length greater \
         than or equal to 1; Value '' at 'name' failed to satisfy constraint: Member must satisfy regular expression \
         pattern: [a-zA-Z0-9-_]+",
    );
    check(
        "POST",
        MICROVMS,
        &launch(json!({"idlePolicy": {"maxIdleDurationSeconds": 59}, "maximumDurationInSeconds": 28801})),
        "4 validation errors detected: Value '59' at 'idlePolicy.maxIdleDurationSeconds' failed to satisfy constraint: \
         Member must have value greater than or equal to 60; Value null at 'idlePolicy.suspendedDurationSeconds' failed \
         to satisfy constraint: Member must not be null; Value null at 'idlePolicy.autoResumeEnabled' failed to satisfy \
         constraint: Member must not be null; Value '28801' at 'maximumDurationInSeconds' failed to satisfy constraint: \
         Member must have value less than or equal to 28800",
    );
}

#[test]
fn an_empty_body_misses_every_required_member() {
    check("PUT", IMAGE, &json!({}), &refusal("PUT", IMAGE, "").1);
    check(
        "POST",
        MICROVMS,
        &json!({"imageIdentifier": null}),
        "1 validation error detected: Value null at 'imageIdentifier' failed to satisfy constraint: Member must not be null",
    );
}

#[test]
fn bounds_of_the_hooks() {
    for (hooks, path, bound) in [
        (
            json!({"microvmHooks": {"runTimeoutInSeconds": 61}}),
            "'61' at 'hooks.microvmHooks.runTimeoutInSeconds'",
            "less than or equal to 60",
        ),
        (
            json!({"microvmHooks": {"suspendTimeoutInSeconds": 0}}),
            "'0' at 'hooks.microvmHooks.suspendTimeoutInSeconds'",
            "greater than or equal to 1",
        ),
        (
            json!({"microvmImageHooks": {"readyTimeoutInSeconds": 3601}}),
            "'3601' at 'hooks.microvmImageHooks.readyTimeoutInSeconds'",
            "less than or equal to 3600",
        ),
        (
            json!({"port": 65536}),
            "'65536' at 'hooks.port'",
            "less than or equal to 65535",
        ),
    ] {
        let expected = format!(
            "1 validation error detected: Value {path} failed to satisfy constraint: Member must have value {bound}"
        );
        check("POST", IMAGES, &image(json!({"hooks": hooks})), &expected);
    }
    let longest = json!({"hooks": {"port": 9000, "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 3600}}});
    assert!(ask("POST", IMAGES, &image(longest).to_string()).is_ok());
}

#[test]
fn lists_maps_and_elements() {
    let arn = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS";
    check(
        "POST",
        IMAGES,
        &image(json!({"egressNetworkConnectors": [arn, arn]})),
        &format!(
            "1 validation error detected: Value '[{arn}, {arn}]' at 'egressNetworkConnectors' failed to satisfy \
             constraint: Member must have length less than or equal to 1"
        ),
    );
    check(
        "POST",
        IMAGES,
        &image(json!({"additionalOsCapabilities": ["ALL", "SOME"]})),
        "1 validation error detected: Value '[ALL, SOME]' at 'additionalOsCapabilities' failed to satisfy constraint: \
         Member must satisfy constraint: [Member must satisfy enum value set: [ALL], Member must not be null]",
    );
    check(
        "POST",
        IMAGES,
        &image(json!({"cpuConfigurations": [{"architecture": "X86_64"}, {"architecture": "RISC_V"}]})),
        "1 validation error detected: Value 'RISC_V' at 'cpuConfigurations.2.member.architecture' failed to satisfy \
         constraint: Member must satisfy enum value set: [ARM_64, X86_64]",
    );
    check(
        "POST",
        IMAGES,
        &image(json!({"tags": {"key!": "v"}})),
        "1 validation error detected: Value '{key!=v}' at 'tags' failed to satisfy constraint: Map keys must satisfy \
         constraint: [Member must have length less than or equal to 128, Member must have length greater than or equal to \
         1, Member must satisfy regular expression pattern: ([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*), Member must not be null]",
    );
    check(
        "POST",
        "/2017-03-31/tags/arn:aws:lambda:us-east-1:000000000000:microvm-image:app",
        &json!({"Tags": {"k": "v!", "größe": "1"}}),
        "1 validation error detected: Value '{größe=1, k=v!}' at 'tags' failed to satisfy constraint: Map value must \
         satisfy constraint: [Member must have length less than or equal to 256, Member must have length greater than or \
         equal to 0, Member must satisfy regular expression pattern: ([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*), Member must not \
         be null]",
    );
}

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
    assert_eq!(
        input.redacted()["environmentVariables"],
        json!({"KEY": "[redacted]"})
    );
    assert_eq!(input.redacted()["name"], "app");
    assert_eq!(input.object("environmentVariables").unwrap()["KEY"], "s3cr3t");
    let input = ask(
        "POST",
        MICROVMS,
        &launch(json!({"runHookPayload": "s3cr3t"})).to_string(),
    )
    .unwrap();
    assert!(!format!("{input:?}").contains("s3cr3t"));
    let broken = refusal(
        "POST",
        MICROVMS,
        r#"{"runHookPayload": "s3cr3t", "imageIdentifier": s3cr3t}"#,
    );
    assert!(!broken.1.contains("s3cr3t"));
}

#[test]
fn the_run_hook_payload_is_measured_in_bytes() {
    let most = launch(json!({"runHookPayload": "é".repeat(2048)}));
    assert!(ask("POST", MICROVMS, &most.to_string()).is_ok());
    let more = launch(json!({"runHookPayload": "é".repeat(2049)}));
    assert!(ask("POST", MICROVMS, &more.to_string()).is_err());
    let name = image(json!({"clientToken": "é".repeat(128)}));
    assert!(
        ask("POST", IMAGES, &name.to_string()).is_ok(),
        "other lengths are in characters"
    );
}

#[test]
fn the_query_is_held_to_its_bounds() {
    for (query, expected) in [
        (
            "maxResults=51",
            "Value '51' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 50",
        ),
        (
            "maxResults=0",
            "Value '0' at 'maxResults' failed to satisfy constraint: Member must have value greater than or equal to 1",
        ),
        (
            "nameFilter=a%20b",
            "Value 'a b' at 'nameFilter' failed to satisfy constraint: Member must satisfy regular expression pattern: [^\\s]+",
        ),
    ] {
        let path = format!("{IMAGES}?{query}");
        assert_eq!(
            refusal("GET", &path, "").1,
            format!("1 validation error detected: {expected}")
        );
    }
    let padded = ask("GET", &format!("{IMAGES}?nextToken=abc="), "").unwrap_err();
    assert_eq!((padded.class.status(), padded.message), (400, None));
    assert!(
        ask(
            "GET",
            &format!("{IMAGES}?nextToken=abc%3D&maxResults=50&other=1&flag"),
            ""
        )
        .is_ok()
    );
    for wrong in [
        "maxResults=one",
        "maxResults=1&maxResults=2",
        "nameFilter=%zz",
        "nameFilter=%ff",
        "maxResults=+1x",
    ] {
        let (class, _) = refusal("GET", &format!("{IMAGES}?{wrong}"), "");
        assert_eq!(class, ErrorClass::Serialization, "{wrong}");
    }
    let flood = "a=1&".repeat(201);
    assert_eq!(
        refusal("GET", &format!("{IMAGES}?{flood}"), "").0,
        ErrorClass::Serialization
    );
}

#[test]
fn tag_keys_repeat() {
    let path = "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3Aapp";
    let input = ask("DELETE", &format!("{path}?tagKeys=a&tagKeys=b%2Bc"), "").unwrap();
    assert_eq!(input.list("TagKeys").unwrap(), [json!("a"), json!("b+c")]);
    assert_eq!(
        input.text("Resource"),
        Some("arn:aws:lambda:us-east-1:000000000000:microvm-image:app")
    );
    let (class, message) = refusal("DELETE", path, "");
    assert_eq!(class, ErrorClass::Validation);
    let expected = "1 validation error detected: Value null at 'tagKeys' failed to satisfy constraint: Member must not be null";
    assert_eq!(message, expected);
}

#[test]
fn microvms_cannot_be_tagged() {
    let path = "/2017-03-31/tags/arn:aws:lambda:us-east-1:000000000000:microvm:microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    let (class, message) = refusal("GET", path, "");
    assert_eq!(class, ErrorClass::Validation);
    let start = "1 validation error detected: Value 'arn:aws:lambda:us-east-1:000000000000:microvm:microvm-0190a5e2-7c3b-3f00-\
                 8000-000000000001' at 'resource' failed to satisfy constraint: Member must satisfy regular expression \
                 pattern: arn:(aws[a-zA-Z-]*):lambda:";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn ports_are_a_union() {
    let path = format!("{MICROVM}/auth-token");
    let token = |ports: Value| json!({"expirationInMinutes": 60, "allowedPorts": ports});
    let all = json!([{"allPorts": {}}, {"port": 8080}, {"range": {"startPort": 1, "endPort": 65535}}, {"port": 1, "range": null}]);
    assert!(ask("POST", &path, &token(all).to_string()).is_ok());
    let (class, message) = refusal("POST", &path, &token(json!([{"allPorts": true}])).to_string());
    assert_eq!(
        (class, message.as_str()),
        (ErrorClass::Serialization, "Expected null")
    );
    let none = "failed to satisfy constraint: Member must have exactly one of the following members set: [port, range, allPorts]";
    check(
        "POST",
        &path,
        &token(json!([{}])),
        &format!("1 validation error detected: Value at 'allowedPorts.1.member' {none}"),
    );
    check(
        "POST",
        &path,
        &token(json!([{"port": 1}, {"port": 1, "allPorts": {}}])),
        &format!("1 validation error detected: Value at 'allowedPorts.2.member' {none}"),
    );
    check(
        "POST",
        &path,
        &token(json!([])),
        "1 validation error detected: Value '[]' at 'allowedPorts' failed to satisfy constraint: Member must have length \
         greater than or equal to 1",
    );
    check(
        "POST",
        &path,
        &token(json!([{"range": {"startPort": 0}}])),
        "2 validation errors detected: Value '0' at 'allowedPorts.1.member.range.startPort' failed to satisfy constraint: \
         Member must have value greater than or equal to 1; Value null at 'allowedPorts.1.member.range.endPort' failed to \
         satisfy constraint: Member must not be null",
    );
    for minutes in [0, 61] {
        let body = json!({"expirationInMinutes": minutes, "allowedPorts": [{"allPorts": {}}]});
        assert_eq!(
            refusal("POST", &path, &body.to_string()).0,
            ErrorClass::Validation
        );
    }
}

#[test]
fn connectors_are_asked_for_in_sentences_after_the_constraints() {
    let many: Vec<String> = (1..=17).map(|number| format!("subnet-{number}")).collect();
    let incomplete = json!({
        "Name": "office",
        "Configuration": {"VpcEgressConfiguration": {"SubnetIds": many}},
    });
    check(
        "POST",
        CONNECTORS,
        &incomplete,
        &format!(
            "1 validation error detected: Value '[{}]' at 'configuration.vpcEgressConfiguration.subnetIds' failed to \
             satisfy constraint: Member must have length less than or equal to 16",
            many.join(", ")
        ),
    );
    let vpc = |name: &str| {
        let mut body = connector(json!({}));
        body["Configuration"]["VpcEgressConfiguration"]
            .as_object_mut()
            .unwrap()
            .remove(name);
        body
    };
    for (body, sentence) in [
        (
            with(connector(json!({})), json!({"ClientToken": null})),
            "ClientToken is a required field",
        ),
        (
            with(connector(json!({})), json!({"OperatorRole": null})),
            "OperatorRole is required for VPC_EGRESS connector type",
        ),
        (
            vpc("NetworkProtocol"),
            "NetworkProtocol is required for VPC_EGRESS connector type",
        ),
        (
            vpc("AssociatedComputeResourceTypes"),
            "AssociatedComputeResourceTypes is required for VPC_EGRESS connector type",
        ),
    ] {
        let (class, message) = refusal("POST", CONNECTORS, &body.to_string());
        assert_eq!(
            (class, message.as_str()),
            (ErrorClass::InvalidParameterValue, sentence)
        );
    }
    assert!(
        ask(
            "POST",
            CONNECTORS,
            &connector(json!({"SecurityGroupIds": []})).to_string()
        )
        .is_ok()
    );
    let update = json!({"ClientToken": "t"});
    assert!(ask("PUT", &format!("{CONNECTORS}/nc-1"), &update.to_string()).is_ok());
}

#[test]
fn bodies_that_are_not_of_the_form() {
    let deep = format!("{}1{}", r#"{"x":"#.repeat(32), "}".repeat(32));
    assert!(
        ask(
            "POST",
            MICROVMS,
            &deep.replacen(r#"{"x":"#, r#"{"imageIdentifier":"a","x":"#, 1)
        )
        .is_ok()
    );
    let too_deep = format!("{}1{}", r#"{"x":"#.repeat(33), "}".repeat(33));
    for (body, expected) in [
        (
            too_deep.as_str(),
            "The request body is nested deeper than 32 levels",
        ),
        (&"[".repeat(100_000), "Start of list found where not expected"),
        (
            &format!(r#"{{"x":{}"#, "[".repeat(100_000)),
            "The request body is nested deeper than 32 levels",
        ),
        (
            r#"{"imageIdentifier":"a","imageIdentifier":"b"}"#,
            "Duplicate key in the request body",
        ),
        (
            r#"{"imageIdentifier":"a","imageIdentifier":null}"#,
            "Duplicate key in the request body",
        ),
        (r#"{"x":{"y":1,"y":2}}"#, "Duplicate key in the request body"),
        (
            r#"{"imageIdentifier""#,
            "Could not parse request body into json: Unexpected end-of-input at line 1, column 18",
        ),
        (
            "{'a':1}",
            "Could not parse request body into json: Unexpected character at line 1, column 2",
        ),
        (
            "{} {}",
            "Could not parse request body into json: Unexpected character at line 1, column 4",
        ),
        (
            r#"{"imageIdentifier":"\ud800"}"#,
            "Could not parse request body into json: Unexpected character at line 1, column 27",
        ),
        (
            r#"{"imageIdentifier":1}"#,
            "NUMBER_VALUE cannot be converted to String",
        ),
        (
            r#"{"imageIdentifier":true}"#,
            "TRUE_VALUE cannot be converted to String",
        ),
        (
            r#"{"imageIdentifier":{}}"#,
            "Start of structure or map found where not expected.",
        ),
        (
            r#"{"imageIdentifier":[]}"#,
            "Start of list found where not expected",
        ),
        (
            r#"{"maximumDurationInSeconds":"1"}"#,
            "STRING_VALUE cannot be converted to Integer",
        ),
        (
            r#"{"maximumDurationInSeconds":1.5}"#,
            "DECIMAL_VALUE cannot be converted to Integer",
        ),
        (
            r#"{"maximumDurationInSeconds":2147483648}"#,
            "NUMBER_VALUE is out of the range of Integer",
        ),
        (
            r#"{"maximumDurationInSeconds":99999999999999999999999}"#,
            "NUMBER_VALUE is out of the range of Integer",
        ),
        (r#"{"ingressNetworkConnectors":"a"}"#, "Expected list or null"),
        (r#"{"idlePolicy":3}"#, "Expected null"),
        (
            r#"{"idlePolicy":{"autoResumeEnabled":"yes"}}"#,
            "STRING_VALUE cannot be converted to Boolean",
        ),
        ("7", "Expected null"),
    ] {
        let (class, message) = refusal("POST", MICROVMS, body);
        let shown: String = body.chars().take(60).collect();
        assert_eq!(
            (class, message.as_str()),
            (ErrorClass::Serialization, expected),
            "{shown}"
        );
    }
    let Routed::Operation(operation, parameters) = route("POST", MICROVMS) else {
        panic!("leads nowhere")
    };
    let invalid = b"{\"imageIdentifier\":\"\xff\"}";
    let rejection = parse(operation, &parameters, "", invalid, &Limits::default()).unwrap_err();
    assert_eq!(rejection.class, ErrorClass::Serialization);
    let long = vec![b' '; (1 << 20) + 1];
    let rejection = parse(operation, &parameters, "", &long, &Limits::default()).unwrap_err();
    assert_eq!(rejection.class.status(), 413);
    assert_eq!(
        rejection.message.as_deref(),
        Some("The request body must be at most 1048576 bytes")
    );
}

#[test]
fn a_body_cannot_set_what_the_path_says() {
    let body = json!({"microvmIdentifier": "microvm-2", "expirationInMinutes": 5});
    let input = ask("POST", &format!("{MICROVM}/shell-auth-token"), &body.to_string()).unwrap();
    assert_eq!(
        input.text("microvmIdentifier"),
        Some(&MICROVM[MICROVMS.len() + 1..])
    );
    assert_eq!(input.integer("expirationInMinutes"), Some(5));
    let input = ask(
        "POST",
        &format!("{MICROVM}/suspend"),
        r#"{"microvmIdentifier":{"a":[1]}}"#,
    )
    .unwrap();
    assert_eq!(input.members().len(), 1);
    assert!(
        ask("POST", &format!("{MICROVM}/suspend"), "{").is_err(),
        "a body is JSON also where none is wanted"
    );
}

#[test]
fn a_message_stays_small() {
    let ports = vec![json!({"port": 0}); 5000];
    let body = json!({"expirationInMinutes": 5, "allowedPorts": ports});
    let (_, message) = refusal("POST", &format!("{MICROVM}/auth-token"), &body.to_string());
    assert!(message.starts_with("5000 validation errors detected: "));
    assert_eq!(message.matches("failed to satisfy").count(), 100);
    let (_, message) = refusal(
        "POST",
        IMAGES,
        &image(json!({"name": "!".repeat(500_000)})).to_string(),
    );
    assert!(message.len() < 40_000, "{}", message.len());
}
