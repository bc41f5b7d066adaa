//! Names of container images as they stand in FROM lines: which of them are our
//! own base images, and what the others are called in full.

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// Nothing: an empty file system.
    Scratch,
    /// One of our base images, if there is one of that name.
    Local {
        name: String,
        /// Version; absent means the newest.
        version: Option<String>,
    },
    /// An image in a registry, by its full name.
    Remote(String),
}

/// Registry of names without one, as every container tool has it.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where buildah keeps images that never came from a registry.
pub const LOCAL_PREFIX: &str = "localhost/torpor/";

/// The name buildah knows a base image by.
pub fn local_name(name: &str, version: &str) -> String {
    format!("{LOCAL_PREFIX}{name}:{version}")
}

/// Sorts the text of a FROM line. `known` says whether we have a base image of
/// that name; a name of ours wins over one in the default registry.
pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Reference {
    if text == "scratch" {
        return Reference::Scratch;
    }
    let spelled_out = text.strip_prefix(LOCAL_PREFIX).or_else(|| text.strip_prefix("torpor/"));
    let (name, version) = split_tag(spelled_out.unwrap_or(text));
    if spelled_out.is_some() || known(name) {
        let version = version.filter(|version| *version != "latest").map(str::to_owned);
        return Reference::Local { name: name.to_owned(), version };
    }
    Reference::Remote(full_name(text))
}

/// Splits "name:tag"; a port in the registry part is no tag.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !text.contains('@') => (name, Some(tag)),
        _ => (text, None),
    }
}

fn full_name(text: &str) -> String {
    match text.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => text.to_owned(),
        Some(_) => format!("{DEFAULT_REGISTRY}/{text}"),
        None => format!("{DEFAULT_REGISTRY}/library/{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_like_everywhere_else_and_ours_first() {
        let local = |name: &str, version: Option<&str>| Reference::Local {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        };
        let remote = |name: &str| Reference::Remote(name.to_owned());
        for (text, expected) in [
            ("scratch", Reference::Scratch),
            ("debian-12", local("debian-12", None)),
            ("debian-12:latest", local("debian-12", None)),
            ("debian-12:2", local("debian-12", Some("2"))),
            ("torpor/debian-12:2", local("debian-12", Some("2"))),
            ("localhost/torpor/debian-12", local("debian-12", None)),
            ("torpor/other", local("other", None)),
            ("python:3.12", remote("docker.io/library/python:3.12")),
            ("acme/app", remote("docker.io/acme/app")),
            ("ghcr.io/acme/app:1", remote("ghcr.io/acme/app:1")),
            ("registry:5000/app", remote("registry:5000/app")),
            ("localhost/app", remote("localhost/app")),
            ("alpine@sha256:abc", remote("docker.io/library/alpine@sha256:abc")),
        ] {
            assert_eq!(parse(text, |name| name == "debian-12"), expected, "{text}");
        }
    }
}
