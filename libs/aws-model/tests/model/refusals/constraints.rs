//! By kind of constraint.

use serde_json::json;

use super::{IMAGE, IMAGES, MICROVM, MICROVMS, ask, check, image, launch, refusal};

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
        (json!({"port": 65536}), "'65536' at 'hooks.port'", "less than or equal to 65535"),
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
fn a_message_stays_small() {
    let ports = vec![json!({"port": 0}); 5000];
    let body = json!({"expirationInMinutes": 5, "allowedPorts": ports});
    let (_, message) = refusal("POST", &format!("{MICROVM}/auth-token"), &body.to_string());
    assert!(message.starts_with("5000 validation errors detected: "));
    assert_eq!(message.matches("failed to satisfy").count(), 100);
    let (_, message) = refusal("POST", IMAGES, &image(json!({"name": "!".repeat(500_000)})).to_string());
    assert!(message.len() < 40_000, "{}", message.len());
}
