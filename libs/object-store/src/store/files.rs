//! Objects that do not fit in memory: from a file and to a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncWriteExt as _, BufWriter};

use crate::Progress;
use crate::error::{Error, Target};
use crate::key::check_key;
use crate::store::{BODY_RETRY_PAUSE, Store, next_piece};

/// Files over this go up in parts, in bytes.
pub const MULTIPART_THRESHOLD_BYTES: u64 = 16 * 1024 * 1024;

/// Size of every part but the last, in bytes.
pub const PART_BYTES: u64 = 8 * 1024 * 1024;

/// Largest file in either direction, in bytes: as many parts as S3 takes (10,000) are never reached.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Parts on their way at once; memory for a file is this many parts.
const PARTS_IN_FLIGHT: usize = 2;

/// How often a download may break off before it is given up.
const DOWNLOAD_ATTEMPTS_MAX: u32 = 5;

/// Buffer between the network and the file, in bytes.
const WRITE_BUFFER_BYTES: usize = 1024 * 1024;

/// Wait for an abandoned upload to be aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

impl Store {
    /// Stores a file's content, in parts when it is over [`MULTIPART_THRESHOLD_BYTES`]. Returns its length in
    /// bytes. The object appears at once when everything is there, or not at all.
    ///
    /// The file must not change meanwhile. On failure, and when the future is dropped, the parts are given
    /// back to the store. If the process dies they stay there unseen: a bucket should have a lifecycle rule
    /// that removes incomplete uploads.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::TooLarge`] over [`FILE_BYTES_MAX`], and those of [`Store::put`].
    pub fn put_file<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        path: &'a Path,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let target = Target { operation: "put", bucket, key };
            check_key(key)?;
            let file_error = |source| Error::File { path: path.to_owned(), source };
            let opened = path.to_owned();
            let (file, size) = blocking(move || {
                let file = File::open(opened)?;
                let size = file.metadata()?.len();
                Ok((file, size))
            })
            .await
            .map_err(file_error)?;
            if size > FILE_BYTES_MAX {
                return Err(target.too_large(FILE_BYTES_MAX));
            }
            let file = Arc::new(file);
            progress(0, size);
            if size <= MULTIPART_THRESHOLD_BYTES {
                let body = read_part(&file, 0, size).await.map_err(file_error)?;
                self.put(bucket, key, body).await?;
                progress(size, size);
                return Ok(size);
            }
            let upload = Upload::start(&self.client, target).await?;
            let done = AtomicU64::new(0);
            let sent = |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, size);
            let outcome = match upload.send_parts(target, path, &file, size, &sent).await {
                Ok(parts) => upload.complete(target, parts).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => upload.disarm(),
                Err(error) => {
                    upload.abort().await;
                    return Err(error);
                }
            }
            Ok(size)
        })
    }

    /// Writes an object to a file of at most `bytes_max` bytes, which is created or emptied first. Returns
    /// its length. A download that breaks off goes on where it stopped, if the object is still the same.
    ///
    /// The file is not synced to disk. After an error it is gone; when the
    /// future is dropped its beginning may stay.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::File`], and those of [`Store::get`].
    pub fn get_file<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        path: &'a Path,
        bytes_max: u64,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let target = Target { operation: "get", bucket, key };
            check_key(key)?;
            let file = tokio::fs::File::create(path)
                .await
                .map_err(|source| Error::File { path: path.to_owned(), source })?;
            let mut download = Download {
                path,
                file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
                written: 0,
                size: None,
                etag: None,
            };
            let outcome = self.download(target, &mut download, bytes_max.min(FILE_BYTES_MAX), progress).await;
            if outcome.is_err() {
                // Best effort: what is left over is a file nobody was told about.
                let _ = tokio::fs::remove_file(path).await;
            }
            outcome
        })
    }

    async fn download(
        &self,
        target: Target<'_>,
        download: &mut Download<'_>,
        limit: u64,
        progress: Progress<'_>,
    ) -> Result<u64, Error> {
        let mut attempt = 1;
        loop {
            match self.download_rest(target, download, limit, progress).await {
                Ok(()) => break,
                Err(error) if error.retryable() && attempt < DOWNLOAD_ATTEMPTS_MAX => {
                    tracing::debug!(%error, attempt, written = download.written, "a download broke off; going on");
                    tokio::time::sleep(BODY_RETRY_PAUSE * 2u32.pow(attempt - 1)).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
        download.file.flush().await.map_err(|source| download.file_error(source))?;
        Ok(download.written)
    }

    async fn download_rest(
        &self,
        target: Target<'_>,
        download: &mut Download<'_>,
        limit: u64,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        if download.size.is_some_and(|size| size == download.written) {
            return Ok(());
        }
        let range = (download.written > 0).then(|| format!("bytes={}-", download.written));
        let answer = self
            .client
            .get_object()
            .bucket(target.bucket)
            .key(target.key)
            .set_range(range)
            .send()
            .await
            .map_err(|error| target.classify(error))?;
        let rest = answer
            .content_length()
            .and_then(|length| u64::try_from(length).ok())
            .ok_or_else(|| target.other("the answer has no length", None))?;
        let size = download.written + rest;
        if size > limit {
            return Err(target.too_large(limit));
        }
        let etag = answer.e_tag().map(str::to_owned);
        if download.size.is_some_and(|before| before != size || download.etag != etag) {
            return Err(target.other("the object changed during the download", None));
        }
        (download.size, download.etag) = (Some(size), etag);
        let mut body = answer.body;
        while let Some(piece) = next_piece(target, &mut body).await? {
            if download.written + piece.len() as u64 > size {
                return Err(target.too_large(size));
            }
            download.file.write_all(&piece).await.map_err(|source| download.file_error(source))?;
            download.written += piece.len() as u64;
            progress(download.written, size);
        }
        if download.written < size {
            return Err(target.unavailable("the body ended early", None));
        }
        Ok(())
    }
}

struct Download<'a> {
    path: &'a Path,
    file: BufWriter<tokio::fs::File>,
    written: u64,
    /// Known from the first answer on.
    size: Option<u64>,
    etag: Option<String>,
}

impl Download<'_> {
    fn file_error(&self, source: io::Error) -> Error {
        Error::File { path: self.path.to_owned(), source }
    }
}

