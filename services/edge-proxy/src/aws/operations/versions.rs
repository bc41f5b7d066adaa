//! Versions of images.

use api::image::v1::{
    DeleteImageVersionRequest, GetImageVersionRequest, ImageVersion, ListImageVersionsRequest,
    ListImageVersionsResponse, UpdateImageVersionRequest, VersionStatus,
};
use aws_model::Rejection;
use prost_types::Timestamp;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Answer, Call, configuration, members, text, word};

/// The hour that follows a version's state: "26112208".
const HOUR: &[BorrowedFormatItem<'_>] = format_description!("[year repr:last_two][month][day][hour]");

pub(super) fn get(call: &Call<'_>) -> Result<GetImageVersionRequest, Rejection> {
    Ok(GetImageVersionRequest { image_identifier: call.image()?, image_version: version(call) })
}

pub(super) fn found(call: &Call<'_>, version: ImageVersion) -> Answer {
    Ok(detail(call, version))
}

pub(super) fn list(call: &Call<'_>) -> Result<ListImageVersionsRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    Ok(ListImageVersionsRequest { image_identifier: call.image()?, page_size, page_token })
}

pub(super) fn listed(call: &Call<'_>, page: ListImageVersionsResponse) -> Answer {
    let items = page.versions.into_iter().map(|version| detail(call, version));
    call.items(items, &page.next_page_token)
}

pub(super) fn update(call: &Call<'_>) -> Result<UpdateImageVersionRequest, Rejection> {
    let status = match call.members().text("status") {
        Some("ACTIVE") => VersionStatus::Active,
        Some("INACTIVE") => VersionStatus::Inactive,
        _ => VersionStatus::Unspecified,
    };
    Ok(UpdateImageVersionRequest {
        image_identifier: call.image()?,
        image_version: version(call),
        status: status.into(),
    })
}

pub(super) fn delete(call: &Call<'_>) -> Result<DeleteImageVersionRequest, Rejection> {
    Ok(DeleteImageVersionRequest { image_identifier: call.image()?, image_version: version(call) })
}

pub(super) fn deleted(_: &Call<'_>, version: ImageVersion) -> Answer {
    Ok(members([
        ("state", state(&version)),
        ("imageIdentifier", version.image_arn.into()),
        ("imageVersion", version.image_version.into()),
    ]))
}

fn version(call: &Call<'_>) -> String {
    call.members().string("imageVersion")
}

fn detail(call: &Call<'_>, version: ImageVersion) -> Map<String, Value> {
    let bucket = format!(
        "{}#{}",
        state(&version).as_str().unwrap_or_default(),
        hour(version.update_time).unwrap_or_default()
    );
    let own = members([
        ("createdAt", call.time(version.create_time)),
        ("state", state(&version)),
        ("status", word(version.status().as_str_name(), "VERSION_STATUS_")),
        ("updatedAt", call.time(version.update_time)),
        ("imageArn", version.image_arn.into()),
        ("imageVersion", version.image_version.into()),
        ("stateReason", text(version.state_reason)),
        ("versionStateTimeBucket", bucket.into()),
    ]);
    let mut answer = configuration::write(version.configuration.unwrap_or_default());
    answer.extend(own);
    answer
}

fn state(version: &ImageVersion) -> Value {
    word(version.state().as_str_name(), "VERSION_STATE_")
}

fn hour(time: Option<Timestamp>) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(time?.seconds).ok()?;
    time.format(HOUR).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_is_that_of_utc() {
        let at = |seconds| hour(Some(Timestamp { seconds, nanos: 0 }));
        assert_eq!(at(1_785_391_200).as_deref(), Some("26073006"));
        assert_eq!(at(1_785_394_799).as_deref(), Some("26073006"));
        assert_eq!(at(1_785_394_800).as_deref(), Some("26073007"));
        assert_eq!(at(i64::MAX), None);
        assert_eq!(hour(None), None);
    }
}
