//! What keys may do, how fast, and whose resources they may name.

use api::access::v1::{Effect, Policy, Statement};
use api::connector::v1::GetNetworkConnectorResponse;
use api::errors::{self, reason};
use api::image::v1::{GetImageResponse, ListImagesResponse};
use api::microvm::v1::{RunMicrovmResponse, SuspendMicrovmResponse};
use edge_proxy::config::Throttles;
use tonic::Code;

use crate::client::{Answer, Signer};
use crate::samples;
use crate::world::{ACCOUNT, World, image, unlimited};

const TEAM: (&str, &str) = ("AKIATEAM000000000000", "team-secret");

/// The team's key: everything about its images but deleting them, with the role and the connectors of its launches.
async fn add_team_key(world: &World) {
    let statement = |effect: Effect, action: &str, resource: &str| Statement {
        effect: effect.into(),
        actions: vec![action.to_owned()],
        resources: vec![resource.to_owned()],
    };
    let statements = vec![
        statement(Effect::Allow, "lambda:*Microvm*", "arn:aws:lambda:*:*:microvm-image:team-*"),
        statement(Effect::Allow, "iam:PassRole", "arn:aws:iam::*:role/app"),
        statement(Effect::Allow, "lambda:PassNetworkConnector", "*:aws-network-connector:*"),
        statement(Effect::Deny, "lambda:Delete*", "*"),
    ];
    world
        .add_key(TEAM, |key| {
            key.description = "team".to_owned();
            key.policy = Some(Policy { statements });
        })
        .await;
}

