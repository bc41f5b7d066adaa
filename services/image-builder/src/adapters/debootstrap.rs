//! Makes base images from Debian's packages with mmdebstrap.
//!
//! The packages come from where the build machine's own apt takes them, so a mirror configured there is used
//! here too, for its own release as well as for others. The result is a tar of a minimal system; RUN steps that
//! use apt find the same sources in it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::process::Command;

use crate::adapters::output::Lines;

/// A base image we know how to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    pub name: &'static str,
    suite: &'static str,
    packages: &'static str,
}

pub const RECIPES: [Recipe; 2] = [
    Recipe { name: "debian-12", suite: "bookworm", packages: "ca-certificates" },
    Recipe { name: "debian-13", suite: "trixie", packages: "ca-certificates" },
];

const TIMEOUT: Duration = Duration::from_secs(600);
/// Compression of the stored tar: bases are read rarely and kept long.
const COMPRESSION_LEVEL: i32 = 6;
const APT_DIRECTORY: &str = "/etc/apt";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tar {
    pub path: PathBuf,
    /// BLAKE3 of it, 64 lower-case hex digits.
    pub digest: String,
    pub size_bytes: u64,
}

/// Makes a base image below `directory` and gives the tools' words to `line`.
/// Dropping the future ends them, their mounts included.
pub async fn make(recipe: Recipe, directory: &Path, line: impl FnMut(String)) -> io::Result<Tar> {
    let tar = directory.join("base.tar");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "mmdebstrap"])
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", recipe.packages))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        // Packages put links where manual pages would be, which are left out.
        .arg("--customize-hook=for section in 1 2 3 4 5 6 7 8; do mkdir -p \"$1/usr/share/man/man$section\"; done")
        // These name the build machine; a guest gets its own.
        .arg("--customize-hook=rm -f \"$1\"/etc/resolv.conf \"$1\"/etc/hostname")
        .arg(recipe.suite)
        .arg(&tar)
        .args(sources(Path::new(APT_DIRECTORY), recipe.suite))
        .args(mirrors(Path::new(APT_DIRECTORY), &own_suite(), recipe.suite))
        .env("TMPDIR", directory);
    match tokio::time::timeout(TIMEOUT, stream(command, line)).await {
        Ok(result) => result?,
        Err(_) => {
            return Err(io::Error::other(format!("mmdebstrap did not end within {} s", TIMEOUT.as_secs())));
        }
    }
    let packed = directory.join("base.tar.zst");
    tokio::task::spawn_blocking(move || compress(&tar, packed)).await.map_err(io::Error::other)?
}

async fn stream(mut command: Command, mut line: impl FnMut(String)) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::os::fd::OwnedFd::from(writer.try_clone()?)))
        .stderr(Stdio::from(std::os::fd::OwnedFd::from(writer)))
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run mmdebstrap: {error}")))?;
    // The command keeps its copies of the pipe's end.
    drop(command);
    let mut lines = Lines::new(pipe::Receiver::from_owned_fd(reader.into())?);
    while let Some(text) = lines.next().await? {
        line(text);
    }
    let status = child.wait().await?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("mmdebstrap failed ({status})"))) }
}

fn compress(tar: &Path, packed: PathBuf) -> io::Result<Tar> {
    let mut input = std::fs::File::open(tar)?;
    let size_bytes = input.metadata()?.len();
    let mut encoder = zstd::Encoder::new(std::fs::File::create(&packed)?, COMPRESSION_LEVEL)?;
    io::copy(&mut input, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::remove_file(tar)?;
    Ok(Tar { digest: digest(&packed)?, path: packed, size_bytes })
}

/// BLAKE3 of a file, as hex. Blocking.
pub fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Name of this machine's own release.
fn own_suite() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

/// Sources of `suite` from the mirrors that the machine has its own release from, where no list has `suite` itself; none
/// means mmdebstrap's default.
fn mirrors(apt: &Path, own: &str, suite: &str) -> Vec<String> {
    if own.is_empty() || !sources(apt, suite).is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for part in ["", "-security"] {
        let own = format!("{own}{part}");
        for list in sources(apt, &own) {
            let text = std::fs::read_to_string(list).unwrap_or_default();
            let lines = text.lines().filter(|line| one_line_has(line, &own));
            let stanzas = text.split("\n\n").filter(|stanza| stanza_has(stanza, &own));
            let said =
                lines.chain(stanzas).flat_map(str::lines).filter(|line| !line.trim_start().starts_with('#'));
            let mut words = said.flat_map(str::split_whitespace);
            let uri = words.find(|word| word.starts_with("http://") || word.starts_with("https://"));
            found.extend(uri.map(|uri| format!("deb {uri} {suite}{part} main")));
        }
    }
    found.dedup();
    found
}

/// The machine's own source lists that have `suite`; none means mmdebstrap's default.
fn sources(apt: &Path, suite: &str) -> Vec<PathBuf> {
    let mut candidates = vec![apt.join("sources.list")];
    let listed = std::fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
    candidates.extend(listed.map(|entry| entry.path()));
    candidates.sort();
    candidates.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        match extension {
            Some("list") => text.lines().any(|line| one_line_has(line, suite)),
            Some("sources") => text.split("\n\n").any(|stanza| stanza_has(stanza, suite)),
            _ => false,
        }
    });
    candidates
}

fn one_line_has(line: &str, suite: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.first() == Some(&"deb") && words.contains(&suite) && words.contains(&"main")
}

fn stanza_has(stanza: &str, suite: &str) -> bool {
    let field = |name: &str, wanted: &str| {
        stanza.lines().any(|line| {
            line.split_once(':').is_some_and(|(key, value)| {
                key.eq_ignore_ascii_case(name) && value.split_whitespace().any(|word| word == wanted)
            })
        })
    };
    field("Types", "deb") && field("Suites", suite) && field("Components", "main")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_releases_come_from_the_mirrors_of_the_machines_own() {
        let apt = tempfile::tempdir().unwrap();
        let parts = apt.path().join("sources.list.d");
        std::fs::create_dir(&parts).unwrap();
        let stanzas = "# http://old/debian\nTypes: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                       Types: deb\nURIs: https://a/security http://b\nSuites: bookworm-security\nComponents: main\n";
        std::fs::write(parts.join("d.sources"), stanzas).unwrap();
        std::fs::write(parts.join("other.list"), "deb https://c bookworm other\n").unwrap();
        let found = |suite: &str| mirrors(apt.path(), "bookworm", suite);
        assert_eq!(
            found("trixie"),
            ["deb http://a/debian trixie main", "deb https://a/security trixie-security main"]
        );
        assert!(found("bookworm").is_empty(), "its own lists are used");
        assert!(mirrors(apt.path(), "", "trixie").is_empty());
    }

    #[test]
    fn only_lists_with_the_suite_are_used() {
        let apt = tempfile::tempdir().unwrap();
        let parts = apt.path().join("sources.list.d");
        std::fs::create_dir(&parts).unwrap();
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
        write(apt.path().join("sources.list"), "# deb http://a bookworm main\ndeb http://a bookworm main\n");
        write(parts.join("other.list"), "deb https://b other-bookworm main\n");
        write(
            parts.join("d.sources"),
            "Types: deb\nURIs: http://a\nSuites: bookworm bookworm-updates\nComponents: main\n",
        );
        write(parts.join("n.sources"), "Types: deb\nURIs: http://a\nSuites: nodistro\nComponents: main\n");
        write(parts.join("d.sources.disabled"), "deb http://a bookworm main\n");
        let names: Vec<String> = sources(apt.path(), "bookworm")
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["sources.list", "d.sources"]);
    }
}
