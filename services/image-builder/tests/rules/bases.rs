//! Base images and their versions.

use super::*;
use image_builder::adapters::catalog::BaseEntry;

const ARN: &str = "arn:aws:lambda:us-east-1:aws:microvm-image:debian-12";

async fn add(cell: &Cell<'_>, version: &str) {
    let base = BaseImage {
        name: "debian-12".to_owned(),
        version: version.to_owned(),
        create_time: Some(prost_types::Timestamp { seconds: version.parse().unwrap(), nanos: 0 }),
        ..BaseImage::default()
    };
    let entry = BaseEntry { base: Some(base), ..BaseEntry::default() };
    cell.catalog.apply(Change::new().new_base(&entry)).await.unwrap();
}

async fn versions(
    cell: &Cell<'_>,
    base: &str,
    page_size: u32,
    page_token: String,
) -> Result<ListBaseImageVersionsResponse, Status> {
    let request =
        ListBaseImageVersionsRequest { base_image_identifier: base.to_owned(), page_size, page_token };
    let answer = cell.client.clone().list_base_image_versions(request).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn bases_and_their_versions() {
    run![
        an_alias_has_the_versions_of_its_base,
        a_base_that_is_not_there_is_named,
        bases_are_listed_once_and_their_versions_newest_first
    ];
}

async fn bases_are_listed_once_and_their_versions_newest_first(cell: &Cell<'_>) {
    for version in ["2", "10"] {
        add(cell, version).await;
    }
    let request = ListBaseImagesRequest::default();
    let bases = cell.client.clone().list_base_images(request).await.unwrap();
    let bases = bases.into_inner().base_images;
    let shown: Vec<_> = bases.iter().map(|base| (base.image_arn.as_str(), base.version.as_str())).collect();
    assert_eq!(shown, [(&*ARN.replace("debian-12", "al2023-1"), "10"), (ARN, "10")]);
    assert!(bases.iter().all(|base| base.update_time.unwrap().seconds == 10));
    for identifier in ["debian-12", ARN] {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let page = versions(cell, identifier, 2, token).await.unwrap();
            found.extend(page.versions);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let numbers: Vec<&str> = found.iter().map(|version| version.version.as_str()).collect();
        assert_eq!(numbers, ["10", "2", "1"]);
        for version in found {
            assert_eq!(version.image_arn, ARN);
            assert_eq!(version.status(), BaseImageVersionStatus::Available);
        }
    }
}

async fn an_alias_has_the_versions_of_its_base(cell: &Cell<'_>) {
    add(cell, "2").await;
    let arn = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1";
    let found = versions(cell, arn, 0, String::new()).await.unwrap().versions;
    let shown: Vec<_> =
        found.iter().map(|version| (version.image_arn.as_str(), version.version.as_str())).collect();
    assert_eq!(shown, [(arn, "2"), (arn, "1")]);
}

async fn a_base_that_is_not_there_is_named(cell: &Cell<'_>) {
    let none = "arn:aws:lambda:us-east-1:aws:microvm-image:none";
    for identifier in ["none", none] {
        refused(
            versions(cell, identifier, 0, String::new()).await,
            "NOT_FOUND",
            &format!("MicroVMImage not found for MicroVMImageID: {none}"),
        );
    }
    refused(
        versions(cell, "arn:aws:lambda", 0, String::new()).await,
        "INVALID_ARGUMENT",
        "Invalid ARN format: arn:aws:lambda",
    );
    refused(versions(cell, ARN, 51, String::new()).await, "INVALID_ARGUMENT", "page_size: must be 0 to 50");
}
