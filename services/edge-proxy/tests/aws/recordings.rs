//! The recordings of the live service: the requests they were made with, and
//! answers that must not differ but for names, numbers and times.

use std::collections::HashMap;
use std::path::PathBuf;

use api::errors::{self, reason};
use api::image::v1::*;
use api::microvm::v1::*;
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::Code;

use crate::samples;
use crate::world::{ACCOUNT, REGION, World, image, signer};

/// One hour before the samples' latest change.
const HOUR: i64 = 3600;

fn recordings() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../torpor/tests/aws/recordings")
}

fn read(path: PathBuf) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    (!text.trim().is_empty()).then(|| serde_json::from_str(&text).unwrap())
}

/// What the services answer at a step about the image `name`.
fn prepare(world: &World, case: &str, step: &str, name: &str) {
    let images = &world.image_builder;
    let earlier = if case == "images-lifecycle" { 0 } else { HOUR };
    let mut image = Image { name: name.to_owned(), image_arn: image(name), ..samples::image() };
    let mut version = ImageVersion {
        image_name: name.to_owned(),
        image_arn: image.image_arn.clone(),
        update_time: Some(Timestamp { seconds: samples::UPDATED.seconds - earlier, nanos: 0 }),
        ..samples::version()
    };
    let build = |generation: &str| ImageBuild { image_name: name.to_owned(), ..samples::build(generation) };
    let mut microvm = Microvm { image_arn: image.image_arn.clone(), ..samples::microvm() };
    match step {
        "create" | "create-image" => {
            image.set_state(ImageState::Creating);
            image.latest_active_image_version.clear();
            images.answer(
                "CreateImage",
                Ok(CreateImageResponse { image: Some(image), version: Some(version) }),
            );
        }
        "update-image" => {
            image.set_state(ImageState::Updating);
            version.image_version = "2.0".into();
            version.configuration.as_mut().unwrap().description =
                "updated by the m80 conformance suite".into();
            images.answer(
                "UpdateImage",
                Ok(UpdateImageResponse { image: Some(image), version: Some(version) }),
            );
        }
        "get-until-created" => images.answer("GetImage", Ok(GetImageResponse { image: Some(image) })),
        "get-until-updated" | "image-until-settled" => {
            image.set_state(ImageState::Updated);
            image.latest_active_image_version = "2.0".into();
            images.answer("GetImage", Ok(GetImageResponse { image: Some(image) }));
        }
        "list-images" => {
            images.answer("ListImages", Ok(ListImagesResponse { images: vec![image], ..Default::default() }))
        }
        "version-until-built" => {
            images.answer("GetImageVersion", Ok(GetImageVersionResponse { version: Some(version) }))
        }
        "list-versions" if case == "images-lifecycle" => images.answer(
            "ListImageVersions",
            Ok(ListImageVersionsResponse { versions: vec![version], ..Default::default() }),
        ),
        "update-version-status" => {
            version.set_status(VersionStatus::Inactive);
            images.answer("UpdateImageVersion", Ok(UpdateImageVersionResponse { version: Some(version) }));
        }
        "delete-version" => {
            version.set_state(VersionState::Deleting);
            images.answer("DeleteImageVersion", Ok(DeleteImageVersionResponse { version: Some(version) }));
        }
        "delete-image" => {
            image.set_state(ImageState::Deleting);
            images.answer("DeleteImage", Ok(DeleteImageResponse { image: Some(image) }));
        }
        "list-builds" => images.answer(
            "ListImageBuilds",
            Ok(ListImageBuildsResponse { builds: vec![build("4"), build("3")], ..Default::default() }),
        ),
        "get-build" => images.answer("GetImageBuild", Ok(GetImageBuildResponse { build: Some(build("4")) })),
        "list" => images.answer(
            "ListBaseImages",
            Ok(ListBaseImagesResponse {
                base_images: vec![BaseImage {
                    name: "al2023-1".into(),
                    image_arn: samples::configuration().base_image_arn,
                    create_time: Some(samples::CREATED),
                    update_time: Some(samples::UPDATED),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        ),
        "list-versions" => {
            let version = |version: &str| BaseImageVersion {
                name: "al2023-1".into(),
                image_arn: samples::configuration().base_image_arn,
                version: version.into(),
                status: BaseImageVersionStatus::Available.into(),
                create_time: Some(samples::CREATED),
                update_time: Some(samples::UPDATED),
            };
            images.answer(
                "ListBaseImageVersions",
                Ok(ListBaseImageVersionsResponse {
                    versions: vec![version("1"), version("0")],
                    ..Default::default()
                }),
            );
        }
        "tag" => images.answer("TagImage", Ok(TagImageResponse::default())),
        "untag" => images.answer("UntagImage", Ok(UntagImageResponse::default())),
        "list-tags" => {
            image.tags = HashMap::from([("m80".into(), "conformance".into())]);
            images.answer("GetImage", Ok(GetImageResponse { image: Some(image) }));
        }
        "run" => {
            microvm.set_state(MicrovmState::Pending);
            let microvm = Some(microvm);
            world.scheduler.answer("RunMicrovm", Ok(RunMicrovmResponse { microvm }));
        }
        "get-until-running" | "get-until-terminated" => {
            if step == "get-until-terminated" {
                microvm.set_state(MicrovmState::Terminated);
                microvm.state_reason = "Success.".into();
                microvm.terminate_time = Some(samples::UPDATED);
            }
            let microvm = Some(microvm);
            world.scheduler.answer("GetMicrovm", Ok(GetMicrovmResponse { microvm }));
        }
        "auth-token" => world.scheduler.answer(
            "CreateMicrovmAuthToken",
            Ok(CreateMicrovmAuthTokenResponse {
                auth_token: HashMap::from([("X-aws-proxy-auth".into(), "a.b.c.d.e".into())]),
                expire_time: None,
            }),
        ),
        "shell-auth-token-without-ingress" => {
            let sentence =
                "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.";
            let refused = errors::status(Code::FailedPrecondition, reason::SHELL_NOT_ALLOWED, sentence, &[]);
            let refused: Result<CreateMicrovmShellAuthTokenResponse, _> = Err(refused);
            world.scheduler.answer("CreateMicrovmShellAuthToken", refused);
        }
        "terminate" => world.scheduler.answer("TerminateMicrovm", Ok(TerminateMicrovmResponse::default())),
        other => panic!("{other}: no script for this step"),
    }
}

/// Takes out what differs from run to run, on both sides.
fn normalised(value: &Value, member: &str) -> Value {
    const TIMES: [&str; 4] = ["createdAt", "updatedAt", "startedAt", "terminatedAt"];
    match value {
        Value::Number(_) if TIMES.contains(&member) => "TIMESTAMP".into(),
        Value::String(_) if member == "X-aws-proxy-auth" => "TOKEN".into(),
        Value::String(text) => {
            let text = text.replace(ACCOUNT, "ACCOUNT").replace(&format!(":{REGION}:"), ":REGION:");
            without_ids(&text).into()
        }
        Value::Array(items) => items.iter().map(|item| normalised(item, member)).collect(),
        Value::Object(members) => {
            let members = members.iter();
            Value::Object(members.map(|(name, value)| (name.clone(), normalised(value, name))).collect())
        }
        other => other.clone(),
    }
}

fn without_ids(text: &str) -> String {
    const LENGTH: usize = 36;
    let mut rest = text;
    let mut out = String::new();
    while let Some(first) = rest.chars().next() {
        match rest.get(..LENGTH) {
            Some(id) if uuid::Uuid::try_parse(id).is_ok() => {
                out.push_str("UUID");
                rest = &rest[LENGTH..];
            }
            _ => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

fn filled(template: &str, values: &HashMap<String, String>) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    assert!(!text.contains("${"), "{text}");
    text
}

/// The member at a path, "items.0.buildId".
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, step| match step.parse::<usize>() {
        Ok(index) => &value[index],
        Err(_) => &value[step],
    })
}

async fn replay(world: &World, file: &str) {
    let case = read(recordings().join("cases").join(file)).unwrap();
    let id = case["id"].as_str().unwrap();
    let mut values = HashMap::from([("region".to_owned(), REGION.to_owned())]);
    for (name, value) in case["params"].as_object().into_iter().flatten() {
        let value = filled(value.as_str().unwrap(), &values).replace("123456789012", ACCOUNT);
        values.insert(name.clone(), value);
    }
    let steps = case["steps"].as_array().unwrap();
    let name = steps.iter().find_map(|step| step["body"]["name"].as_str()).unwrap_or("app");
    let mut connection = world.connection();
    for step in steps {
        let (step_name, method) = (step["name"].as_str().unwrap(), step["method"].as_str().unwrap());
        let what = format!("{id}/{step_name}");
        prepare(world, id, step_name, name);
        let target = filled(step["path"].as_str().unwrap(), &values);
        let body = step.get("body").map_or(String::new(), Value::to_string);
        let answer = connection.send(signer().request(method, &target, filled(&body, &values))).await;
        let answers = recordings().join("answers").join(id);
        let recorded = read(answers.join(format!("{step_name}.json")));
        let meta = read(answers.join(format!("{step_name}.meta.json"))).unwrap_or_default();
        let status = meta.get("status").unwrap_or(&step["expect"]["status"]);
        assert_eq!(json!(answer.status), *status, "{what}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(meta["errorType"].as_str().unwrap_or("none"), answer.class(), "{what}");
        match recorded {
            None => assert!(answer.body.is_empty(), "{what}"),
            Some(recorded) => {
                let (ours, theirs) = (normalised(&answer.json(), ""), normalised(&recorded, ""));
                assert_eq!(ours, theirs, "{what}");
            }
        }
        for (variable, path) in step["capture"].as_object().into_iter().flatten() {
            let value = at(&answer.json(), path.as_str().unwrap()).as_str().unwrap().to_owned();
            values.insert(variable.clone(), value);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_they_were_recorded() {
    let world = World::start().await;
    for case in ["10-images.json", "20-managed-images.json", "50-tokens.json", "70-tags.json"] {
        replay(&world, case).await;
    }
}
