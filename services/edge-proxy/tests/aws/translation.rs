//! Requests as the services get them, and answers as clients get them, for what the recordings do not show.

use std::collections::HashMap;

use api::common::v1::*;
use api::image::v1::*;
use api::microvm::v1::port_scope::Scope;
use api::microvm::v1::*;
use prost_types::Duration;
use serde_json::{Value, json};

use crate::client::Answer;
use crate::samples::{self, BUILD, MICROVM};
use crate::world::{World, image, managed_connector};

const IMAGES: &str = "/2025-09-09/microvm-images";
const MICROVMS: &str = "/2025-09-09/microvms";

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn hook(mode: HookMode, timeout: Option<i64>) -> Option<Hook> {
    Some(Hook { mode: mode.into(), timeout: timeout.and_then(seconds) })
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn ok(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

/// A configuration with everything in it, and the same as the service sees it.
fn everything() -> (Value, ImageConfiguration) {
    let json = json!({
        "additionalOsCapabilities": ["ALL"],
        "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:debian-12",
        "baseImageVersion": "1",
        "buildRoleArn": "arn:aws:iam::000000000000:role/build",
        "codeArtifact": {"uri": "s3://bucket/code.zip"},
        "cpuConfigurations": [{"architecture": "X86_64"}],
        "description": "all of it",
        "egressNetworkConnectors": ["arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1"],
        "environmentVariables": {"A": "1", "B": "zwei"},
        "hooks": {
            "port": 9000,
            "microvmHooks": {"run": "ENABLED", "runTimeoutInSeconds": 10, "resume": "DISABLED"},
            "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 3600},
        },
        "kmsKeyIdentifier": "alias/images",
        "logging": {"cloudWatch": {"logGroup": "group", "logStream": "stream"}},
        "resources": [{"minimumMemoryInMiB": 512}],
    });
    let configuration = ImageConfiguration {
        code_artifact: Some(CodeArtifact { uri: "s3://bucket/code.zip".into() }),
        base_image_arn: "arn:aws:lambda:us-east-1:aws:microvm-image:debian-12".into(),
        base_image_version: "1".into(),
        build_role_arn: "arn:aws:iam::000000000000:role/build".into(),
        description: "all of it".into(),
        resources: Some(Resources { minimum_memory_mib: 512 }),
        cpu_configurations: vec![CpuConfiguration { architecture: Architecture::X8664.into() }],
        additional_os_capabilities: vec!["ALL".into()],
        environment_variables: map(&[("A", "1"), ("B", "zwei")]),
        egress_network_connectors: vec![
            "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1".into(),
        ],
        hooks: Some(Hooks {
            port: 9000,
            ready: hook(HookMode::Enabled, Some(3600)),
            run: hook(HookMode::Enabled, Some(10)),
            resume: hook(HookMode::Disabled, None),
            ..Hooks::default()
        }),
        logging: Some(Logging {
            destination: Some(logging::Destination::CloudWatch(LogGroup {
                log_group: "group".into(),
                log_stream: "stream".into(),
            })),
        }),
        kms_key_identifier: "alias/images".into(),
        end_connections_at_suspend: false,
    };
    (json, configuration)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arm_64_may_mean_the_fleets_own() {
    let body = json!({
        "name": "app", "codeArtifact": {"uri": "s3://bucket/code.zip"},
        "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
        "buildRoleArn": "arn:aws:iam::000000000000:role/build",
        "cpuConfigurations": [{"architecture": "ARM_64"}],
    });
    let arm = CpuConfiguration { architecture: Architecture::Arm64.into() };
    for (own, handed_on) in [(false, vec![arm]), (true, vec![])] {
        let world = World::with(|config| config.aws.arm_64_is_own = own).await;
        world.image_builder.react("CreateImage", |request: CreateImageRequest| {
            let version = ImageVersion { configuration: request.configuration, ..samples::version() };
            Ok(CreateImageResponse { image: Some(samples::image()), version: Some(version) })
        });
        ok(&world.ask("POST", IMAGES, &body.to_string()).await, 201);
        let asked: CreateImageRequest = world.image_builder.only("CreateImage");
        assert_eq!(asked.configuration.unwrap().cpu_configurations, handed_on);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_created_and_updated_with_everything() {
    let world = World::start().await;
    world.image_builder.react("CreateImage", |request: CreateImageRequest| {
        let image = Image { tags: request.tags, ..samples::image() };
        let version = ImageVersion { configuration: request.configuration, ..samples::version() };
        Ok(CreateImageResponse { image: Some(image), version: Some(version) })
    });
    world.image_builder.react("UpdateImage", |request: UpdateImageRequest| {
        let version = ImageVersion {
            configuration: request.configuration,
            image_version: "2.0".into(),
            ..samples::version()
        };
        Ok(UpdateImageResponse { image: Some(samples::image()), version: Some(version) })
    });
    let (configuration, expected) = everything();
    let mut body = configuration.clone();
    body["name"] = "app".into();
    body["tags"] = json!({"team": "a"});
    body["clientToken"] = "token".into();
    let made = ok(&world.ask("POST", IMAGES, &body.to_string()).await, 201);
    let asked: CreateImageRequest = world.image_builder.only("CreateImage");
    assert_eq!(asked.name, "app");
    assert_eq!(asked.client_token, "token");
    assert_eq!(asked.tags, map(&[("team", "a")]));
    assert!(asked.configuration.as_ref() == Some(&expected), "{asked:?}");
    for (name, value) in configuration.as_object().unwrap() {
        assert_eq!(made[name], *value, "{name}");
    }
    assert_eq!(made["tags"], json!({"team": "a"}));

    let mut body = configuration.clone();
    body.as_object_mut().unwrap().remove("hooks");
    let target = format!("{IMAGES}/{}", image("app").replace(':', "%3A"));
    let made = ok(&world.ask("PUT", &target, &body.to_string()).await, 200);
    let asked: UpdateImageRequest = world.image_builder.only("UpdateImage");
    assert_eq!(asked.image_identifier, image("app"));
    assert!(!asked.client_token.is_empty(), "a second try must be known as one");
    assert!(asked.configuration.unwrap().hooks.is_none());
    assert_eq!(made["imageVersion"], "2.0");
    assert!(made.get("tags").is_none() && made["hooks"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_paths_name_image_version_and_build() {
    let world = World::start().await;
    let arn = image("app");
    let images = &world.image_builder;
    images.answer("GetImageVersion", Ok(GetImageVersionResponse { version: Some(samples::version()) }));
    images.answer("UpdateImageVersion", Ok(UpdateImageVersionResponse { version: Some(samples::version()) }));
    images.answer("DeleteImageVersion", Ok(DeleteImageVersionResponse { version: Some(samples::version()) }));
    images.answer("DeleteImage", Ok(DeleteImageResponse { image: Some(samples::image()) }));
    let version = format!("{IMAGES}/{arn}/versions/1.0");
    ok(&world.ask("GET", &version, "").await, 200);
    let asked: GetImageVersionRequest = images.only("GetImageVersion");
    assert_eq!((asked.image_identifier.as_str(), asked.image_version.as_str()), (arn.as_str(), "1.0"));
    ok(&world.ask("PATCH", &version, r#"{"status": "INACTIVE"}"#).await, 200);
    let asked: UpdateImageVersionRequest = images.only("UpdateImageVersion");
    assert_eq!(asked.status(), VersionStatus::Inactive);
    ok(&world.ask("DELETE", &version, "").await, 200);
    let asked: DeleteImageVersionRequest = images.only("DeleteImageVersion");
    assert_eq!(asked.image_version, "1.0");
    ok(&world.ask("DELETE", &format!("{IMAGES}/{arn}"), "").await, 200);
    let asked: DeleteImageRequest = images.only("DeleteImage");
    assert_eq!(asked.image_identifier, arn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_belong_to_their_version_and_are_filtered_after_the_page() {
    let world = World::start().await;
    let x86 = ImageBuild {
        architecture: Architecture::X8664.into(),
        state: BuildState::Failed.into(),
        state_reason: "The container image build failed.".into(),
        reason_code: "CONTAINER_BUILD_FAILED".into(),
        snapshot_build: Some(SnapshotBuild { code_install_size_bytes: 5, ..SnapshotBuild::default() }),
        ..samples::build("1")
    };
    world.image_builder.answer(
        "ListImageBuilds",
        Ok(ListImageBuildsResponse {
            builds: vec![samples::build("4"), samples::build("3"), x86.clone()],
            next_page_token: "more".into(),
        }),
    );
    world.image_builder.answer("GetImageBuild", Ok(GetImageBuildResponse { build: Some(x86) }));
    let builds = format!("{IMAGES}/{}/versions/1.0/builds", image("app"));
    for (filter, found) in [
        ("", 3),
        ("?architecture=ARM_64", 2),
        ("?chipset=INTEL", 1),
        ("?chipset=GRAVITON&chipsetGeneration=3", 1),
        ("?chipset=INTEL&chipsetGeneration=3", 0),
    ] {
        let page = ok(&world.ask("GET", &format!("{builds}{filter}"), "").await, 200);
        assert_eq!(page["items"].as_array().unwrap().len(), found, "{filter}");
        assert!(page["nextToken"].is_string());
        for item in page["items"].as_array().unwrap() {
            assert!(item.get("snapshotBuild").is_none());
        }
    }
    let build = ok(&world.ask("GET", &format!("{builds}/{BUILD}"), "").await, 200);
    assert_eq!(build["chipset"], "INTEL");
    assert_eq!(build["stateReason"], "The container image build failed. (CONTAINER_BUILD_FAILED)");
    assert_eq!(build["snapshotBuild"], json!({"codeInstallSizeInBytes": 5}));
    for other in [
        format!("{IMAGES}/{}/versions/2.0/builds/{BUILD}", image("app")),
        format!("{IMAGES}/{}/versions/1.0/builds/{BUILD}", image("other")),
    ] {
        let answer = world.ask("GET", &other, "").await;
        assert_eq!((answer.status, answer.class()), (404, "ResourceNotFoundException"), "{other}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_page_and_filter_as_aws_does() {
    let world = World::start().await;
    let named = |name: &str| Image { name: name.into(), image_arn: image(name), ..samples::image() };
    let images = [named("blue"), named("green")];
    world.image_builder.react("ListImages", move |request: ListImagesRequest| {
        assert_eq!((request.page_size, request.name_filter.as_str()), (1, ""));
        let page = usize::from(request.page_token == "second");
        Ok(ListImagesResponse {
            images: vec![images[page].clone()],
            next_page_token: if page == 0 { "second".into() } else { String::new() },
        })
    });
    let list = |more: &str| format!("{IMAGES}?maxResults=1&nameFilter=ee{more}");
    let first = ok(&world.ask("GET", &list(""), "").await, 200);
    assert_eq!(first["items"], json!([]), "the filter comes after the page");
    let token = first["nextToken"].as_str().unwrap();
    let second = ok(&world.ask("GET", &list(&format!("&nextToken={token}")), "").await, 200);
    assert_eq!(second["items"][0]["name"], "green");
    assert_eq!(second.get("nextToken"), Some(&Value::Null));
    // A token is good for its own listing only.
    for target in [
        format!("{IMAGES}?maxResults=1&nextToken={token}"),
        format!("{MICROVMS}?nextToken={token}"),
        list("&nextToken=bm9uZSBvZiBvdXJz"),
        list(&format!("&nextToken={token}A")),
    ] {
        let answer = world.ask("GET", &target, "").await;
        assert_eq!((answer.status, answer.class()), (400, "ValidationException"), "{target}");
    }
    // Padding that is not encoded.
    let padded = world.ask("GET", &list("&nextToken=abc="), "").await;
    assert_eq!((padded.status, &padded.json()["message"]), (400, &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn microvms_are_run_with_everything() {
    let world = World::start().await;
    let ran = Microvm {
        idle_policy: Some(IdlePolicy {
            max_idle_duration: seconds(120),
            suspended_duration: seconds(0),
            auto_resume_enabled: true,
            awake_while: None,
        }),
        execution_role_arn: "arn:aws:iam::000000000000:role/app".into(),
        kms_key_identifier: "alias/microvms".into(),
        ..samples::microvm()
    };
    let microvm = Some(ran);
    world.scheduler.answer("RunMicrovm", Ok(RunMicrovmResponse { microvm }));
    let body = json!({
        "imageIdentifier": image("app"),
        "imageVersion": "1.0",
        "executionRoleArn": "arn:aws:iam::000000000000:role/app",
        "idlePolicy": {
            "maxIdleDurationSeconds": 120, "suspendedDurationSeconds": 0, "autoResumeEnabled": true,
        },
        "maximumDurationInSeconds": 600,
        "runHookPayload": "päyload",
        "logging": {"disabled": {}},
        "ingressNetworkConnectors": [managed_connector("HTTP_INGRESS"), managed_connector("SHELL_INGRESS")],
        "egressNetworkConnectors": [managed_connector("INTERNET_EGRESS")],
        "kmsKeyIdentifier": "alias/microvms",
        "clientToken": "token",
    });
    let answer = ok(&world.ask("POST", MICROVMS, &body.to_string()).await, 200);
    assert_eq!(answer["kmsKeyIdentifier"], "alias/microvms");
    let asked: RunMicrovmRequest = world.scheduler.only("RunMicrovm");
    let expected = RunMicrovmRequest {
        checkpoint_interval: None,
        image_identifier: image("app"),
        kms_key_identifier: "alias/microvms".into(),
        image_version: "1.0".into(),
        execution_role_arn: "arn:aws:iam::000000000000:role/app".into(),
        idle_policy: Some(IdlePolicy {
            max_idle_duration: seconds(120),
            suspended_duration: seconds(0),
            auto_resume_enabled: true,
            awake_while: None,
        }),
        maximum_duration: seconds(600),
        run_hook_payload: "päyload".into(),
        logging: Some(Logging { destination: Some(logging::Destination::Disabled(LoggingDisabled {})) }),
        ingress_network_connectors: vec![
            managed_connector("HTTP_INGRESS"),
            managed_connector("SHELL_INGRESS"),
        ],
        egress_network_connectors: vec![managed_connector("INTERNET_EGRESS")],
        client_token: "token".into(),
    };
    assert!(asked == expected, "{asked:?}");
    assert_eq!(
        answer["idlePolicy"],
        json!({"autoResumeEnabled": true, "maxIdleDurationSeconds": 120, "suspendedDurationSeconds": 0})
    );
    assert_eq!(answer["startedAt"], json!(1_785_388_800.25));
    assert_eq!(answer.as_object().unwrap().len(), 15);
    // With as little as possible.
    let body = json!({"imageIdentifier": image("app")}).to_string();
    ok(&world.ask("POST", MICROVMS, &body).await, 200);
    let asked: RunMicrovmRequest = world.scheduler.only("RunMicrovm");
    assert!(asked.idle_policy.is_none() && asked.maximum_duration.is_none());
    assert!(asked.ingress_network_connectors.is_empty());
    assert!(!asked.client_token.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn microvms_are_listed_and_changed() {
    let world = World::start().await;
    let scheduler = &world.scheduler;
    scheduler.answer(
        "ListMicrovms",
        Ok(ListMicrovmsResponse { microvms: vec![samples::microvm()], ..Default::default() }),
    );
    scheduler.answer("SuspendMicrovm", Ok(SuspendMicrovmResponse::default()));
    scheduler.answer("ResumeMicrovm", Ok(ResumeMicrovmResponse::default()));
    scheduler.answer("TerminateMicrovm", Ok(TerminateMicrovmResponse::default()));
    let target = format!("{MICROVMS}?imageIdentifier={}&imageVersion=1.0&maxResults=7", image("app"));
    let page = ok(&world.ask("GET", &target, "").await, 200);
    let expected = json!({"items": [{
        "microvmId": MICROVM, "state": "RUNNING", "imageArn": image("app"), "imageVersion": "1.0",
        "startedAt": 1_785_388_800.25,
    }], "nextToken": null});
    assert_eq!(page, expected);
    let asked: ListMicrovmsRequest = scheduler.only("ListMicrovms");
    assert_eq!((asked.page_size, asked.image_version.as_str()), (7, "1.0"));
    assert_eq!(asked.image_identifier, image("app"));
    let microvm = format!("{MICROVMS}/{MICROVM}");
    for (method, target, call) in [
        ("POST", format!("{microvm}/suspend"), "SuspendMicrovm"),
        ("POST", format!("{microvm}/resume"), "ResumeMicrovm"),
        ("DELETE", microvm, "TerminateMicrovm"),
    ] {
        assert_eq!(ok(&world.ask(method, &target, "").await, 200), json!({}));
        let asked: SuspendMicrovmRequest = scheduler.only(call);
        assert_eq!(asked.microvm_id, MICROVM);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_carry_every_form_of_ports() {
    let world = World::start().await;
    let token = map(&[("X-aws-proxy-auth", "a.b.c.d.e")]);
    world.scheduler.answer(
        "CreateMicrovmAuthToken",
        Ok(CreateMicrovmAuthTokenResponse { auth_token: token.clone(), expire_time: None }),
    );
    world.scheduler.answer(
        "CreateMicrovmShellAuthToken",
        Ok(CreateMicrovmShellAuthTokenResponse { auth_token: token, expire_time: None }),
    );
    let body = json!({"expirationInMinutes": 60, "allowedPorts": [
        {"port": 8080}, {"range": {"startPort": 9000, "endPort": 9010}}, {"allPorts": {}},
    ]});
    let target = format!("{MICROVMS}/{MICROVM}/auth-token");
    let made = ok(&world.ask("POST", &target, &body.to_string()).await, 200);
    assert_eq!(made, json!({"authToken": {"X-aws-proxy-auth": "a.b.c.d.e"}}));
    let asked: CreateMicrovmAuthTokenRequest = world.scheduler.only("CreateMicrovmAuthToken");
    assert_eq!(asked.expiration, seconds(3600));
    let scopes: Vec<_> = asked.allowed_ports.into_iter().map(|port| port.scope.unwrap()).collect();
    let range = PortRange { start_port: 9000, end_port: 9010 };
    assert_eq!(scopes, [Scope::Port(8080), Scope::Range(range), Scope::AllPorts(AllPorts {})]);
    let target = format!("{MICROVMS}/{MICROVM}/shell-auth-token");
    let made = ok(&world.ask("POST", &target, r#"{"expirationInMinutes": 5}"#).await, 200);
    assert_eq!(made, json!({"authToken": {"X-aws-proxy-auth": "a.b.c.d.e"}}));
    let asked: CreateMicrovmShellAuthTokenRequest = world.scheduler.only("CreateMicrovmShellAuthToken");
    assert_eq!((asked.microvm_id.as_str(), asked.expiration), (MICROVM, seconds(300)));
}
