//! Managed images: the fleet's local bases.

use api::image::v1::{
    ListBaseImageVersionsRequest, ListBaseImageVersionsResponse, ListBaseImagesRequest,
    ListBaseImagesResponse,
};
use aws_model::Rejection;

use super::{Answer, Call, members, word};

pub(super) fn list(call: &Call<'_>) -> Result<ListBaseImagesRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    Ok(ListBaseImagesRequest { page_size, page_token })
}

pub(super) fn listed(call: &Call<'_>, page: ListBaseImagesResponse) -> Answer {
    let items = page.base_images.into_iter().map(|base| {
        members([
            ("createdAt", call.time(base.create_time)),
            ("imageArn", base.image_arn.into()),
            ("updatedAt", call.time(base.update_time)),
        ])
    });
    call.items(items, &page.next_page_token)
}

pub(super) fn versions(call: &Call<'_>) -> Result<ListBaseImageVersionsRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    Ok(ListBaseImageVersionsRequest { base_image_identifier: call.image()?, page_size, page_token })
}

pub(super) fn listed_versions(call: &Call<'_>, page: ListBaseImageVersionsResponse) -> Answer {
    let items = page.versions.into_iter().map(|version| {
        let status = version.status().as_str_name();
        members([
            ("createdAt", call.time(version.create_time)),
            ("status", word(status, "BASE_IMAGE_VERSION_STATUS_")),
            ("imageArn", version.image_arn.into()),
            ("imageVersion", version.version.into()),
            ("updatedAt", call.time(version.update_time)),
        ])
    });
    call.items(items, &page.next_page_token)
}
