//! Builds of versions.

use api::common::v1::Architecture;
use api::errors;
use api::image::v1::{
    GetImageBuildRequest, ImageBuild, ListImageBuildsRequest, ListImageBuildsResponse, SnapshotBuild,
};
use aws_model::Rejection;
use serde_json::{Map, Value};

use super::{Answer, Call, configuration, given, members, text, word};
use crate::aws::account::Kind;

/// Reason codes whose sentence does not say them itself.
const CODES: [&str; 4] =
    ["CONTAINER_BUILD_FAILED", "BASE_IMAGE_NOT_FOUND", "DISK_STORAGE_FULL", "INTERNAL_PLATFORM_ERROR"];

pub(super) fn list(call: &Call<'_>) -> Result<ListImageBuildsRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    Ok(ListImageBuildsRequest {
        image_identifier: call.image()?,
        image_version: call.members().string("imageVersion"),
        page_size,
        page_token,
    })
}

/// The filters come after the page.
pub(super) fn listed(call: &Call<'_>, page: ListImageBuildsResponse) -> Answer {
    let image_arn = call.image()?;
    let wanted = |item: &Map<String, Value>| {
        ["architecture", "chipset", "chipsetGeneration"]
            .iter()
            .all(|name| call.members().get(name).is_none_or(|filter| item.get(*name) == Some(filter)))
    };
    let items = page.builds.into_iter().map(|build| item(call, build, &image_arn)).filter(wanted);
    call.items(items, &page.next_page_token)
}

pub(super) fn get(call: &Call<'_>) -> Result<GetImageBuildRequest, Rejection> {
    call.image()?;
    Ok(GetImageBuildRequest { build_id: call.members().string("buildId") })
}

pub(super) fn found(call: &Call<'_>, build: ImageBuild) -> Answer {
    let image_arn = call.image()?;
    // The path names three things that belong together, and a policy was asked about this very ARN.
    let owner = call.account.arn(Kind::Image, &build.image_name);
    if owner != image_arn || Some(build.image_version.as_str()) != call.members().text("imageVersion") {
        let build_id = call.members().string("buildId");
        return Err(call.refused(&errors::not_found("MicroVM image build", &build_id)));
    }
    let sizes = build.snapshot_build.and_then(sizes);
    let mut answer = item(call, build, &image_arn);
    answer.extend(sizes.map(|sizes| ("snapshotBuild".to_owned(), sizes)));
    Ok(answer)
}

fn item(call: &Call<'_>, build: ImageBuild, image_arn: &str) -> Map<String, Value> {
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
