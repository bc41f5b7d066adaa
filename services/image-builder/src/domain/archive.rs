//! What may stand in an artifact, and what an entry of it means. Names, kinds and methods are checked here, before
//! anything is written; sizes are checked again while unpacking, by the bytes that really come out.
//!
//! Zips come from many tools. What is only another spelling is read as it was meant: names that begin with `./`,
//! Windows' backslashes, names in UTF-8 without the flag that says so, entries without Unix modes. Only names that
//! lead outside are refused.
//!
//! A symbolic link is kept as it is, wherever it leads: it is a text until somebody in the image follows it.
//! Nothing is written through one ([`Checker::finish`]), and who reads the context resolves links within it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::ArchiveSettings;

/// Longest path in an archive, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Longest component of a path, in bytes.
const COMPONENT_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes: what the kernel takes.
pub const LINK_BYTES_MAX: usize = 4095;
/// Where macOS keeps what only it has of files, beside them.
const APPLE_DOUBLE: &str = "__MACOSX/";
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
    /// Reads a Unix mode; archives from other systems have none, and a directory is known by its name.
    fn of(path: &str, mode: Option<u32>) -> Result<Self, Refusal> {
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

/// What the names of an archive have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spelling {
    /// A tool of Windows separated its components with backslashes.
    backslashes: bool,
}

impl Spelling {
    /// Backslashes separate when no name has a slash: elsewhere they are characters like others.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut backslashes = false;
        for name in names {
            if name.contains('/') {
                return Self { backslashes: false };
            }
            backslashes |= name.contains('\\');
        }
        Self { backslashes }
    }

    /// A name with slashes.
    fn slashed<'a>(&self, name: &'a str) -> Cow<'a, str> {
        if self.backslashes { Cow::Owned(name.replace('\\', "/")) } else { Cow::Borrowed(name) }
    }
}

/// Checks the entries of one archive, in order.
#[derive(Debug)]
pub struct Checker<'a> {
    limits: &'a ArchiveSettings,
    spelling: Spelling,
    seen: BTreeMap<String, Kind>,
    parents: BTreeSet<String>,
    misplaced: Option<String>,
}

impl<'a> Checker<'a> {
    /// A checker for an archive whose names are spelled so.
    pub fn new(limits: &'a ArchiveSettings, spelling: Spelling) -> Self {
        Self { limits, spelling, seen: BTreeMap::new(), parents: BTreeSet::new(), misplaced: None }
    }

    /// Checks one entry's name and Unix mode. Returns its path relative to the root, without a trailing slash; `None` for
    /// the root itself and for what macOS adds for itself.
    pub fn entry(&mut self, name: &str, mode: Option<u32>) -> Result<Option<(String, Kind)>, Refusal> {
        let name = self.spelling.slashed(name);
        let kind = Kind::of(&name, mode)?;
        let path = plain_path(&name)?;
        if path.is_empty() && kind == Kind::Directory || format!("{path}/").starts_with(APPLE_DOUBLE) {
            return Ok(None);
        }
        if path.is_empty() {
            return Err(Refusal::Invalid("an entry has no name".to_owned()));
        }
        if self.seen.insert(path.clone(), kind).is_some() {
            return Err(Refusal::Invalid(format!("'{}' is in it twice", shown(&path))));
        }
        if path.ends_with("/Dockerfile") && self.misplaced.is_none() {
            self.misplaced = Some(path.clone());
        }
        self.parents.extend(ancestors(&path).map(str::to_owned));
        if self.seen.len() + self.parents.len() > self.limits.entries_max.saturating_mul(2) {
            return Err(too_many(self.limits));
        }
        Ok(Some((path, kind)))
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

/// Checks how many entries an archive says it has.
pub fn check_count(limits: &ArchiveSettings, entries: u64) -> Result<(), Refusal> {
    if entries > limits.entries_max as u64 { Err(too_many(limits)) } else { Ok(()) }
}

fn too_many(limits: &ArchiveSettings) -> Refusal {
    Refusal::TooLarge(format!("it has more than {} entries", limits.entries_max))
}

/// Checks the target of the link at `path`.
pub fn check_link(path: &str, target: &[u8]) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::Invalid(format!("the link '{}' {why}", shown(path))));
    if target.is_empty() || target.contains(&0) {
        return refuse("has no usable target");
    }
    if target.len() > LINK_BYTES_MAX {
        return refuse("has a target of more than 4095 bytes");
    }
    Ok(())
}

