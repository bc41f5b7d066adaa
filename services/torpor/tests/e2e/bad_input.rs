//! Bad input, case by case: the message says what is wrong, and nothing is left behind.

use std::collections::HashMap;
use std::time::Duration;

use api::common::v1::Resources;
use api::image::v1::*;
use api::microvm::v1::*;
use client::{AUTH_HEADER, HttpVersion};
use tonic::Code;

use crate::app::{self, DOCKERFILE, zip_of, zip_with};
use crate::world::{World, hooks};

/// A build that must fail, and what its record says.
async fn refused(fleet: &World, name: &str, zip: Vec<u8>, code: &str, says: &str) -> crate::world::Built {
    let built = fleet.build(name, zip, |_| ()).await;
    check(fleet, name, &built, code, says).await;
    built
}

async fn check(fleet: &World, name: &str, built: &crate::world::Built, code: &str, says: &str) {
    let build = &built.build;
    assert_eq!(build.state(), BuildState::Failed, "{name}: {}", built.log);
    assert_eq!(build.reason_code, code, "{name}: {}\n{}", build.state_reason, built.log);
    assert!(build.state_reason.contains(says), "{name}: '{}' lacks '{says}'", build.state_reason);
    let request = GetImageRequest { image_identifier: name.to_owned() };
    let image = fleet.context.call(request).await.unwrap().image.unwrap();
    assert_eq!(image.state(), ImageState::CreateFailed);
    assert_eq!(image.latest_failed_image_version, "1.0");
    let run = fleet.run_with(name, |_| ()).await.unwrap_err();
    assert!(run.message().starts_with("No active version found for MicroVM image"), "{}", run.message());
    nothing_left(fleet, &image).await;
    fleet.context.call(DeleteImageRequest { image_identifier: name.to_owned() }).await.unwrap();
}

/// No bake and no object of a failed build remains.
async fn nothing_left(fleet: &World, image: &Image) {
    let store = object_store::Store::connect(&fleet.context.object_store()).unwrap();
    fleet
        .until(&format!("{} to leave nothing", image.name), Duration::from_secs(20), || async {
            let mut objects = 0;
            for kind in ["images", "disks"] {
                let prefix = format!("{kind}/{}/", image.id);
                objects += store.list_prefix("torpor-snapshots", &prefix, 1000).await.ok()?.len();
            }
            (objects == 0 && bakes(fleet) == 0).then_some(())
        })
        .await;
}

fn bakes(fleet: &World) -> usize {
    ["h1", "h2"]
        .iter()
        .filter_map(|host| std::fs::read_dir(fleet.data_dir.join("hosts").join(host).join("bakes")).ok())
        .map(Iterator::count)
        .sum()
}

#[tokio::test]
async fn artifacts_that_are_no_app() {
    let fleet = World::open();
    let dockerfile = DOCKERFILE.as_bytes();
    let mut bomb = vec![0_u8; 300 << 20];
    bomb[0] = 1;
    let cases: [(&str, Vec<u8>, &str, &str); 6] = [
        ("e2e-not-a-zip", b"this is no zip".to_vec(), "ARCHIVE_INVALID", "zip"),
        ("e2e-no-dockerfile", zip_of(&[("app.py", b"x")]), "ARCHIVE_DOCKERFILE_NOT_FOUND", "Dockerfile"),
        (
            "e2e-nested",
            zip_of(&[("app/Dockerfile", dockerfile)]),
            "ARCHIVE_DOCKERFILE_NOT_FOUND",
            "Dockerfile",
        ),
        (
            "e2e-bomb",
            zip_of(&[("Dockerfile", dockerfile), ("bomb", &bomb)]),
            "ARCHIVE_TOO_LARGE",
            "100 times",
        ),
        (
            "e2e-traversal",
            zip_of(&[("Dockerfile", dockerfile), ("../../out", b"x")]),
            "ARCHIVE_INVALID",
            "../../out",
        ),
        (
            "e2e-absolute",
            zip_of(&[("Dockerfile", dockerfile), ("/etc/out", b"x")]),
            "ARCHIVE_INVALID",
            "/etc/out",
        ),
    ];
    for (name, zip, code, says) in cases {
        refused(&fleet, name, zip, code, says).await;
    }
    assert!(!std::path::Path::new("/etc/out").exists());
}

