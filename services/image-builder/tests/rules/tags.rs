//! Tags of images.

use std::collections::HashMap;

use super::*;

fn tags(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn tag(cell: &Cell<'_>, image: &str, tags: HashMap<String, String>) -> Result<Image, Status> {
    let request = TagImageRequest { image_identifier: image.to_owned(), tags };
    let answer = cell.client.clone().tag_image(request).await?;
    Ok(answer.into_inner().image.unwrap())
}

async fn untag(cell: &Cell<'_>, image: &str, keys: &[&str]) -> Result<Image, Status> {
    let request = UntagImageRequest {
        image_identifier: image.to_owned(),
        tag_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
    };
    let answer = cell.client.clone().untag_image(request).await?;
    Ok(answer.into_inner().image.unwrap())
}

#[tokio::test]
async fn tags_of_images() {
    run![
        tags_merge_and_build_nothing,
        fifty_tags_in_all,
        tags_have_a_form_and_an_image,
        tags_set_at_the_same_time_are_all_there
    ];
}

async fn tags_merge_and_build_nothing(cell: &Cell<'_>) {
    let building = unbuilt("2.0", VersionState::InProgress);
    cell.seed("app", ImageState::Updating, &[built("1.0"), building]).await;
    tag(cell, &arn("app"), tags(&[("a", "1"), ("b", "2")])).await.unwrap();
    let image = tag(cell, "app", tags(&[("b", "3"), ("c", "")])).await.unwrap();
    assert_eq!(image.tags, tags(&[("a", "1"), ("b", "3"), ("c", "")]));
    let image = untag(cell, "app", &["a", "c", "not-there"]).await.unwrap();
    assert_eq!(image.tags, tags(&[("b", "3")]));
    let image = cell.get("app").await;
    assert_eq!((image.tags.clone(), image.state()), (tags(&[("b", "3")]), ImageState::Updating));
    assert_eq!(cell.versions("app").await, ["2.0", "1.0"]);
    assert!(cell.catalog.queue().await.unwrap().is_empty(), "nothing is built");
}

async fn fifty_tags_in_all(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Created, &[built("1.0")]).await;
    let many = |from: usize, to: usize| (from..to).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    tag(cell, "app", many(0, 49)).await.unwrap();
    refused(
        tag(cell, "app", many(49, 51)).await,
        "INVALID_ARGUMENT",
        "tags: must be at most 50, those of the image included",
    );
    assert_eq!(cell.get("app").await.tags.len(), 49);
    tag(cell, "app", many(40, 50)).await.unwrap();
    assert_eq!(cell.get("app").await.tags.len(), 50);
}

async fn tags_have_a_form_and_an_image(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Created, &[built("1.0")]).await;
    refused(
        tag(cell, "app", tags(&[("k;", "v")])).await,
        "INVALID_ARGUMENT",
        "tags.k;: the key must have 1 to 128 letters, digits, spaces or _.:/=+-@",
    );
    refused(
        untag(cell, "app", &["good", ""]).await,
        "INVALID_ARGUMENT",
        "tagKeys[1]: the key must have 1 to 128 letters, digits, spaces or _.:/=+-@",
    );
    refused(
        tag(cell, "none", tags(&[("k", "v")])).await,
        "NOT_FOUND",
        &format!("MicroVMImage not found for MicroVMImageID: {}", arn("none")),
    );
    cell.seed("going", ImageState::Deleting, &[]).await;
    refused(
        tag(cell, "going", tags(&[("k", "v")])).await,
        "STATE_CONFLICT",
        "MicroVM Image is already in state: DELETING",
    );
}

async fn tags_set_at_the_same_time_are_all_there(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Created, &[built("1.0")]).await;
    let keys: Vec<String> = (0..4).map(|n| format!("k{n}")).collect();
    let calls = keys.iter().map(|key| tag(cell, "app", tags(&[(key, "v")])));
    for tagged in futures::future::join_all(calls).await {
        tagged.unwrap();
    }
    assert_eq!(cell.get("app").await.tags.len(), 4);
}