/// The refusal of an entry that is compressed in a way that is not read here.
pub fn unsupported(name: &str, method: &str) -> Refusal {
    let name = shown(name);
    Refusal::Invalid(format!("the entry '{name}' uses {method}; make the zip with store or deflate"))
}

/// The refusal of an entry that takes a password.
pub fn encrypted(name: &str) -> Refusal {
    Refusal::Invalid(format!("the entry '{}' is encrypted; make the zip without a password", shown(name)))
}

/// A name without what says nothing in it: ".", repeated and trailing slashes.
fn plain_path(name: &str) -> Result<String, Refusal> {
    let refuse = |why: &str| Err(Refusal::Invalid(format!("the path '{}' {why}", shown(name))));
    if name.len() > PATH_BYTES_MAX {
        return refuse("is too long");
    }
    if name.starts_with('/') {
        return refuse("is absolute");
    }
    let mut path = String::with_capacity(name.len());
    for component in name.split('/') {
        match component {
            "" | "." => continue,
            ".." => return refuse("leads outside"),
            long if long.len() > COMPONENT_BYTES_MAX => return refuse("has a component that is too long"),
            odd if odd.chars().any(char::is_control) => return refuse("has control characters"),
            _ => {}
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(component);
    }
    Ok(path)
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
        check_count(&limits, entries.len() as u64)?;
        let mut checker = Checker::new(&limits, Spelling::of(entries.iter().map(|(name, _)| *name)));
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
            (vec![("..\\..\\etc\\x", FILE)], "leads outside"),
            (vec![("", FILE)], "no name"),
            (vec![(".", FILE)], "no name"),
            (vec![("./", None), ("./Dockerfile", FILE), ("a/./b//c", FILE)], ""),
            (vec![("Dockerfile", FILE), ("./a", FILE), ("a", FILE)], "twice"),
            (vec![(".\\Dockerfile", FILE)], ""),
            (vec![("Dockerfile", FILE), ("__MACOSX/._Dockerfile", FILE), ("__MACOSX/", None)], ""),
            (vec![("Dockerfile", FILE), ("a.txt", FILE), ("A.txt", FILE)], ""),
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
    fn names_are_read_as_their_tools_meant_them() {
        let read = |names: &[&str]| -> Vec<String> {
            let limits = ArchiveSettings::default();
            let mut checker = Checker::new(&limits, Spelling::of(names.iter().copied()));
            let entries = names.iter().filter_map(|name| checker.entry(name, None).unwrap());
            entries.map(|(path, kind)| format!("{path} {kind:?}")).collect()
        };
        assert_eq!(
            read(&["Dockerfile", "app\\", "app\\main.py"]),
            ["Dockerfile File", "app Directory", "app/main.py File"]
        );
        assert_eq!(read(&["a/b\\c"]), ["a/b\\c File"], "a character like others beside slashes");
        assert_eq!(read(&["./", "./a/", "./a/./b", "a//c"]), ["a Directory", "a/b File", "a/c File"]);
        assert_eq!(read(&["__MACOSX/", "__MACOSX/a/._b", "__MACOSX", "x/__MACOSX/y"]), ["x/__MACOSX/y File"]);
    }

    #[test]
    fn links_are_texts_and_bounded() {
        for (target, good) in [
            ("a", true),
            ("../../../c", true),
            ("/usr/bin/python3", true),
            ("", false),
            ("a\0b", false),
            (&"x".repeat(LINK_BYTES_MAX), true),
            (&"x".repeat(LINK_BYTES_MAX + 1), false),
        ] {
            assert_eq!(check_link("l", target.as_bytes()).is_ok(), good, "{target}");
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
            for spelling in [Spelling { backslashes: true }, Spelling { backslashes: false }] {
                let limits = ArchiveSettings::default();
                if let Ok(Some((path, _))) = Checker::new(&limits, spelling).entry(&name, None) {
                    let joined = std::path::Path::new("/root").join(&path);
                    prop_assert!(joined.components().all(|c| c != std::path::Component::ParentDir));
                    prop_assert!(joined.starts_with("/root") && joined != std::path::Path::new("/root"));
                }
            }
        }
    }
}