#[tokio::test]
async fn dockerfiles_that_fail_say_where() {
    let fleet = World::open();
    let failing =
        "FROM debian-12\nRUN echo before the failure\nRUN echo broken >&2 && false\nCMD [\"true\"]\n";
    let built =
        refused(&fleet, "e2e-failing", zip_with(failing), "CONTAINER_BUILD_FAILED", "line 3, step 3/3").await;
    assert!(built.log.contains("before the failure") && built.log.contains("broken"), "{}", built.log);
    let unknown = "FROM no-such-base\nCMD [\"true\"]\n";
    let built = refused(&fleet, "e2e-base", zip_with(unknown), "BASE_IMAGE_NOT_FOUND", "no-such-base").await;
    assert!(built.log.contains("debian-12"), "the log lists the bases there are:\n{}", built.log);
    let flood = "FROM debian-12\nRUN timeout 3 yes 0123456789012345678901234567890123456789012345678901234567890 ; false\nCMD [\"true\"]\n";
    let built =
        refused(&fleet, "e2e-flood", zip_with(flood), "CONTAINER_BUILD_FAILED", "line 2, step 2/2").await;
    assert!(built.log.len() < 80 << 20, "{} bytes of log", built.log.len());
    // The base's own command is a shell, which has nothing to read.
    let no_command = "FROM debian-12\n";
    refused(&fleet, "e2e-no-command", zip_with(no_command), "APP_EXITED", "exited with status 0").await;
}

#[tokio::test]
async fn apps_that_never_get_ready() {
    let fleet = World::open();
    let environment = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let zip = || app::zip_with(DOCKERFILE);
    let built =
        fleet.build("e2e-exits", zip(), |c| c.environment_variables = environment("EXIT_AT_ONCE", "1")).await;
    check(&fleet, "e2e-exits", &built, "APP_EXITED", "exited with status 7").await;
    let built = fleet
        .build("e2e-ready-500", zip(), |c| {
            c.environment_variables = environment("READY_STATUS", "500");
            c.hooks = Some(hooks(&["ready"]));
        })
        .await;
    check(&fleet, "e2e-ready-500", &built, "HOOK_FAILED", "HTTP 5").await;
    let built = fleet
        .build("e2e-never-ready", zip(), |c| {
            c.environment_variables = environment("NEVER_LISTEN", "1");
            let mut hooks = hooks(&["ready"]);
            hooks.ready.as_mut().unwrap().timeout = Some(api::duration_proto(Duration::from_secs(5)));
            c.hooks = Some(hooks);
        })
        .await;
    check(
        &fleet,
        "e2e-never-ready",
        &built,
        "READY_HOOK_TIMEOUT",
        "Ready hook invocation timed out after PT5S",
    )
    .await;
}

#[tokio::test]
async fn a_run_hook_that_fails_ends_the_microvm_with_the_reason() {
    let fleet = World::open();
    fleet
        .ensure_image("e2e-run-500", |c| {
            c.environment_variables = HashMap::from([("RUN_STATUS".to_owned(), "500".to_owned())]);
            c.hooks = Some(hooks(&["ready", "run"]));
        })
        .await;
    let microvm = fleet.run_with("e2e-run-500", |_| ()).await.unwrap();
    let ended = fleet.wait(&microvm.microvm_id, MicrovmState::Terminated).await;
    assert_eq!(
        ended.state_reason,
        "Run lifecycle hook returned HTTP status 500. Please check your hook endpoint and application logs for more details."
    );
}

