//! Images and versions as image-builder records them, kept in memory so that a
//! launch needs no call to anybody. Read only.
//!
//! ```text
//! images/<name>              torpor.image.v1.Image
//! versions/<name>/<version>  torpor.image.v1.ImageVersion
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::common::v1::{Architecture, Hooks};
use api::image::v1::{Image, ImageState, ImageVersion, SnapshotRef, VersionState, VersionStatus};
use model::{ImageName, VersionNumber};
use prost::Message as _;

/// What a launch needs of a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Launchable {
    pub version: VersionNumber,
    pub snapshot: SnapshotRef,
    pub hooks: Option<Hooks>,
    /// Whether connections end at a suspend; otherwise they sleep.
    pub end_connections: bool,
    /// Memory the host accounts for, MiB.
    pub baseline_mib: u32,
    /// CPU it was built for; unspecified means that of the fleet.
    pub architecture: Architecture,
}

/// A record that cannot be read; the key is ignored until it is written again.
#[derive(Debug, thiserror::Error)]
#[error("{key} is not a record of image-builder")]
pub struct Unreadable {
    pub key: String,
}

#[derive(Debug)]
struct KnownImage {
    /// Its UUID, which tells it from a later one of the same name.
    id: String,
    state: ImageState,
    tags: HashMap<String, String>,
}

impl KnownImage {
    /// Whether it is not being deleted.
    fn is_usable(&self) -> bool {
        !matches!(self.state, ImageState::Deleting | ImageState::Deleted)
    }
}

/// Every image and the versions that may be launched.
#[derive(Debug, Default)]
pub struct Catalog {
    images: HashMap<ImageName, KnownImage>,
    versions: HashMap<ImageName, BTreeMap<VersionNumber, Arc<Launchable>>>,
}

impl Catalog {
    /// Forgets every image; what follows is a new listing.
    pub fn clear_images(&mut self) {
        self.images.clear();
    }

    /// Forgets every version; what follows is a new listing.
    pub fn clear_versions(&mut self) {
        self.versions.clear();
    }

    pub fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable> {
        let unreadable = || Unreadable { key: key.to_owned() };
        // Whatever the key said before, it does not say now.
        self.delete(key);
        if let Some(name) = key.strip_prefix("images/") {
            let name: ImageName = name.parse().map_err(|_| unreadable())?;
            let image = Image::decode(value).map_err(|_| unreadable())?;
            let state = image.state();
            self.images.insert(name, KnownImage { id: image.id, state, tags: image.tags });
            return Ok(());
        }
        let (name, version) = version_key(key).ok_or_else(unreadable)?;
        let record = ImageVersion::decode(value).map_err(|_| unreadable())?;
        if let Some(launchable) = launchable(version, record) {
            self.versions.entry(name).or_default().insert(version, Arc::new(launchable));
        }
        Ok(())
    }

    pub fn delete(&mut self, key: &str) {
        if let Some(name) = key.strip_prefix("images/") {
            if let Ok(name) = name.parse::<ImageName>() {
                self.images.remove(&name);
            }
        } else if let Some((name, version)) = version_key(key)
            && let Some(versions) = self.versions.get_mut(&name)
        {
            versions.remove(&version);
            if versions.is_empty() {
                self.versions.remove(&name);
            }
        }
    }

    /// The UUID of an image that exists, though it may be on its way out.
    pub fn image_id(&self, image: &ImageName) -> Option<&str> {
        let known = self.images.get(image).filter(|known| known.state != ImageState::Deleted)?;
        Some(&known.id)
    }

    /// The tags of every image there is.
    pub fn tags(&self) -> impl Iterator<Item = (&ImageName, &HashMap<String, String>)> {
        self.images.iter().map(|(name, known)| (name, &known.tags))
    }

    /// The UUID of an image that is not being deleted.
    pub fn usable_image_id(&self, image: &ImageName) -> Option<&str> {
        let known = self.images.get(image).filter(|known| known.is_usable())?;
        Some(&known.id)
    }

