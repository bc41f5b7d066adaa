//! What may stand in an artifact. Names, kinds and links are checked here, before anything is written; sizes
//! are checked again while unpacking, by the bytes that really come out.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::ArchiveSettings;

/// Longest path in an archive, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Longest component of a path, in bytes.
const COMPONENT_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const LINK_BYTES_MAX: u64 = 4096;
/// Below this many unpacked bytes no compression ratio is suspicious.
const RATIO_FREE_BYTES: u64 = 1 << 20;
/// The file every artifact must have at its root.
pub const DOCKERFILE: &str = "Dockerfile";

/// Why an artifact is refused. The text is a sentence for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Broken, or with an entry that has no place in an artifact.
    #[error("The artifact is not a usable zip archive: {0}.")]
    Invalid(String),
    #[error("The artifact is too large: {0}.")]
    TooLarge(String),
    #[error("The artifact has no file named Dockerfile at its root{0}.")]
    DockerfileNotFound(String),
}

/// What an entry is, from the file type bits of its Unix mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Link,
}

const TYPE_MASK: u32 = 0o170_000;

impl Kind {
    /// Reads a Unix mode; archives from other systems have none.
    pub fn of(path: &str, mode: Option<u32>) -> Result<Self, Refusal> {
        let by_name = if path.ends_with('/') { Self::Directory } else { Self::File };
        match mode.unwrap_or(0) & TYPE_MASK {
            0 => Ok(by_name),
            0o100_000 if by_name == Self::File => Ok(Self::File),
            0o040_000 => Ok(Self::Directory),
            0o120_000 if by_name == Self::File => Ok(Self::Link),
            _ => Err(Refusal::Invalid(format!("'{}' is a device or another special file", shown(path)))),
        }
    }
}

/// Checks the entries of one archive, in order.
#[derive(Debug)]
pub struct Checker<'a> {
    limits: &'a ArchiveSettings,
    seen: BTreeMap<String, Kind>,
    parents: BTreeSet<String>,
    misplaced: Option<String>,
}

impl<'a> Checker<'a> {
    /// A checker for an archive of `entries` entries.
    pub fn new(limits: &'a ArchiveSettings, entries: usize) -> Result<Self, Refusal> {
        if entries > limits.entries_max {
            return Err(Refusal::TooLarge(format!("it has more than {} entries", limits.entries_max)));
        }
        Ok(Self { limits, seen: BTreeMap::new(), parents: BTreeSet::new(), misplaced: None })
    }

    /// Checks one entry's name and kind. Returns its path relative to the root, without a trailing slash.
    pub fn entry(&mut self, name: &str, mode: Option<u32>) -> Result<(String, Kind), Refusal> {
        let kind = Kind::of(name, mode)?;
        let path = name.strip_suffix('/').unwrap_or(name);
        check_path(path)?;
        if self.seen.insert(path.to_owned(), kind).is_some() {
            return Err(Refusal::Invalid(format!("'{}' is in it twice", shown(path))));
        }
        if path.ends_with("/Dockerfile") && self.misplaced.is_none() {
            self.misplaced = Some(path.to_owned());
        }
        self.parents.extend(ancestors(path).map(str::to_owned));
        if self.seen.len() + self.parents.len() > self.limits.entries_max.saturating_mul(2) {
            return Err(Refusal::TooLarge(format!("it has more than {} entries", self.limits.entries_max)));
        }
        Ok((path.to_owned(), kind))
    }

    /// Checks the archive as a whole, after its last entry.
    pub fn finish(&self) -> Result<(), Refusal> {
        // Nothing is ever written through a link, so links cannot lead out.
        let covered = self
            .parents
            .iter()
            .find(|parent| self.seen.get(parent.as_str()).is_some_and(|kind| *kind != Kind::Directory));
        if let Some(parent) = covered {
            return Err(Refusal::Invalid(format!("'{}' is both a file and a directory", shown(parent))));
        }
        if self.seen.get(DOCKERFILE) != Some(&Kind::File) {
            let hint = self.misplaced.as_deref().map(|path| {
                format!(" (it has '{}'; zip the files, not the folder they are in)", shown(path))
            });
            return Err(Refusal::DockerfileNotFound(hint.unwrap_or_default()));
        }
        Ok(())
    }
}

/// Checks how much came out of an archive so far.
pub fn check_unpacked(
    limits: &ArchiveSettings,
    packed_bytes: u64,
    unpacked_bytes: u64,
) -> Result<(), Refusal> {
    if unpacked_bytes > limits.unpacked_bytes_max {
        return Err(Refusal::TooLarge(format!(
            "it unpacks to more than {} bytes",
            limits.unpacked_bytes_max
        )));
    }
    if unpacked_bytes > RATIO_FREE_BYTES && unpacked_bytes / packed_bytes.max(1) >= limits.ratio_max {
        return Err(Refusal::TooLarge(format!(
            "it unpacks to more than {} times its size",
            limits.ratio_max
        )));
    }
    Ok(())
}

