//! By what is asked for.

use aws_model::ErrorClass;
use serde_json::{Value, json};

use super::{CONNECTORS, IMAGES, MICROVM, ask, check, connector, refusal, with};

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
        assert_eq!(refusal("GET", &path, "").1, format!("1 validation error detected: {expected}"));
    }
    let padded = ask("GET", &format!("{IMAGES}?nextToken=abc="), "").unwrap_err();
    assert_eq!((padded.class.status(), padded.message), (400, None));
    assert!(ask("GET", &format!("{IMAGES}?nextToken=abc%3D&maxResults=50&other=1&flag"), "").is_ok());
    for wrong in
        ["maxResults=one", "maxResults=1&maxResults=2", "nameFilter=%zz", "nameFilter=%ff", "maxResults=+1x"]
    {
        let (class, _) = refusal("GET", &format!("{IMAGES}?{wrong}"), "");
        assert_eq!(class, ErrorClass::Serialization, "{wrong}");
    }
    let flood = "a=1&".repeat(201);
    assert_eq!(refusal("GET", &format!("{IMAGES}?{flood}"), "").0, ErrorClass::Serialization);
}

#[test]
fn tag_keys_repeat() {
    let path = "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3Aapp";
    let input = ask("DELETE", &format!("{path}?tagKeys=a&tagKeys=b%2Bc"), "").unwrap();
    assert_eq!(input.members().strings("TagKeys"), ["a", "b+c"]);
    assert_eq!(
        input.members().text("Resource"),
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
    assert_eq!((class, message.as_str()), (ErrorClass::Serialization, "Expected null"));
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
        assert_eq!(refusal("POST", &path, &body.to_string()).0, ErrorClass::Validation);
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
        body["Configuration"]["VpcEgressConfiguration"].as_object_mut().unwrap().remove(name);
        body
    };
    for (body, sentence) in [
        (with(connector(json!({})), json!({"ClientToken": null})), "ClientToken is a required field"),
        (
            with(connector(json!({})), json!({"OperatorRole": null})),
            "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type",
        ),
        (vpc("NetworkProtocol"), "NetworkProtocol cannot be null or empty for VPC_EGRESS connector"),
        (
            vpc("AssociatedComputeResourceTypes"),
            "AssociatedComputeResourceTypes is required for VPC_EGRESS connector type",
        ),
    ] {
        let (class, message) = refusal("POST", CONNECTORS, &body.to_string());
        assert_eq!((class, message.as_str()), (ErrorClass::InvalidParameterValue, sentence));
    }
    assert!(ask("POST", CONNECTORS, &connector(json!({"SecurityGroupIds": []})).to_string()).is_ok());
    let update = json!({"ClientToken": "t"});
    assert!(ask("PUT", &format!("{CONNECTORS}/nc-1"), &update.to_string()).is_ok());
}
