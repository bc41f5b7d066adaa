//! Builds of versions.

use api::common::v1::Architecture;
use api::errors;
use api::image::v1::{GetImageBuildRequest, ImageBuild, ListImageBuildsRequest, SnapshotBuild};
use aws_model::Input;
use serde_json::{Map, Value};

use crate::aws::arn::Kind;

use super::{Answer, Call, configuration, given, members, missing, text, word};

/// Reason codes whose sentence does not say them itself.
const CODES: [&str; 4] =
    ["CONTAINER_BUILD_FAILED", "BASE_IMAGE_NOT_FOUND", "DISK_STORAGE_FULL", "INTERNAL_PLATFORM_ERROR"];

/// ListMicrovmImageBuilds. The filters come after the page.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let image_arn = call.image(&input)?;
    let message = ListImageBuildsRequest {
        image_identifier: image_arn.clone(),
        image_version: input.text("imageVersion").unwrap_or_default().to_owned(),
        page_size,
        page_token,
    };
    let listed = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.list_image_builds(request).await
        })
        .await?;
    let wanted = |item: &Map<String, Value>| {
        ["architecture", "chipset", "chipsetGeneration"]
            .iter()
            .all(|name| input.get(name).is_none_or(|filter| item.get(*name) == Some(filter)))
    };
    let builds = listed.builds.into_iter();
    let items = builds.map(|build| item(call, build, &image_arn)).filter(wanted);
    Ok(call.items(&input, items, &listed.next_page_token))
}

/// GetMicrovmImageBuild.
pub async fn get(call: Call<'_>, input: Input) -> Answer {
    let image_arn = call.image(&input)?;
    let build_id = input.text("buildId").unwrap_or_default();
    let message = GetImageBuildRequest { build_id: build_id.to_owned() };
    let found = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.get_image_build(request).await
        })
        .await?;
    let build = found.build.ok_or_else(|| missing("a build"))?;
    // The path names three things that belong together, and a policy was asked about this very ARN.
    let owner = call.fleet.arn(Kind::Image, &build.image_name);
    if owner != image_arn || Some(build.image_version.as_str()) != input.text("imageVersion") {
        return Err(errors::not_found("MicroVM image build", build_id).into());
    }
    let sizes = build.snapshot_build.and_then(sizes);
    let mut answer = item(call, build, &image_arn);
    answer.extend(sizes.map(|sizes| ("snapshotBuild".to_owned(), sizes)));
    Ok(answer)
}

fn item(call: Call<'_>, build: ImageBuild, image_arn: &str) -> Map<String, Value> {
    let chipset = match build.architecture() {
        Architecture::Unspecified => Value::Null,
        Architecture::Arm64 => "GRAVITON".into(),
        Architecture::X8664 => "INTEL".into(),
    };
    members([
        ("architecture", configuration::architecture_name(build.architecture())),
        ("buildState", word(build.state().as_str_name(), "BUILD_STATE_")),
        ("chipset", chipset),
        ("createdAt", call.time(build.create_time)),
        ("stateReason", reason(build.state_reason, &build.reason_code)),
        ("buildId", build.build_id.into()),
        ("chipsetGeneration", text(build.chipset_generation)),
        ("imageArn", image_arn.into()),
        ("imageVersion", build.image_version.into()),
    ])
}

/// The sentence, with the documented code behind it.
fn reason(sentence: String, code: &str) -> Value {
    let coded = code.starts_with("S3_") || code.starts_with("ARCHIVE_") || CODES.contains(&code);
    if coded && !sentence.is_empty() && !sentence.contains(code) {
        format!("{sentence} ({code})").into()
    } else {
        text(sentence)
    }
}

/// The sizes that are known; `None` when none is.
fn sizes(sizes: SnapshotBuild) -> Option<Value> {
    let size = |bytes: u64| {
        if bytes == 0 { Value::Null } else { bytes.into() }
    };
    let sizes = given([
        ("codeInstallSizeInBytes", size(sizes.code_install_size_bytes)),
        ("diskSnapshotSizeInBytes", size(sizes.disk_snapshot_size_bytes)),
        ("memorySnapshotSizeInBytes", size(sizes.memory_snapshot_size_bytes)),
    ]);
    sizes.as_object().is_some_and(|known| !known.is_empty()).then_some(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_codes_follow_the_sentence() {
        for (sentence, code, expected) in [
            (
                "The container image build failed.",
                "CONTAINER_BUILD_FAILED",
                "The container image build failed. (CONTAINER_BUILD_FAILED)",
            ),
            ("No such key.", "S3_NO_SUCH_KEY", "No such key. (S3_NO_SUCH_KEY)"),
            (
                "Ready hook invocation timed out after PT5M",
                "READY_HOOK_TIMEOUT",
                "Ready hook invocation timed out after PT5M",
            ),
        ] {
            assert_eq!(reason(sentence.into(), code), expected);
        }
        assert_eq!(reason(String::new(), ""), Value::Null);
    }
}
