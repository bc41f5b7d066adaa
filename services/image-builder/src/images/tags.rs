//! Tags of images. They change nothing but the image's own record.

use std::collections::HashMap;

use api::image::v1::{Image, ImageState};
use model::{Violations, limits};

use super::{Images, already, retry_on_conflict};
use crate::adapters::catalog::Change;
use crate::domain::configuration::{check_tag_key, check_tags};
use crate::refusal::Refusal;

impl Images {
    /// Sets tags, replacing those of the same key.
    pub async fn tag(&self, identifier: &str, tags: &HashMap<String, String>) -> Result<Image, Refusal> {
        let mut violations = Violations::default();
        check_tags(tags, &mut violations);
        violations.finish().map_err(Refusal::Invalid)?;
        let add = |present: &mut HashMap<String, String>| {
            present.extend(tags.iter().map(|(key, value)| (key.clone(), value.clone())));
        };
        retry_on_conflict(|| self.try_change_tags(identifier, &add)).await
    }

    /// Removes tags; keys that are not there do not matter.
    pub async fn untag(&self, identifier: &str, keys: &[String]) -> Result<Image, Refusal> {
        let mut violations = Violations::default();
        for (index, key) in keys.iter().enumerate() {
            check_tag_key(&format!("tagKeys[{index}]"), key, &mut violations);
        }
        violations.finish().map_err(Refusal::Invalid)?;
        let remove = |present: &mut HashMap<String, String>| {
            present.retain(|key, _| !keys.contains(key));
        };
        retry_on_conflict(|| self.try_change_tags(identifier, &remove)).await
    }

    async fn try_change_tags(
        &self,
        identifier: &str,
        change: &(dyn Fn(&mut HashMap<String, String>) + Sync),
    ) -> Result<Image, Refusal> {
        let mut image = self.get(identifier).await?;
        if image.value.state() == ImageState::Deleting {
            return Err(already(&image.value));
        }
        let before = image.value.tags.clone();
        change(&mut image.value.tags);
        if image.value.tags == before {
            return Ok(image.value);
        }
        if image.value.tags.len() > limits::TAGS_MAX {
            let text = format!("must be at most {}, those of the image included", limits::TAGS_MAX);
            return Err(Refusal::invalid("tags", text));
        }
        image.value.update_time = Some(api::timestamp(self.clock.now()));
        self.catalog.apply(Change::new().image(&image.value, Some(image.revision))).await?;
        tracing::info!(image = image.value.name, tags = image.value.tags.len(), "image tags");
        Ok(image.value)
    }
}
