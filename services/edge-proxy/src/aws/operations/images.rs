//! Images.

use api::image::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ImageVersion, ListImagesRequest,
    UpdateImageRequest,
};
use aws_model::Input;
use serde_json::{Map, Value};

use super::{Answer, Call, client_token, configuration, map, members, missing, text, word};
use crate::aws::members::Members;

/// CreateMicrovmImage.
pub async fn create(call: Call<'_>, input: Input) -> Answer {
    let tagged = input.object("tags").is_some();
    let mut request = Members::from(input.into_members());
    let message = CreateImageRequest {
        name: request.text("name"),
        configuration: Some(configuration::read(&mut request)),
        tags: request.map("tags"),
        client_token: client_token(request.optional_text("clientToken")),
    };
    let made =
        call.services
            .images(call.request_id, message, |mut client, request| async move {
                client.create_image(request).await
            })
            .await?;
    let image = made.image.ok_or_else(|| missing("an image"))?;
    let tags = tagged.then(|| map(image.tags.clone()));
    let version = made.version.ok_or_else(|| missing("a version"))?;
    let mut answer = detail(call, image, version);
    answer.extend(tags.map(|tags| ("tags".to_owned(), tags)));
    Ok(answer)
}

/// UpdateMicrovmImage.
pub async fn update(call: Call<'_>, input: Input) -> Answer {
    let image_identifier = call.image(&input)?;
    let mut request = Members::from(input.into_members());
    let message = UpdateImageRequest {
        image_identifier,
        configuration: Some(configuration::read(&mut request)),
        client_token: client_token(request.optional_text("clientToken")),
    };
    let made =
        call.services
            .images(call.request_id, message, |mut client, request| async move {
                client.update_image(request).await
            })
            .await?;
    let image = made.image.ok_or_else(|| missing("an image"))?;
    let version = made.version.ok_or_else(|| missing("a version"))?;
    Ok(detail(call, image, version))
}

/// GetMicrovmImage.
pub async fn get(call: Call<'_>, input: Input) -> Answer {
    let mut image = find(call, call.image(&input)?).await?;
    let tags = map(std::mem::take(&mut image.tags));
    let mut answer = head(call, image);
    answer.insert("tags".to_owned(), tags);
    Ok(answer)
}

/// ListMicrovmImages. The filter comes after the page, as on AWS: a page may be
/// empty though more follow.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let message = ListImagesRequest { page_size, page_token, name_filter: String::new() };
    let listed =
        call.services
            .images(call.request_id, message, |mut client, request| async move {
                client.list_images(request).await
            })
            .await?;
    let filter = input.text("nameFilter").unwrap_or_default();
    let found = listed.images.into_iter().filter(|image| image.name.contains(filter));
    let items = found.map(|image| {
        let mut item = head(call, image);
        item.remove("updatedAt");
        item
    });
    Ok(call.items(&input, items, &listed.next_page_token))
}

/// DeleteMicrovmImage.
pub async fn delete(call: Call<'_>, input: Input) -> Answer {
    let message = DeleteImageRequest { image_identifier: call.image(&input)? };
    let deleted =
        call.services
            .images(call.request_id, message, |mut client, request| async move {
                client.delete_image(request).await
            })
            .await?;
    let image = deleted.image.ok_or_else(|| missing("an image"))?;
    Ok(members([("state", state(&image)), ("imageIdentifier", image.image_arn.into())]))
}

/// Reads an image.
pub async fn find(call: Call<'_>, image_identifier: String) -> Result<Image, super::Failure> {
    let message = GetImageRequest { image_identifier };
    let found = call
        .services
        .images(
            call.request_id,
            message,
            |mut client, request| async move { client.get_image(request).await },
        )
        .await?;
    found.image.ok_or_else(|| missing("an image"))
}

/// An image with the configuration of the version that was just begun.
fn detail(call: Call<'_>, image: Image, version: ImageVersion) -> Map<String, Value> {
    let mut answer = configuration::write(version.configuration.unwrap_or_default());
    answer.insert("imageVersion".to_owned(), version.image_version.into());
    answer.extend(head(call, image));
    answer
}

/// What every answer about an image tells.
fn head(call: Call<'_>, image: Image) -> Map<String, Value> {
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
