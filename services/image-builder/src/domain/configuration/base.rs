//! The platform's base that a configuration names.

use api::image::v1::ImageConfiguration;
use model::Violations;

use super::Offer;
use crate::domain::base_images::{self, stored_name};

/// Checks the base and writes it in full: its ARN, its version as "1.0".
pub(super) fn complete(given: &mut ImageConfiguration, offer: &Offer<'_>, violations: &mut Violations) {
    if given.base_image_arn.is_empty() {
        given.base_image_arn = offer.default_base.to_owned();
    }
    let asked = given.base_image_version.as_str();
    let version = Some(asked).filter(|version| !version.is_empty());
    let found = base_images::name(&given.base_image_arn, offer.region).ok().and_then(|name| {
        let stored = stored_name(name.as_str(), offer.base_aliases);
        Some((offer.bases.resolve(stored, version)?, name))
    });
    match found {
        Some((number, name)) => {
            given.base_image_arn = base_images::arn(offer.region, &name);
            given.base_image_version = format!("{number}.0");
        }
        None => {
            let message = format!(
                "No managed MicroVM Image with arn {} and version {} is available. {}",
                given.base_image_arn,
                version.unwrap_or("latest"),
                offer.bases.sentence()
            );
            violations.add("baseImageArn", message);
        }
    }
}
