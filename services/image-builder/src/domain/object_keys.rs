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

pub fn build_log(build_id: &str) -> String {
    format!("builds/{build_id}.log")
}
