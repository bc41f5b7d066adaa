//! Keys of objects in S3.
//!
//! ```text
//! disks/<image id>/<version>/<attempt>/...       snapshot bucket, until the build ends
//! images/<image id>/<version>/<generation>/...   snapshot bucket
//! bases/<name>/<version>-<digest>.tar.zst        snapshot bucket
//! builds/<build>.log                             log bucket
//! ```
//!
//! Attempt and generation are in the keys, so that an older attempt that is
//! still running somewhere never writes over a newer one's objects.

/// Characters of a digest in the key of an artifact.
const DIGEST_CHARS: usize = 32;

/// Prefixes of one version's files, those of all attempts.
pub fn version_prefixes(image_id: &str, version: &str) -> [String; 2] {
    [format!("disks/{image_id}/{version}/"), format!("images/{image_id}/{version}/")]
}

/// Prefix of the disk that one attempt of a build makes.
pub fn disk_prefix(image_id: &str, version: &str, attempt: u32) -> String {
    format!("disks/{image_id}/{version}/{attempt}")
}

/// Prefix of the snapshot that one bake makes.
pub fn snapshot_prefix(image_id: &str, version: &str, generation: u64) -> String {
    format!("images/{image_id}/{version}/{generation}")
}

/// Key of a base image's tar with this digest.
pub fn base(name: &str, version: &str, digest: &str) -> String {
    format!("bases/{name}/{version}-{}.tar.zst", &digest[..16])
}

/// Whether a key is one that `torpor image create` gives what it uploads: a folder, and a name from the content. Nobody
/// chooses such a key himself.
pub fn is_named_by_content(key: &str) -> bool {
    let digest = key.split_once('/').and_then(|(_, name)| name.strip_suffix(".zip")).unwrap_or_default();
    digest.len() == DIGEST_CHARS && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub fn build_log(build_id: &str) -> String {
    format!("builds/{build_id}.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_people_choose_are_told_from_those_of_uploads() {
        let digest = "0123456789abcdef0123456789abcdef";
        assert!(is_named_by_content(&format!("my-app/{digest}.zip")));
        for key in ["app.zip", "my-app/app.zip", "", "/"] {
            assert!(!is_named_by_content(key), "{key}");
        }
        assert!(!is_named_by_content(&format!("{digest}.zip")));
        assert!(!is_named_by_content(&format!("a/b/{digest}.zip")));
        assert!(!is_named_by_content(&format!("a/{}.zip", digest.to_uppercase())));
    }
}
