//! Tags of images and of connectors.

use std::collections::HashMap;

use api::connector::v1::{TagNetworkConnectorRequest, UntagNetworkConnectorRequest};
use api::image::v1::{TagImageRequest, UntagImageRequest};
use aws_model::{ErrorClass, Input, Rejection};
use serde_json::Map;

use super::{Answer, Call, connectors, images, map, members};
use crate::aws::members::Members;

/// What a resource's ARN is of.
enum Tagged {
    Image(String),
    Connector(String),
}

/// ListTags.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let tags: HashMap<String, String> = match tagged(&input)? {
        Tagged::Image(arn) => images::find(call, arn).await?.tags,
        Tagged::Connector(arn) => connectors::find(call, arn).await?.0.tags,
    };
    Ok(members([("Tags", map(tags))]))
}

/// TagResource.
pub async fn tag(call: Call<'_>, input: Input) -> Answer {
    let tagged = tagged(&input)?;
    let tags = Members::from(input.into_members()).map("Tags");
    match tagged {
        Tagged::Image(image_identifier) => {
            let message = TagImageRequest { image_identifier, tags };
            call.services
                .images(call.request_id, message, |mut client, request| async move {
                    client.tag_image(request).await
                })
                .await?;
        }
        Tagged::Connector(identifier) => {
            let message = TagNetworkConnectorRequest { identifier, tags };
            call.services
                .connectors(call.request_id, message, |mut client, request| async move {
                    client.tag_network_connector(request).await
                })
                .await?;
        }
    }
    Ok(Map::new())
}

/// UntagResource.
pub async fn untag(call: Call<'_>, input: Input) -> Answer {
    let tagged = tagged(&input)?;
    let tag_keys = Members::from(input.into_members()).texts("TagKeys");
    match tagged {
        Tagged::Image(image_identifier) => {
            let message = UntagImageRequest { image_identifier, tag_keys };
            call.services
                .images(call.request_id, message, |mut client, request| async move {
                    client.untag_image(request).await
                })
                .await?;
        }
        Tagged::Connector(identifier) => {
            let message = UntagNetworkConnectorRequest { identifier, tag_keys };
            call.services
                .connectors(call.request_id, message, |mut client, request| async move {
                    client.untag_network_connector(request).await
                })
                .await?;
        }
    }
    Ok(Map::new())
}

fn tagged(input: &Input) -> Result<Tagged, Rejection> {
    let arn = input.text("Resource").unwrap_or_default();
    match arn.split(':').nth(5) {
        Some("microvm-image") => Ok(Tagged::Image(arn.to_owned())),
        Some("network-connector") => Ok(Tagged::Connector(arn.to_owned())),
        // The older tag API knows functions, layers and more; nobody has any here.
        _ => {
            let message = format!("The resource {arn} does not exist.");
            Err(Rejection::new(ErrorClass::ResourceNotFound, message))
        }
    }
}
