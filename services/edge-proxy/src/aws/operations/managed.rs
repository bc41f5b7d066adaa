//! Managed images: the fleet's local bases.

use api::image::v1::{ListBaseImageVersionsRequest, ListBaseImagesRequest};
use aws_model::Input;

use super::{Answer, Call, members, word};

/// ListManagedMicrovmImages.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let message = ListBaseImagesRequest { page_size, page_token };
    let listed = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.list_base_images(request).await
        })
        .await?;
    let items = listed.base_images.into_iter().map(|base| {
        members([
            ("createdAt", call.time(base.create_time)),
            ("imageArn", base.image_arn.into()),
            ("updatedAt", call.time(base.update_time)),
        ])
    });
    Ok(call.items(&input, items, &listed.next_page_token))
}

/// ListManagedMicrovmImageVersions.
pub async fn versions(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let message =
        ListBaseImageVersionsRequest { base_image_identifier: call.image(&input)?, page_size, page_token };
    let listed = call
        .services
        .images(call.request_id, message, |mut client, request| async move {
            client.list_base_image_versions(request).await
        })
        .await?;
    let items = listed.versions.into_iter().map(|version| {
        let status = version.status().as_str_name();
        members([
            ("createdAt", call.time(version.create_time)),
            ("status", word(status, "BASE_IMAGE_VERSION_STATUS_")),
            ("imageArn", version.image_arn.into()),
            ("imageVersion", version.version.into()),
            ("updatedAt", call.time(version.update_time)),
        ])
    });
    Ok(call.items(&input, items, &listed.next_page_token))
}
