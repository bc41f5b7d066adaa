//! Tags of images and of connectors: one operation, two services.

use api::connector::v1::{
    GetNetworkConnectorRequest, TagNetworkConnectorRequest, UntagNetworkConnectorRequest,
};
use api::image::v1::{GetImageRequest, TagImageRequest, UntagImageRequest};
use aws_model::{ErrorClass, Rejection};
use serde_json::Map;

use super::{Answer, Call, map, members};
use crate::aws::services::ask;

/// What a resource's ARN is of.
enum Tagged {
    Image(String),
    Connector(String),
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let tags = match tagged(call)? {
        Tagged::Image(image_identifier) => {
            let message = GetImageRequest { image_identifier };
            let found = ask!(call.services, call.request_id, images.get_image, message).await;
            call.answered(found)?.image.ok_or_else(|| call.lacks("image"))?.tags
        }
        Tagged::Connector(identifier) => {
            let message = GetNetworkConnectorRequest { identifier };
            let found = ask!(call.services, call.request_id, connectors.get_network_connector, message).await;
            call.answered(found)?.connector.ok_or_else(|| call.lacks("connector"))?.tags
        }
    };
    Ok(members([("Tags", map(tags))]))
}

pub(super) async fn tag(call: &Call<'_>) -> Answer {
    let tags = call.members().map("Tags");
    let done = match tagged(call)? {
        Tagged::Image(image_identifier) => {
            let message = TagImageRequest { image_identifier, tags };
            ask!(call.services, call.request_id, images.tag_image, message).await.map(drop)
        }
        Tagged::Connector(identifier) => {
            let message = TagNetworkConnectorRequest { identifier, tags };
            ask!(call.services, call.request_id, connectors.tag_network_connector, message).await.map(drop)
        }
    };
    call.answered(done).map(|()| Map::new())
}

pub(super) async fn untag(call: &Call<'_>) -> Answer {
    let tag_keys = call.members().strings("TagKeys");
    let done = match tagged(call)? {
        Tagged::Image(image_identifier) => {
            let message = UntagImageRequest { image_identifier, tag_keys };
            ask!(call.services, call.request_id, images.untag_image, message).await.map(drop)
        }
        Tagged::Connector(identifier) => {
            let message = UntagNetworkConnectorRequest { identifier, tag_keys };
            ask!(call.services, call.request_id, connectors.untag_network_connector, message).await.map(drop)
        }
    };
    call.answered(done).map(|()| Map::new())
}

fn tagged(call: &Call<'_>) -> Result<Tagged, Rejection> {
    let arn = call.members().string("Resource");
    match arn.split(':').nth(5) {
        Some("microvm-image") => Ok(Tagged::Image(arn)),
        Some("network-connector") => Ok(Tagged::Connector(arn)),
        // The older tag API knows functions, layers and more; nobody has any here.
        _ => {
            let message = format!("The resource {arn} does not exist.");
            Err(Rejection::new(ErrorClass::ResourceNotFound, message))
        }
    }
}
