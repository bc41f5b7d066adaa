//! A request to build, and the client token that makes it idempotent.

use std::collections::HashMap;

use api::image::v1::{Image, ImageConfiguration, ImageVersion};
use prost::Message as _;

use crate::adapters::catalog::TokenEntry;
use crate::refusal::Refusal;

/// A request to build: a new image, or a new version of one.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    pub name: String,
    pub configuration: Option<ImageConfiguration>,
    /// Tags; of a new image only.
    pub tags: HashMap<String, String>,
    /// Empty means none.
    pub client_token: String,
    pub create: bool,
}

impl BuildRequest {
    /// Which calls share client tokens with this one.
    pub(super) fn kind(&self) -> &'static str {
        if self.create { "create" } else { "update" }
    }

    /// Tells two requests with the same client token apart: the digest of a request without its token. Maps
    /// have no order on the wire, so they are fed in sorted.
    pub(super) fn digest(&self) -> String {
        let mut configuration = self.configuration.clone().unwrap_or_default();
        let variables = std::mem::take(&mut configuration.environment_variables);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[u8::from(self.create)]);
        let mut feed = |text: &[u8]| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        feed(self.name.as_bytes());
        feed(&configuration.encode_to_vec());
        for map in [&variables, &self.tags] {
            let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
            feed(&(sorted.len() as u64).to_le_bytes());
            for (key, value) in sorted {
                feed(key.as_bytes());
                feed(value.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The answer that the token's first use got.
    pub(super) fn replay(&self, entry: TokenEntry, digest: &str) -> Result<(Image, ImageVersion), Refusal> {
        if entry.request_digest != digest {
            return Err(Refusal::TokenConflict);
        }
        let (Some(image), Some(mut version)) = (entry.image, entry.version) else {
            return Err(Refusal::Internal("a client token without its answer".to_owned()));
        };
        if let (Some(answered), Some(asked)) = (&mut version.configuration, &self.configuration) {
            // The request has the variables of the first use, or its digest would differ.
            answered.environment_variables.clone_from(&asked.environment_variables);
        }
        Ok((image, version))
    }
}

/// The record of a token. It holds no environment variables, which are secrets:
/// a caller that repeats the call sends them again.
pub(super) fn token_entry(digest: &str, image: &Image, version: &ImageVersion) -> TokenEntry {
    let mut version = version.clone();
    if let Some(configuration) = &mut version.configuration {
        configuration.environment_variables.clear();
    }
    TokenEntry { request_digest: digest.to_owned(), image: Some(image.clone()), version: Some(version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_digest_whatever_its_maps_order() {
        let request = |pairs: &[(&str, &str)]| BuildRequest {
            name: "a".to_owned(),
            configuration: Some(ImageConfiguration {
                environment_variables: pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
                ..ImageConfiguration::default()
            }),
            tags: HashMap::new(),
            client_token: "t".to_owned(),
            create: true,
        };
        let one = request(&[("A", "1"), ("B", "2"), ("C", "3")]);
        let other = request(&[("C", "3"), ("B", "2"), ("A", "1")]);
        assert_eq!(one.digest(), BuildRequest { client_token: "u".to_owned(), ..other }.digest());
        assert_ne!(one.digest(), request(&[("A", "1"), ("B", "2")]).digest());
        assert_ne!(one.digest(), BuildRequest { create: false, ..one.clone() }.digest());
    }
}