#[tokio::test]
async fn requests_that_break_a_rule_name_the_field() {
    let fleet = World::open();
    let good = fleet.configuration("s3://torpor-artifacts/none.zip");
    let with = |change: &dyn Fn(&mut ImageConfiguration)| {
        let mut configuration = good.clone();
        change(&mut configuration);
        configuration
    };
    let long = "x".repeat(65);
    let cases: Vec<(&str, ImageConfiguration, &str)> = vec![
        ("bad name!", good.clone(), "[a-zA-Z0-9-_]"),
        (&long, good.clone(), "[a-zA-Z0-9-_]"),
        ("e2e-memory", with(&|c| c.resources = Some(Resources { minimum_memory_mib: 768 })), "512"),
        ("e2e-uri", with(&|c| c.code_artifact = Some(CodeArtifact { uri: "http://x".into() })), "s3://"),
        ("e2e-missing", with(&|c| c.code_artifact = None), "codeArtifact"),
        ("e2e-base-arn", with(&|c| c.base_image_arn = "no-such-base".into()), "no-such-base"),
        ("e2e-caps", with(&|c| c.additional_os_capabilities = vec!["SOME".into()]), "ALL"),
        ("e2e-hooks", with(&|c| c.hooks = Some(hooks(&["run"]))), "ready"),
        (
            "e2e-reserved",
            with(&|c| c.environment_variables = HashMap::from([("AWS_REGION".into(), "x".into())])),
            "is reserved",
        ),
    ];
    for (name, configuration, says) in cases {
        let status = fleet.create(name, configuration).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().contains(says), "{name}: '{}' lacks '{says}'", status.message());
    }
    let unknown = fleet.run_with("e2e-unknown", |_| ()).await.unwrap_err();
    assert_eq!(api::errors::reason_of(&unknown).as_deref(), Some("NO_ACTIVE_VERSION"));
    let image = fleet.app_image().await;
    type Change = fn(&mut RunMicrovmRequest);
    let changes: [(Change, &str); 6] = [
        (|r| r.maximum_duration = Some(api::duration_proto(Duration::from_secs(28_801))), "28800"),
        (|r| r.run_hook_payload = "x".repeat(4097), "4096"),
        (|r| r.run_hook_payload = "x".to_owned(), "The run hook must be enabled"),
        (|r| r.client_token = "t".repeat(129), "128"),
        (|r| r.image_version = "one".to_owned(), "1.0"),
        (
            |r| r.ingress_network_connectors = vec!["HTTP_INGRESS".to_owned()],
            "Malformed network connector ARN",
        ),
    ];
    for (change, says) in changes {
        let status = fleet.run_with(image, change).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(says), "'{}' lacks '{says}'", status.message());
    }
    for id in ["microvm-00000000-0000-3000-8000-000000000000", "nonsense"] {
        let status = fleet.get(id).await.unwrap_err();
        assert!([Code::NotFound, Code::InvalidArgument].contains(&status.code()), "{status:?}");
    }
}

#[tokio::test]
async fn tokens_open_what_they_name_and_nothing_else() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let (one, two) = futures::future::join(fleet.run(image), fleet.run(image)).await;
    let port = |port: u32| vec![PortScope { scope: Some(port_scope::Scope::Port(port)) }];
    let narrow = fleet.token_for(&one.id, Duration::from_secs(60), port(8081)).await.unwrap();
    let right = fleet.token_for(&one.id, Duration::from_secs(60), port(8080)).await.unwrap();
    let stranger = "00000000-0000-4000-8000-000000000000.microvms.localhost";
    let cases: [(&str, &str, &str, u16, &str); 7] = [
        (&one.endpoint, "", "", 403, "Request missing authentication"),
        (&one.endpoint, "garbage", "", 403, "Request missing authentication"),
        (&one.endpoint, &two.token, "", 403, "Token authentication failed"),
        (stranger, &one.token, "", 403, "Token authentication failed"),
        (&one.endpoint, &narrow, "", 403, "Access to port denied"),
        (&one.endpoint, &right, "8081", 403, "Access to port denied"),
        (&one.endpoint, &right, "http", 400, ""),
    ];
    for (endpoint, token, port, status, text) in cases {
        let mut headers = HashMap::new();
        if !token.is_empty() {
            headers.insert(AUTH_HEADER, token);
        }
        if !port.is_empty() {
            headers.insert("x-aws-proxy-port", port);
        }
        let answer = fleet.request(endpoint, "/count", &headers, HttpVersion::Http1).await.unwrap();
        assert_eq!(answer.status, status, "{text}: {answer:?}");
        assert!(answer.text().contains(text), "{answer:?}");
    }
    let headers = HashMap::from([(AUTH_HEADER, one.token.as_str()), ("x-aws-proxy-port", "9999")]);
    let closed = fleet.request(&one.endpoint, "/", &headers, HttpVersion::Http1).await.unwrap();
    assert_eq!((closed.status, closed.header("x-aws-proxy-error")), (502, Some("APP_CONNECT_FAILED")));
    one.suspend().await.unwrap();
    let headers = HashMap::from([(AUTH_HEADER, two.token.as_str())]);
    let wrong = fleet.request(&one.endpoint, "/count", &headers, HttpVersion::Http1).await.unwrap();
    assert_eq!(wrong.status, 403);
    assert_eq!(one.record().await.state(), MicrovmState::Suspended, "a bad token wakes nobody");
    one.terminate().await;
    two.terminate().await;
}
