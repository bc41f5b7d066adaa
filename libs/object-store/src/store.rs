//! The handle, and requests about one object that fits in memory.

use std::ops::Range;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;

use crate::config::Config;
use crate::error::{Error, Target};
use crate::key::check_key;

pub(crate) mod files;
pub(crate) mod listing;

/// Largest body that is held in memory, whatever a caller allows, in bytes.
pub const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The client library retries until an answer begins; a body that breaks off
/// later is asked for again by us, this often in all.
const BODY_ATTEMPTS_MAX: u32 = 3;

/// Wait for the next bytes of a body.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause before a body is asked for again; doubles each time.
const BODY_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What the store says about an object without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Length in bytes.
    pub size: u64,
    /// The store's version tag, quotes included; not a digest to rely on.
    pub etag: Option<String>,
}

/// A handle on one S3 endpoint; clones share connections.
///
/// Every request may end with [`Error::NoSuchBucket`] (one for a single object: [`Error::NotFound`]),
/// [`Error::InvalidKey`], [`Error::AccessDenied`] or [`Error::Unavailable`]; a method names what else it may.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
    location_constraint: Option<BucketLocationConstraint>,
}

impl Store {
    /// Builds the handle. Nothing is sent before the first request.
    ///
    /// # Errors
    /// [`Error::Other`] when the endpoint is not an `http://` or `https://`
    /// address, or only one of access key and secret is given.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let target = Target { operation: "connect", bucket: "", key: "" };
        if let Some(endpoint) = &config.endpoint
            && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
        {
            return Err(target.other(format!("the endpoint {endpoint:?} is not an http(s) address"), None));
        }
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.connect_timeout)
            .operation_attempt_timeout(config.attempt_timeout)
            .build();
        let mut builder = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            .force_path_style(config.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(config.attempts_max.max(1)))
            .timeout_config(timeouts);
        builder.set_endpoint_url(config.endpoint.clone());
        builder = match (&config.access_key_id, &config.secret_access_key) {
            (Some(id), Some(secret)) => {
                builder.credentials_provider(Credentials::new(id, secret, None, None, "settings"))
            }
            (None, None) => builder.allow_no_auth(),
            _ => {
                return Err(target.other("access key and secret must be given together", None));
            }
        };
        // AWS wants a bucket's region spelled out everywhere but in its oldest
        // region; other servers have no regions and refuse made-up names.
        let spelled_out = config.endpoint.is_none() && config.region != "us-east-1";
        Ok(Self {
            client: Client::from_conf(builder.build()),
            location_constraint: spelled_out.then(|| config.region.as_str().into()),
        })
    }

    /// Makes sure the bucket exists. Safe to repeat and to race.
    ///
    /// # Errors
    /// [`Error::AccessDenied`], [`Error::Unavailable`], or [`Error::Other`] for a name the store refuses.
    pub fn ensure_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let target = Target { operation: "create bucket", bucket, key: "" };
            match self.client.head_bucket().bucket(bucket).send().await {
                Ok(_) => return Ok(()),
                Err(error) => match target.classify(error) {
                    error if error.is_not_found() => {}
                    error => return Err(error),
                },
            }
            let placement = self
                .location_constraint
                .clone()
                .map(|region| CreateBucketConfiguration::builder().location_constraint(region).build());
            let created = self
                .client
                .create_bucket()
                .bucket(bucket)
                .set_create_bucket_configuration(placement)
                .send()
                .await;
            match created {
                Ok(_) => Ok(()),
                // Somebody else was first. If it is not ours, the first put says so.
                Err(error)
                    if error.as_service_error().is_some_and(|error| {
                        error.is_bucket_already_exists() || error.is_bucket_already_owned_by_you()
                    }) =>
                {
                    Ok(())
                }
                Err(error) => Err(target.classify(error)),
            }
        })
    }

    /// Stores a body, replacing what was there. Atomic: readers see all of the
    /// old object or all of the new one.
    ///
    /// # Errors
    /// [`Error::TooLarge`] over [`BODY_BYTES_MAX`].
    pub fn put<'a>(&'a self, bucket: &'a str, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.put_object(Target { operation: "put", bucket, key }, body, None))
    }

    /// Stores a body only where nothing is stored yet.
    ///
    /// # Errors
    /// As [`Store::put`], and [`Error::PreconditionFailed`] when the key is
    /// taken, perhaps by an earlier attempt of this very call.
    pub fn put_if_absent<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        body: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.put_object(Target { operation: "put", bucket, key }, body, Some("*")))
    }

    async fn put_object(
        &self,
        target: Target<'_>,
        body: Bytes,
        if_none_match: Option<&str>,
    ) -> Result<(), Error> {
        check_key(target.key)?;
        if body.len() as u64 > BODY_BYTES_MAX {
            return Err(target.too_large(BODY_BYTES_MAX));
        }
        self.client
            .put_object()
            .bucket(target.bucket)
            .key(target.key)
            .set_if_none_match(if_none_match.map(str::to_owned))
            .body(ByteStream::from(body))
            .send()
            .await
            .map_err(|error| target.classify(error))?;
        Ok(())
    }

    /// The object's bytes, if they are at most `bytes_max`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], also over [`BODY_BYTES_MAX`].
    pub fn get<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(self.get_object(
            Target { operation: "get", bucket, key },
            None,
            bytes_max.min(BODY_BYTES_MAX),
        ))
    }

    /// The object's bytes within `range`, fewer where the object ends first.
    ///
    /// # Errors
    /// As [`Store::get`]; [`Error::Other`] for an empty range or one that starts behind the object's end.
    pub fn get_range<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let target = Target { operation: "get range", bucket, key };
            if range.is_empty() {
                return Err(target.other("the range is empty", None));
            }
            let length = range.end - range.start;
            if length > BODY_BYTES_MAX {
                return Err(target.too_large(BODY_BYTES_MAX));
            }
            let header = format!("bytes={}-{}", range.start, range.end - 1);
            self.get_object(target, Some(header), length).await
        })
    }

    async fn get_object(
        &self,
        target: Target<'_>,
        range: Option<String>,
        limit: u64,
    ) -> Result<Bytes, Error> {
        check_key(target.key)?;
        let mut attempt = 1;
        loop {
            let answer = self
                .client
                .get_object()
                .bucket(target.bucket)
                .key(target.key)
                .set_range(range.clone())
                .send()
                .await
                .map_err(|error| target.classify(error))?;
            let announced = answer.content_length().and_then(|length| u64::try_from(length).ok());
            if announced.is_some_and(|length| length > limit) {
                return Err(target.too_large(limit));
            }
            match collect(target, answer.body, announced, limit).await {
                Err(error) if error.retryable() && attempt < BODY_ATTEMPTS_MAX => {
                    tracing::debug!(%error, attempt, "a body broke off; asking again");
                    tokio::time::sleep(BODY_RETRY_PAUSE * 2u32.pow(attempt - 1)).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Size and version tag of an object.
    pub fn head<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<ObjectHead, Error>> {
        Box::pin(async move {
            let target = Target { operation: "head", bucket, key };
            check_key(key)?;
            let answer = self
                .client
                .head_object()
                .bucket(bucket)
                .key(key)
                .send()
                .await
                .map_err(|error| target.classify(error))?;
            let size = answer
                .content_length()
                .and_then(|length| u64::try_from(length).ok())
                .ok_or_else(|| target.other("the answer has no length", None))?;
            Ok(ObjectHead { size, etag: answer.e_tag().map(str::to_owned) })
        })
    }

    /// Deletes an object; one that is not there is fine.
    pub fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let target = Target { operation: "delete", bucket, key };
            check_key(key)?;
            match self.client.delete_object().bucket(bucket).key(key).send().await {
                Ok(_) => Ok(()),
                Err(error) => match target.classify(error) {
                    Error::NotFound { .. } => Ok(()),
                    error => Err(error),
                },
            }
        })
    }
}

/// Reads a body to its end, within a limit and without waiting for ever.
async fn collect(
    target: Target<'_>,
    mut body: ByteStream,
    announced: Option<u64>,
    limit: u64,
) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::with_capacity(usize::try_from(announced.unwrap_or(0)).unwrap_or(0));
    while let Some(piece) = next_piece(target, &mut body).await? {
        if bytes.len() as u64 + piece.len() as u64 > limit {
            return Err(target.too_large(limit));
        }
        bytes.extend_from_slice(&piece);
    }
    if announced.is_some_and(|length| length != bytes.len() as u64) {
        return Err(target.unavailable("the body ended early", None));
    }
    Ok(bytes.freeze())
}

/// The next bytes of a body; `None` at its end.
async fn next_piece(target: Target<'_>, body: &mut ByteStream) -> Result<Option<Bytes>, Error> {
    match tokio::time::timeout(BODY_IDLE_TIMEOUT, body.next()).await {
        Err(_) => Err(target.unavailable("the body stalled", None)),
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => Err(target.unavailable("the body broke off", Some(error.into()))),
    }
}