/// A multipart upload that is given back to the store unless disarmed.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    armed: bool,
}

impl Upload {
    async fn start(client: &Client, target: Target<'_>) -> Result<Self, Error> {
        let answer = client
            .create_multipart_upload()
            .bucket(target.bucket)
            .key(target.key)
            .send()
            .await
            .map_err(|error| target.classify(error))?;
        let id = answer.upload_id.ok_or_else(|| target.other("the upload has no id", None))?;
        Ok(Self {
            client: client.clone(),
            bucket: target.bucket.to_owned(),
            key: target.key.to_owned(),
            id,
            armed: true,
        })
    }

    async fn send_parts(
        &self,
        target: Target<'_>,
        path: &Path,
        file: &Arc<File>,
        size: u64,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Vec<CompletedPart>, Error> {
        let count = size.div_ceil(PART_BYTES);
        futures::stream::iter(0..count)
            .map(|index| async move {
                let offset = index * PART_BYTES;
                let length = PART_BYTES.min(size - offset);
                let body = read_part(file, offset, length)
                    .await
                    .map_err(|source| Error::File { path: path.to_owned(), source })?;
                let number = i32::try_from(index + 1).expect("the file limit allows 8192 parts");
                let answer = self
                    .client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(&self.key)
                    .upload_id(&self.id)
                    .part_number(number)
                    .body(ByteStream::from(body))
                    .send()
                    .await
                    .map_err(|error| target.classify(error))?;
                sent(length);
                Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).build())
            })
            .buffered(PARTS_IN_FLIGHT)
            .try_collect()
            .await
    }

    async fn complete(&self, target: Target<'_>, parts: Vec<CompletedPart>) -> Result<(), Error> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        self.client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .multipart_upload(parts)
            .send()
            .await
            .map_err(|error| target.classify(error))?;
        Ok(())
    }

    fn disarm(mut self) {
        self.armed = false;
    }

    async fn abort(mut self) {
        self.armed = false;
        abort(&self.client, &self.bucket, &self.key, &self.id).await;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Only a dropped future comes here armed; there is no awaiting in drop.
        if self.armed
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (client, bucket, key, id) =
                (self.client.clone(), self.bucket.clone(), self.key.clone(), self.id.clone());
            runtime.spawn(async move { abort(&client, &bucket, &key, &id).await });
        }
    }
}

/// Best effort: what cannot be aborted is left to the bucket's lifecycle rule.
async fn abort(client: &Client, bucket: &str, key: &str, id: &str) {
    let request = client.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send();
    match tokio::time::timeout(ABORT_TIMEOUT, request).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(bucket, key, %error, "an unfinished upload stays in the store"),
        Err(_) => tracing::warn!(bucket, key, "an unfinished upload stays in the store: no answer"),
    }
}

async fn read_part(file: &Arc<File>, offset: u64, length: u64) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    let length = usize::try_from(length).expect("a part fits in memory");
    blocking(move || {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, offset)?;
        Ok(Bytes::from(buffer))
    })
    .await
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