/// Checks where a link at `path` leads. Only targets below the root pass: any "..", all of them in front, may
/// climb at most to the root, and what follows can only meet other links that were judged the same way.
pub fn check_link(path: &str, target: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::Invalid(format!("the link '{}' {why}", shown(path))));
    if target.is_empty() || target.contains('\0') {
        return refuse("has no usable target");
    }
    if target.starts_with('/') {
        return refuse("has an absolute target");
    }
    let depth = path.split('/').count() - 1;
    let mut climbed = 0;
    let mut descended = false;
    for component in target.split('/').filter(|component| !component.is_empty() && *component != ".") {
        if component != ".." {
            descended = true;
            continue;
        }
        climbed += 1;
        if descended || climbed > depth {
            return refuse("leads outside");
        }
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::Invalid(format!("the path '{}' {why}", shown(path))));
    if path.len() > PATH_BYTES_MAX {
        return refuse("is too long");
    }
    if path.starts_with('/') {
        return refuse("is absolute");
    }
    for component in path.split('/') {
        match component {
            "" => return refuse("has an empty component"),
            "." | ".." => return refuse("leads outside"),
            long if long.len() > COMPONENT_BYTES_MAX => return refuse("has a component that is too long"),
            odd if odd.chars().any(char::is_control) => return refuse("has control characters"),
            _ => {}
        }
    }
    Ok(())
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// A path fit for a message.
fn shown(path: &str) -> String {
    path.chars().take(120).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: Option<u32> = Some(0o100_644);

    type Entries<'a> = Vec<(&'a str, Option<u32>)>;

    fn check(entries: &[(&str, Option<u32>)]) -> Result<(), Refusal> {
        let limits = ArchiveSettings { entries_max: 5, ..ArchiveSettings::default() };
        let mut checker = Checker::new(&limits, entries.len())?;
        for (name, mode) in entries {
            checker.entry(name, *mode)?;
        }
        checker.finish()
    }

    #[test]
    fn entries_are_checked_by_name_and_kind() {
        let long = format!("{}b", "a/".repeat(600));
        let table: Vec<(Entries<'_>, &str)> = vec![
            (vec![("Dockerfile", FILE), ("app/", Some(0o040_755)), ("app/a.py", FILE)], ""),
            (vec![("Dockerfile", None)], ""),
            (vec![("Dockerfile", FILE), ("../evil", FILE)], "leads outside"),
            (vec![("a/../../evil", FILE)], "leads outside"),
            (vec![("/etc/passwd", FILE)], "is absolute"),
            (vec![("a//b", FILE)], "empty component"),
            (vec![("", FILE)], "empty component"),
            (vec![(&long, FILE)], "too long"),
            (vec![("a\nb", FILE)], "control characters"),
            (vec![("dev", Some(0o060_644))], "special file"),
            (vec![("dev", Some(0o020_644))], "special file"),
            (vec![("pipe", Some(0o010_644))], "special file"),
            (vec![("sock", Some(0o140_644))], "special file"),
            (vec![("Dockerfile", FILE), ("Dockerfile", FILE)], "twice"),
            (vec![("a", FILE), ("a/", None)], "twice"),
            (
                vec![("Dockerfile", FILE), ("l", Some(0o120_777)), ("l/x", FILE)],
                "both a file and a directory",
            ),
            (vec![("app/Dockerfile", FILE)], "zip the files, not the folder"),
            (vec![("dockerfile", FILE)], "no file named Dockerfile"),
            (vec![("Dockerfile/", Some(0o040_755))], "no file named Dockerfile"),
            (
                vec![("1", FILE), ("2", FILE), ("3", FILE), ("4", FILE), ("5", FILE), ("6", FILE)],
                "more than 5",
            ),
        ];
        for (entries, expected) in table {
            match check(&entries) {
                Ok(()) => assert_eq!(expected, "", "{entries:?} was accepted"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!expected.is_empty() && text.contains(expected), "{entries:?}: {text}");
                }
            }
        }
    }

    #[test]
    fn links_stay_inside() {
        for (path, target, good) in [
            ("l", "a", true),
            ("l", "./a/b", true),
            ("a/b/l", "../../c", true),
            ("a/b/l", "../../../c", false),
            ("l", "..", false),
            ("l", "/etc/passwd", false),
            ("a/l", "b/..", false),
            ("l", "", false),
        ] {
            assert_eq!(check_link(path, target).is_ok(), good, "{path} -> {target}");
        }
    }

    #[test]
    fn sizes_count_what_comes_out() {
        let limits =
            ArchiveSettings { unpacked_bytes_max: 10 << 20, ratio_max: 100, ..ArchiveSettings::default() };
        assert!(check_unpacked(&limits, 1 << 20, 10 << 20).is_ok());
        assert!(check_unpacked(&limits, 1 << 20, (10 << 20) + 1).is_err());
        assert!(check_unpacked(&limits, 100, 1 << 20).is_ok(), "small ones may compress well");
        assert!(check_unpacked(&limits, 100, (1 << 20) + 1).is_err());
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_below_the_root(name in "[a./\\\\]{1,20}") {
            if check_path(&name).is_ok() {
                let joined = std::path::Path::new("/root").join(&name);
                prop_assert!(joined.components().all(|c| c != std::path::Component::ParentDir));
                prop_assert!(joined.starts_with("/root"));
            }
        }
    }
}