async fn ask(world: &World, method: &str, target: &str, body: &str) -> Answer {
    let request = Signer::new(TEAM.0, TEAM.1).request(method, target, body.to_owned());
    world.connection().send(request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_per_action_and_resource() {
    let world = World::start().await;
    add_team_key(&world).await;
    let found = GetImageResponse { image: Some(samples::image()) };
    world.image_builder.answer("GetImage", Ok(found));
    let ran = RunMicrovmResponse { microvm: Some(samples::microvm()) };
    world.scheduler.answer("RunMicrovm", Ok(ran));
    // A connector is looked up for its other names; it need not exist.
    let absent: Result<GetNetworkConnectorResponse, _> = Err(errors::not_found("network connector", "nc-1"));
    world.scheduler.answer("GetNetworkConnector", absent);
    let (own, other) = (image("team-a"), image("other"));
    let path = |arn: &str| format!("/2025-09-09/microvm-images/{arn}");
    let run = |arn: &str, more: &str| format!(r#"{{"imageIdentifier": "{arn}"{more}}}"#);
    let role = |name: &str| format!(r#", "executionRoleArn": "arn:aws:iam::{ACCOUNT}:role/{name}""#);
    let connector = format!("arn:aws:lambda:us-east-1:{ACCOUNT}:network-connector:nc-1");
    let egress = format!(r#", "egressNetworkConnectors": ["{connector}"]"#);
    let microvms = "/2025-09-09/microvms";
    let denied_role = format!("iam:PassRole on resource: arn:aws:iam::{ACCOUNT}:role/admin");
    for (method, target, body, denied) in [
        ("GET", path(&own), String::new(), None),
        ("GET", path(&other), String::new(), Some(format!("lambda:GetMicrovmImage on resource: {other}"))),
        ("DELETE", path(&own), String::new(), Some(format!("lambda:DeleteMicrovmImage on resource: {own}"))),
        (
            "GET",
            "/2025-09-09/microvm-images".to_owned(),
            String::new(),
            Some("lambda:ListMicrovmImages on resource: *".to_owned()),
        ),
        ("POST", microvms.to_owned(), run(&own, ""), None),
        ("POST", microvms.to_owned(), run(&own, &role("app")), None),
        ("POST", microvms.to_owned(), run(&own, &role("admin")), Some(denied_role)),
        (
            "POST",
            microvms.to_owned(),
            run(&own, &egress),
            Some(format!("lambda:PassNetworkConnector on resource: {connector}")),
        ),
        (
            "POST",
            microvms.to_owned(),
            run(&other, ""),
            Some(format!("lambda:RunMicrovm on resource: {other}")),
        ),
        // Permission comes before constraints.
        (
            "POST",
            microvms.to_owned(),
            run(&other, r#", "maximumDurationInSeconds": 0"#),
            Some(format!("lambda:RunMicrovm on resource: {other}")),
        ),
    ] {
        let answer = ask(&world, method, &target, &body).await;
        let Some(denied) = denied else {
            assert_eq!(answer.status, 200, "{method} {target} {body}: {}", answer.message());
            continue;
        };
        assert_eq!((answer.status, answer.class()), (403, "AccessDeniedException"), "{target}");
        let sentence =
            format!("User: arn:aws:iam::{ACCOUNT}:user/team is not authorized to perform: {denied}");
        assert_eq!(answer.json()["Message"], sentence);
        assert!(answer.json().get("message").is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_resources_are_denied_and_bare_names_are_not_understood() {
    let world = World::start().await;
    let foreign = "arn:aws:lambda:us-east-1:111111111111:microvm-image:app";
    let slash = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%2Fapp";
    let images = "/2025-09-09/microvm-images";
    let malformed = "Malformed ARN - doesn't start with 'arn:'";
    for (method, target, body, status, message) in [
        ("GET", format!("{images}/{foreign}"), "", 403, "is not authorized to perform"),
        ("GET", format!("{images}/{slash}"), "", 403, "is not authorized to perform"),
        ("GET", format!("{images}/my-image"), "", 400, "Invalid ARN format: my-image"),
        ("POST", "/2025-09-09/microvms".to_owned(), r#"{"imageIdentifier": "my-image"}"#, 400, malformed),
        ("GET", "/2025-09-09/microvms?imageIdentifier=my-image".to_owned(), "", 400, malformed),
        ("GET", format!("/2017-03-31/tags/{foreign}"), "", 403, "is not authorized to perform"),
    ] {
        let answer = world.ask(method, &target, body).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.message());
        assert!(answer.message().contains(message), "{target}: {}", answer.message());
        let class = if status == 403 { "AccessDeniedException" } else { "ValidationException" };
        assert_eq!(answer.class(), class);
    }
    // A raw slash leads nowhere; the answer is not the service's.
    let raw = format!("{images}/arn:aws:lambda:us-east-1:{ACCOUNT}:microvm-image/app");
    let answer = world.ask("GET", &raw, "").await;
    assert_eq!((answer.status, answer.header("content-type")), (404, Some("text/html")));
    assert!(world.image_builder.take().is_empty() && world.scheduler.take().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_come_too_fast_are_told_when_to_come_again() {
    let world = World::with(|config| {
        config.aws.throttles = Throttles { suspend_microvm: 2, other: 3, ..unlimited() };
    })
    .await;
    world.scheduler.answer("SuspendMicrovm", Ok(SuspendMicrovmResponse::default()));
    world.image_builder.answer("ListImages", Ok(ListImagesResponse::default()));
    let absent = errors::status(Code::NotFound, reason::NOT_FOUND, "none", &[]);
    let absent: Result<ListImagesResponse, _> = Err(absent);
    world.scheduler.answer("GetNetworkConnector", absent);
    let suspend = format!("/2025-09-09/microvms/{}/suspend", samples::MICROVM);
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(world.ask("POST", &suspend, "").await);
    }
    let passed = statuses.iter().filter(|answer| answer.status == 200).count();
    assert!((2..=3).contains(&passed), "{passed} of 5 passed");
    let refused = statuses.iter().find(|answer| answer.status != 200).unwrap();
    assert_eq!((refused.status, refused.class()), (429, "ThrottlingException"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let body = refused.json();
    assert_eq!(body["message"], "Rate exceeded");
    assert!(body["quotaCode"].is_null() && body["serviceCode"].is_null());
    // Others have tokens of their own; the older service words it differently.
    assert_eq!(world.ask("GET", "/2025-09-09/microvm-images", "").await.status, 200);
    let mut last = None;
    for _ in 0..6 {
        last = Some(world.ask("GET", "/2026-04-04/network-connectors/nc-1", "").await);
    }
    let refused = last.unwrap();
    assert_eq!((refused.status, refused.class()), (429, "TooManyRequestsException"));
    assert_eq!(refused.json()["Reason"], "CallerRateLimitExceeded");
}
