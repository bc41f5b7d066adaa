//! Names of container images as they stand in FROM lines: which of them are our own base images.

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
    /// An image in a registry.
    Remote,
}

/// Sorts the text of a FROM line. `known` says whether we have a base image of
/// that name; a name of ours wins over one in the default registry.
pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Reference {
    if text == "scratch" {
        return Reference::Scratch;
    }
    let spelled_out = text.strip_prefix("torpor/");
    let (name, version) = split_tag(spelled_out.unwrap_or(text));
    if spelled_out.is_some() || known(name) {
        let version = version.filter(|version| *version != "latest").map(str::to_owned);
        return Reference::Local { name: name.to_owned(), version };
    }
    Reference::Remote
}

/// Repository and tag of a name, as a container tool reads it.
pub fn repository_and_tag(text: &str) -> (&str, &str) {
    let (repository, tag) = split_tag(text);
    (repository, tag.unwrap_or("latest"))
}

/// Splits "name:tag"; a port in the registry part is no tag.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !text.contains('@') => (name, Some(tag)),
        _ => (text, None),
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
        for (text, expected) in [
            ("scratch", Reference::Scratch),
            ("debian-12", local("debian-12", None)),
            ("debian-12:latest", local("debian-12", None)),
            ("debian-12:2", local("debian-12", Some("2"))),
            ("torpor/debian-12:2", local("debian-12", Some("2"))),
            ("torpor/other", local("other", None)),
            ("python:3.12", Reference::Remote),
            ("acme/app", Reference::Remote),
            ("registry:5000/debian-12", Reference::Remote),
            ("debian-12@sha256:abc", Reference::Remote),
        ] {
            assert_eq!(parse(text, |name| name == "debian-12"), expected, "{text}");
        }
    }
}
