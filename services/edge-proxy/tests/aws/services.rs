//! The services behind the edge: their refusals, their absence, their replicas.

use std::time::Duration;

use api::errors::{self, reason};
use api::image::v1::{CreateImageResponse, GetImageResponse};
use api::microvm::v1::{GetMicrovmResponse, RunMicrovmResponse};
use rpc::Role;
use serde_json::{Value, json};
use testkit::Script;
use testkit::certificates::identity;
use tonic::{Code, Status};

use crate::samples::{self, MICROVM};
use crate::world::{World, image, without_routes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_come_in_aws_form() {
    let world = World::start().await;
    let microvm = format!("/2025-09-09/microvms/{MICROVM}");
    let absent = errors::not_found("MicroVM", MICROVM);
    let absent: Result<GetMicrovmResponse, Status> = Err(absent);
    world.scheduler.answer("GetMicrovm", absent);
    let answer = world.ask("GET", &microvm, "").await;
    assert_eq!((answer.status, answer.class()), (404, "ResourceNotFoundException"));
    let expected = json!({
        "message": format!("MicroVM not found: {MICROVM}"), "resourceId": null, "resourceType": null,
    });
    assert_eq!(answer.json(), expected);
    assert!(answer.json().get("__type").is_none());

    let quota = "The base maximum allocated memory limit has been reached for this account.";
    let full = errors::status(Code::ResourceExhausted, reason::QUOTA_EXCEEDED, quota, &[("quota", "memory")]);
    let full: Result<RunMicrovmResponse, Status> = Err(full);
    world.scheduler.answer("RunMicrovm", full);
    let body = json!({"imageIdentifier": image("app")}).to_string();
    let answer = world.ask("POST", "/2025-09-09/microvms", &body).await;
    assert_eq!((answer.status, answer.class()), (402, "ServiceQuotaExceededException"));
    let expected = json!({
        "message": quota, "quotaCode": null, "serviceCode": null, "resourceId": null, "resourceType": null,
    });
    assert_eq!(answer.json(), expected);

    let sentence = "A MicroVM image with the name 'app' already exists in this account";
    let taken = errors::status(Code::AlreadyExists, reason::ALREADY_EXISTS, sentence, &[("resource", "app")]);
    let taken: Result<CreateImageResponse, Status> = Err(taken);
    world.image_builder.answer("CreateImage", taken);
    let body = json!({
        "name": "app", "baseImageArn": "debian-12", "codeArtifact": {"uri": "s3://b/k"},
        "buildRoleArn": "arn:aws:iam::000000000000:role/build",
    });
    let answer = world.ask("POST", "/2025-09-09/microvm-images", &body.to_string()).await;
    assert_eq!((answer.status, answer.class()), (400, "ValidationException"));
    assert_eq!(answer.json(), json!({"message": sentence}));

    let gone = errors::not_found("Network connector", "nc-1");
    let gone: Result<GetMicrovmResponse, Status> = Err(gone);
    world.scheduler.answer("GetNetworkConnector", gone);
    let answer = world.ask("GET", "/2026-04-04/network-connectors/nc-1", "").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["Message"], "Network connector not found: nc-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_content_is_the_fleets_fault_not_the_callers() {
    let world = World::start().await;
    world.image_builder.answer("GetImage", Ok(GetImageResponse::default()));
    let target = format!("/2025-09-09/microvm-images/{}", image("app"));
    let answer = world.ask("GET", &target, "").await;
    assert_eq!((answer.status, answer.class()), (500, "InternalServerException"));
    assert!(!answer.message().contains("image"), "{}", answer.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_away_is_a_retryable_error() {
    // One that takes connections and says nothing, and one that is not there.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::with(|config| {
        config.image_builders = vec![silent.local_addr().unwrap().to_string()];
        config.schedulers = vec!["127.0.0.1:1".into()];
        config.aws.limits.call_ms = 500;
    })
    .await;
    for target in
        [format!("/2025-09-09/microvm-images/{}", image("app")), format!("/2025-09-09/microvms/{MICROVM}")]
    {
        let answer = world.ask("GET", &target, "").await;
        assert_eq!((answer.status, answer.class()), (500, "InternalServerException"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_that_leads_is_found() {
    let mut second = None;
    let world = {
        // The second replica needs the fleet's certificates, which the world makes.
        let slot = &mut second;
        World::with(|config| {
            let path = config.tls.ca.parent().unwrap().to_owned();
            let identity = identity(&path, Role::Scheduler);
            let script = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(Script::start(&identity, &[Role::EdgeProxy]))
            });
            without_routes(&script);
            config.schedulers.push(script.address.to_string());
            *slot = Some(script);
        })
        .await
    };
    let second = second.unwrap();
    let follower = || {
        errors::unavailable(reason::NOT_LEADER, "This scheduler does not lead.", Duration::from_millis(200))
    };
    let found = || GetMicrovmResponse { microvm: Some(samples::microvm()) };
    let refused: Result<GetMicrovmResponse, Status> = Err(follower());
    world.scheduler.answer("GetMicrovm", refused.clone());
    second.answer("GetMicrovm", Ok(found()));
    let target = format!("/2025-09-09/microvms/{MICROVM}");
    let ask = async || world.ask("GET", &target, "").await;
    assert_eq!(ask().await.status, 200);
    assert_eq!((world.scheduler.take().len(), second.take().len()), (1, 1));
    // It is remembered.
    assert_eq!(ask().await.status, 200);
    assert_eq!((world.scheduler.take().len(), second.take().len()), (0, 1));
    // When nobody leads, the client tries again.
    second.answer("GetMicrovm", refused);
    let answer = ask().await;
    assert_eq!((answer.status, answer.header("retry-after")), (500, Some("1")));
    assert_eq!(answer.json().get("message").and_then(Value::as_str).map(str::is_empty), Some(false));
}