    /// The version to launch: the given one, or the newest, if it may be.
    pub fn resolve(&self, image: &ImageName, version: Option<VersionNumber>) -> Option<Arc<Launchable>> {
        self.usable_image_id(image)?;
        let versions = self.versions.get(image)?;
        match version {
            Some(version) => versions.get(&version).cloned(),
            None => versions.last_key_value().map(|(_, newest)| Arc::clone(newest)),
        }
    }
}

fn version_key(key: &str) -> Option<(ImageName, VersionNumber)> {
    let (name, version) = key.strip_prefix("versions/")?.split_once('/')?;
    Some((name.parse().ok()?, version.parse().ok()?))
}

/// `None` when the version may not be launched.
fn launchable(version: VersionNumber, record: ImageVersion) -> Option<Launchable> {
    if record.state() != VersionState::Successful || record.status() != VersionStatus::Active {
        return None;
    }
    let snapshot = record.snapshot?;
    let configuration = record.configuration.unwrap_or_default();
    let asked = configuration.resources.map_or(0, |resources| resources.minimum_memory_mib);
    Some(Launchable {
        version,
        // A version that does not say its baseline is accounted for in full.
        baseline_mib: if asked == 0 { snapshot.memory_mib } else { asked },
        hooks: configuration.hooks,
        end_connections: configuration.end_connections_at_suspend,
        architecture: configuration
            .cpu_configurations
            .first()
            .map_or(Architecture::Unspecified, |cpu| cpu.architecture()),
        snapshot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::image::v1::ImageConfiguration;

    fn version(status: VersionStatus, state: VersionState) -> Vec<u8> {
        ImageVersion {
            status: status.into(),
            state: state.into(),
            snapshot: Some(SnapshotRef { memory_mib: 2048, ..Default::default() }),
            configuration: Some(ImageConfiguration {
                end_connections_at_suspend: true,
                ..Default::default()
            }),
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn image(state: ImageState) -> Vec<u8> {
        Image { state: state.into(), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn the_newest_active_version_is_launched() {
        use VersionState::{Failed, Successful};
        use VersionStatus::{Active, Inactive};
        let name: ImageName = "app".parse().unwrap();
        let mut catalog = Catalog::default();
        catalog.put("images/app", &image(ImageState::Updated)).unwrap();
        assert!(catalog.resolve(&name, None).is_none(), "no version yet");
        for (key, status, state) in [
            ("versions/app/1.0", Active, Successful),
            ("versions/app/2.0", Active, Successful),
            ("versions/app/9.0", Inactive, Successful),
            ("versions/app/10.0", Active, Failed),
        ] {
            catalog.put(key, &version(status, state)).unwrap();
        }
        let resolve = |catalog: &Catalog, version: Option<&str>| {
            let found = catalog.resolve(&name, version.map(|text| text.parse().unwrap()));
            found.map(|found| found.version.to_string())
        };
        assert_eq!(resolve(&catalog, None).as_deref(), Some("2.0"));
        let newest = catalog.resolve(&name, None).unwrap();
        assert_eq!((newest.baseline_mib, newest.end_connections), (2048, true));
        assert_eq!(resolve(&catalog, Some("1.0")).as_deref(), Some("1.0"));
        assert_eq!(resolve(&catalog, Some("9.0")), None, "retired");
        catalog.put("versions/app/2.0", &version(Inactive, Successful)).unwrap();
        assert_eq!(resolve(&catalog, None).as_deref(), Some("1.0"));
        catalog.put("images/app", &image(ImageState::Deleting)).unwrap();
        assert_eq!(resolve(&catalog, None), None);
        assert!(catalog.put("versions/app/x", b"").is_err());
        assert!(catalog.put("images/app", b"\xff\xff").is_err());
        assert_eq!(resolve(&catalog, None), None, "an unreadable record counts as absent");
    }
}
