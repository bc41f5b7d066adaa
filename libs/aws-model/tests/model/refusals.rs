//! The exact words for what is wrong with a request: `constraints` by kind of constraint, `operations` by what is asked for,
//! `forms` for bodies that cannot be read and values that must not come back.

mod constraints;
mod forms;
mod operations;

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
    with(json!({"imageIdentifier": "arn:aws:lambda:us-east-1:000000000000:microvm-image:app"}), more)
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
    let Value::Object(more) = more else { panic!("members are an object") };
    let members = value.as_object_mut().expect("members are an object");
    for (name, value) in more {
        match value {
            Value::Null => drop(members.remove(&name)),
            value => drop(members.insert(name, value)),
        }
    }
    value
}
