//! From what a user names as an artifact to an `s3://` URI: a URI stays, a zip is uploaded, a directory is
//! zipped first. Uploads are named by content, so an unchanged app is not uploaded twice.
//!
//! What is *in* the zip is image-builder's to judge, not ours.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use client::{ARTIFACT_BUCKET, ArchiveError};
use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::Session;
use crate::error::{CliError, Kind, chain};

/// Makes sure the artifact is in S3 and returns its URI.
pub async fn place(session: &Session, image: &str, artifact: &str) -> Result<String, CliError> {
    if artifact.starts_with("s3://") {
        return Ok(artifact.to_owned());
    }
    let path = Path::new(artifact);
    let metadata = std::fs::metadata(path).map_err(|error| {
        CliError::usage(format!("cannot read artifact {artifact}: {error}"))
            .next("give a directory or a zip with a Dockerfile at its root, or an s3:// URI")
    })?;
    if metadata.is_file() {
        return upload(session, image, path).await;
    }
    let archive = tempfile::NamedTempFile::with_suffix(".zip")?;
    client::zip_directory(path, archive.as_file()).map_err(|error| archive_failure(&error))?;
    upload(session, image, archive.path()).await
}

async fn upload(session: &Session, image: &str, path: &Path) -> Result<String, CliError> {
    let (digest, length) = digest(path)?;
    // The image's name is checked by the service; here it only must be a good key.
    let folder: String = image
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' })
        .take(64)
        .collect();
    let key = format!("{folder}/{}.zip", &digest[..32]);
    let uri = format!("s3://{ARTIFACT_BUCKET}/{key}");
    let store = object_store::Store::connect(&session.context.object_store())
        .map_err(|error| store_failure(&error))?;
    store.ensure_bucket(ARTIFACT_BUCKET).await.map_err(|error| store_failure(&error))?;
    if store.head(ARTIFACT_BUCKET, &key).await.is_ok_and(|head| head.size == length) {
        return Ok(uri);
    }
    let bar = ProgressBar::new(length).with_message("uploading");
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
        .expect("the template is a constant and valid");
    bar.set_style(style);
    let result = store.put_file(ARTIFACT_BUCKET, &key, path, &|done, _| bar.set_position(done)).await;
    bar.finish_and_clear();
    result.map_err(|error| store_failure(&error))?;
    Ok(uri)
}

fn store_failure(error: &object_store::Error) -> CliError {
    let kind = if error.retryable() { Kind::Unavailable } else { Kind::Failed };
    CliError::new(kind, format!("cannot store the artifact: {}", chain(error)))
        .next("is S3 healthy? see torpor status")
}

/// BLAKE3 digest (hex) and length of a file.
fn digest(path: &Path) -> Result<(String, u64), CliError> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        };
    }
    Ok((hasher.finalize().to_hex().to_string(), hasher.count()))
}

fn archive_failure(error: &ArchiveError) -> CliError {
    match error {
        ArchiveError::Io { .. } => CliError::failed(chain(error)),
        _ => CliError::usage(chain(error)).next("see torpor image create --help"),
    }
}
