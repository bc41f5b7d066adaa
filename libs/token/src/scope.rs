//! Which requests a token opens beside their port: prefixes of paths, and methods.
//!
//! A path is compared as it is forwarded, byte by byte. Apps do more with it: they decode it, drop its dots, join its slashes.
//! So "/api/../admin" may begin with "/api" here and be "/admin" there. A path that can be read in two ways is therefore
//! opened by no prefix: see [`is_plain_path`].

use crate::claims::Claims;

/// Escapes that hide a dot, a slash or a backslash from a comparison of bytes.
const HIDDEN: [&str; 3] = ["%2e", "%2f", "%5c"];

/// True when a path means the same to everybody: it begins with a slash, has no empty segment but the last, none that is "."
/// or ".." (with parameters or without: some servers drop ";x" first), no backslash, and none of these in an escape.
#[must_use]
pub fn is_plain_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let lower = path.to_ascii_lowercase();
    if path.contains('\\') || HIDDEN.iter().any(|hidden| lower.contains(hidden)) {
        return false;
    }
    let segments = rest.split('/').count();
    rest.split('/').enumerate().all(|(index, segment)| {
        let name = segment.split(';').next().unwrap_or_default();
        let last_and_empty = segment.is_empty() && index + 1 == segments;
        last_and_empty || !matches!(name, "" | "." | "..")
    })
}

/// True when the path is the prefix or lies under it.
fn covers(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Claims {
    /// True when the token opens the path of a request, which is given as it is forwarded, without its query.
    #[must_use]
    pub fn allows_path(&self, path: &str) -> bool {
        let opens = || is_plain_path(path) && self.paths.iter().any(|prefix| covers(prefix, path));
        self.paths.is_empty() || opens()
    }

    /// True when the token opens requests of the method.
    #[must_use]
    pub fn allows_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|one| one == method)
    }
}
