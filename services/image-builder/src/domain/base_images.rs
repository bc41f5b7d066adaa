//! The platform's base images: their names, ARNs and versions, what a request
//! means by them, and how the API shows them.

use std::collections::BTreeMap;

use api::image::v1::{BaseImage, BaseImageVersion, BaseImageVersionStatus, ImageConfiguration};
use model::{IdError, ImageArn, ImageName, PLATFORM_ACCOUNT};

/// Other names of bases: what they are called, and which base they stand for.
pub type Aliases = BTreeMap<String, String>;

/// The base images there are, newest version of each last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bases(pub BTreeMap<String, Vec<u64>>);

impl Bases {
    /// The version of `name` that `version` (or the newest) means.
    pub fn resolve(&self, name: &str, version: Option<&str>) -> Option<u64> {
        let versions = self.0.get(name)?;
        match version {
            None => versions.iter().copied().max(),
            Some(text) => number(text).filter(|number| versions.contains(number)),
        }
    }

    pub fn sentence(&self) -> String {
        if self.0.is_empty() {
            return "There are no local base images yet; `torpor base build debian-12` makes one.".to_owned();
        }
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        format!("Local base images: {}.", names.join(", "))
    }
}

pub fn arn(region: &str, name: &ImageName) -> String {
    ImageArn { region: region.to_owned(), account: PLATFORM_ACCOUNT.to_owned(), name: name.clone() }
        .to_string()
}

/// The name in a base's name or ARN.
pub fn name(identifier: &str, region: &str) -> Result<ImageName, IdError> {
    model::ImageIdentifier::parse(identifier, region, PLATFORM_ACCOUNT).map(model::ImageIdentifier::into_name)
}

/// The number a base's version is written as: "1" and "1.0" are the same.
pub fn number(text: &str) -> Option<u64> {
    let text = text.strip_suffix(".0").unwrap_or(text);
    let number: u64 = text.parse().ok()?;
    // One spelling per version: no signs, no leading zeros.
    (number.to_string() == text).then_some(number)
}

/// The base that `name` stands for.
pub fn stored_name<'a>(name: &'a str, aliases: &'a Aliases) -> &'a str {
    aliases.get(name).map_or(name, String::as_str)
}

/// Name of the base that a complete configuration names.
pub fn base_name(configuration: &ImageConfiguration) -> &str {
    let arn = &configuration.base_image_arn;
    arn.rsplit_once(':').map_or(arn, |(_, name)| name)
}

/// Version of the base that a complete configuration names.
pub fn base_version(configuration: &ImageConfiguration) -> Option<u64> {
    number(&configuration.base_image_version)
}

/// One entry per base and per other name of it, by name: its newest version, made since its first.
/// `versions` has an entry per version, in any order.
pub fn bases(versions: Vec<BaseImage>, aliases: &Aliases, region: &str) -> Vec<BaseImage> {
    let mut by_name: BTreeMap<String, BTreeMap<u64, BaseImage>> = BTreeMap::new();
    for version in versions {
        if let Some(number) = number(&version.version) {
            by_name.entry(version.name.clone()).or_default().insert(number, version);
        }
    }
    for (alias, stored) in aliases {
        if let Some(versions) = by_name.get(stored).cloned() {
            by_name.entry(alias.clone()).or_insert(versions);
        }
    }
    by_name
        .into_iter()
        .filter_map(|(name, versions)| {
            let name: ImageName = name.parse().ok()?;
            let first = versions.first_key_value()?.1.create_time;
            let (_, newest) = versions.into_iter().next_back()?;
            Some(BaseImage {
                image_arn: arn(region, &name),
                name: name.to_string(),
                create_time: first,
                update_time: newest.create_time,
                ..newest
            })
        })
        .collect()
}

/// The versions of the base `stored`, newest first, shown under the name
/// `shown`. `versions` has an entry per version of any base.
pub fn versions(
    versions: Vec<BaseImage>,
    stored: &str,
    shown: &ImageName,
    region: &str,
) -> Vec<BaseImageVersion> {
    let mut found: Vec<(u64, BaseImageVersion)> = versions
        .into_iter()
        .filter(|version| version.name == stored)
        .filter_map(|version| {
            let number = number(&version.version)?;
            let shown = BaseImageVersion {
                name: shown.to_string(),
                image_arn: arn(region, shown),
                version: number.to_string(),
                status: BaseImageVersionStatus::Available.into(),
                create_time: version.create_time,
                update_time: version.create_time,
            };
            Some((number, shown))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, version)| version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, version: &str, seconds: i64) -> BaseImage {
        BaseImage {
            name: name.to_owned(),
            version: version.to_owned(),
            create_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..BaseImage::default()
        }
    }

    #[test]
    fn bases_show_their_newest_version_and_their_whole_life() {
        let entries =
            vec![entry("b", "2", 20), entry("b", "10", 100), entry("b", "1", 10), entry("a", "1", 5)];
        let aliases = Aliases::from([("z".to_owned(), "b".to_owned()), ("none".to_owned(), "c".to_owned())]);
        let bases = bases(entries.clone(), &aliases, "us-east-1");
        let shown: Vec<_> = bases
            .iter()
            .map(|base| {
                let seconds = |time: Option<prost_types::Timestamp>| time.unwrap().seconds;
                (
                    base.name.as_str(),
                    base.version.as_str(),
                    seconds(base.create_time),
                    seconds(base.update_time),
                )
            })
            .collect();
        assert_eq!(shown, [("a", "1", 5, 5), ("b", "10", 10, 100), ("z", "10", 10, 100)]);
        assert_eq!(bases[1].image_arn, "arn:aws:lambda:us-east-1:aws:microvm-image:b");
        assert_eq!(bases[2].image_arn, "arn:aws:lambda:us-east-1:aws:microvm-image:z");
        let versions = versions(entries, "b", &"alias".parse().unwrap(), "us-east-1");
        let numbers: Vec<&str> = versions.iter().map(|version| version.version.as_str()).collect();
        assert_eq!(numbers, ["10", "2", "1"]);
        assert_eq!(versions[0].image_arn, "arn:aws:lambda:us-east-1:aws:microvm-image:alias");
    }

    #[test]
    fn a_version_has_two_spellings_and_no_more() {
        for (text, expected) in [
            ("1", Some(1)),
            ("1.0", Some(1)),
            ("0", Some(0)),
            ("999", Some(999)),
            ("01", None),
            ("+1", None),
            ("1.1", None),
            ("1.0.0", None),
            ("", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn a_base_is_named_by_name_or_by_its_own_arn() {
        for (text, good) in [
            ("debian-12", true),
            ("arn:aws:lambda:us-east-1:aws:microvm-image:debian-12", true),
            ("arn:aws:lambda:eu-west-1:aws:microvm-image:debian-12", false),
            ("arn:aws:lambda:us-east-1:000000000000:microvm-image:debian-12", false),
            ("arn:aws:lambda:us-east-1:aws:microvm-image/debian-12", false),
            ("", false),
        ] {
            assert_eq!(name(text, "us-east-1").is_ok(), good, "{text}");
        }
    }
}
