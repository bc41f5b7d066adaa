//! Images.

use api::image::v1::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, Image, ImageVersion,
    ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use aws_model::Rejection;
use serde_json::{Map, Value};

use super::{Answer, Call, configuration, map, members, text, word};

pub(super) fn create(call: &Call<'_>) -> Result<CreateImageRequest, Rejection> {
    Ok(CreateImageRequest {
        name: call.members().string("name"),
        configuration: Some(configuration::read(call.members(), call.arm_64_is_own)),
        tags: call.members().map("tags"),
        client_token: call.client_token(),
    })
}

pub(super) fn created(call: &Call<'_>, made: CreateImageResponse) -> Answer {
    let tagged = call.members().structure("tags").is_some();
    let tags = made.image.as_ref().filter(|_| tagged).map(|image| map(image.tags.clone()));
    let mut answer = begun(call, made.image, made.version)?;
    answer.extend(tags.map(|tags| ("tags".to_owned(), tags)));
    Ok(answer)
}

pub(super) fn update(call: &Call<'_>) -> Result<UpdateImageRequest, Rejection> {
    Ok(UpdateImageRequest {
        image_identifier: call.image()?,
        configuration: Some(configuration::read(call.members(), call.arm_64_is_own)),
        client_token: call.client_token(),
    })
}

pub(super) fn updated(call: &Call<'_>, made: UpdateImageResponse) -> Answer {
    begun(call, made.image, made.version)
}

/// An image with the configuration of the version that was just begun.
fn begun(call: &Call<'_>, image: Option<Image>, version: Option<ImageVersion>) -> Answer {
    let image = image.ok_or_else(|| call.lacks("image"))?;
    let version = version.ok_or_else(|| call.lacks("version"))?;
    let mut answer = configuration::write(version.configuration.unwrap_or_default());
    answer.insert("imageVersion".to_owned(), version.image_version.into());
    answer.extend(head(call, image));
    Ok(answer)
}

pub(super) fn get(call: &Call<'_>) -> Result<GetImageRequest, Rejection> {
    Ok(GetImageRequest { image_identifier: call.image()? })
}

pub(super) fn found(call: &Call<'_>, mut image: Image) -> Answer {
    let tags = map(std::mem::take(&mut image.tags));
    let mut answer = head(call, image);
    answer.insert("tags".to_owned(), tags);
    Ok(answer)
}

pub(super) fn list(call: &Call<'_>) -> Result<ListImagesRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    Ok(ListImagesRequest { page_size, page_token, name_filter: String::new() })
}

/// The filter comes after the page, as on AWS: a page may be empty though more follow.
pub(super) fn listed(call: &Call<'_>, page: ListImagesResponse) -> Answer {
    let filter = call.members().text("nameFilter").unwrap_or_default();
    let found = page.images.into_iter().filter(|image| image.name.contains(filter));
    let items = found.map(|image| {
        let mut item = head(call, image);
        item.remove("updatedAt");
        item
    });
    call.items(items, &page.next_page_token)
}

pub(super) fn delete(call: &Call<'_>) -> Result<DeleteImageRequest, Rejection> {
    Ok(DeleteImageRequest { image_identifier: call.image()? })
}

pub(super) fn deleted(_: &Call<'_>, image: Image) -> Answer {
    Ok(members([("state", state(&image)), ("imageIdentifier", image.image_arn.into())]))
}

/// What every answer about an image tells.
fn head(call: &Call<'_>, image: Image) -> Map<String, Value> {
    members([
        ("createdAt", call.time(image.create_time)),
        ("state", state(&image)),
        ("updatedAt", call.time(image.update_time)),
        ("id", text(image.id)),
        ("imageArn", image.image_arn.into()),
        ("latestActiveImageVersion", text(image.latest_active_image_version)),
        ("latestFailedImageVersion", text(image.latest_failed_image_version)),
        ("name", image.name.into()),
    ])
}

fn state(image: &Image) -> Value {
    word(image.state().as_str_name(), "IMAGE_STATE_")
}
