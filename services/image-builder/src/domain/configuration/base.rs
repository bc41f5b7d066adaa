//! The platform's base that a configuration names.

use api::image::v1::ImageConfiguration;
use model::Violations;

use super::Offer;
use crate::domain::managed;

/// Checks the base and writes it in full: its ARN, its version as "1.0".
pub(super) fn complete(given: &mut ImageConfiguration, offer: &Offer<'_>, violations: &mut Violations) {
    if given.base_image_arn.is_empty() {
        given.base_image_arn = offer.default_base.to_owned();
    }
    let asked = given.base_image_version.as_str();
    let version = Some(asked).filter(|version| !version.is_empty());
    let found = managed::name(&given.base_image_arn, offer.region).ok().and_then(|name| {
        let stored = stored_name(name.as_str(), offer.base_aliases);
        Some((offer.bases.resolve(stored, version)?, name))
    });
    match found {
        Some((number, name)) => {
            given.base_image_arn = managed::arn(offer.region, &name);
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

/// The base that `name` stands for.
#[must_use]
pub fn stored_name<'a>(name: &'a str, aliases: &'a super::Aliases) -> &'a str {
    aliases.get(name).map_or(name, String::as_str)
}

/// Name of the base that a complete configuration names.
#[must_use]
pub fn base_name(configuration: &ImageConfiguration) -> &str {
    let arn = &configuration.base_image_arn;
    arn.rsplit_once(':').map_or(arn, |(_, name)| name)
}

/// Version of the base that a complete configuration names.
#[must_use]
pub fn base_version(configuration: &ImageConfiguration) -> Option<u64> {
    managed::number(&configuration.base_image_version)
}
