//! Versions of images.

use api::image::v1::{
    DeleteImageVersionRequest, GetImageVersionRequest, ImageVersion, ListImageVersionsRequest,
    UpdateImageVersionRequest, VersionStatus,
};
use aws_model::Input;
use prost_types::Timestamp;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Answer, Call, configuration, members, missing, text, word};

/// The hour that follows a version's state: "26112208".
const HOUR: &[BorrowedFormatItem<'_>] = format_description!("[year repr:last_two][month][day][hour]");

/// GetMicrovmImageVersion.
pub async fn get(call: Call<'_>, input: Input) -> Answer {
    let message =
        GetImageVersionRequest { image_identifier: call.image(&input)?, image_version: version(&input) };
    let found = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.get_image_version(request).await
        })
        .await?;
    let version = found.version.ok_or_else(|| missing("a version"))?;
    Ok(detail(call, version))
}

/// ListMicrovmImageVersions.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let message = ListImageVersionsRequest { image_identifier: call.image(&input)?, page_size, page_token };
    let listed = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.list_image_versions(request).await
        })
        .await?;
    let items = listed.versions.into_iter().map(|version| detail(call, version));
    Ok(call.items(&input, items, &listed.next_page_token))
}

/// UpdateMicrovmImageVersion.
pub async fn update(call: Call<'_>, input: Input) -> Answer {
    let status = match input.text("status") {
        Some("ACTIVE") => VersionStatus::Active,
        Some("INACTIVE") => VersionStatus::Inactive,
        _ => VersionStatus::Unspecified,
    };
    let message = UpdateImageVersionRequest {
        image_identifier: call.image(&input)?,
        image_version: version(&input),
        status: status.into(),
    };
    let updated = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.update_image_version(request).await
        })
        .await?;
    let version = updated.version.ok_or_else(|| missing("a version"))?;
    Ok(detail(call, version))
}

/// DeleteMicrovmImageVersion.
pub async fn delete(call: Call<'_>, input: Input) -> Answer {
    let message =
        DeleteImageVersionRequest { image_identifier: call.image(&input)?, image_version: version(&input) };
    let deleted = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.delete_image_version(request).await
        })
        .await?;
    let version = deleted.version.ok_or_else(|| missing("a version"))?;
    Ok(members([
        ("state", state(&version)),
        ("imageIdentifier", version.image_arn.into()),
        ("imageVersion", version.image_version.into()),
    ]))
}

fn version(input: &Input) -> String {
    input.text("imageVersion").unwrap_or_default().to_owned()
}

fn detail(call: Call<'_>, version: ImageVersion) -> Map<String, Value> {
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
