//! Requests about many objects: lists and deletion below a prefix.

use std::time::SystemTime;

use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use futures::future::BoxFuture;

use crate::error::{Error, Target};
use crate::key::check_prefix;
use crate::store::Store;

/// Most keys a list may have, whatever a caller allows.
pub const LIST_KEYS_MAX: usize = 100_000;

/// Keys per page and per deletion request; S3's own maximum.
const PAGE_KEYS: i32 = 1000;

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Whole key, prefix included.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was written, by the store's clock; `None` when the store does not say.
    pub modified: Option<SystemTime>,
}

/// One page of the folders below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderPage {
    /// Their names, without the prefix and the slash.
    pub names: Vec<String>,
    /// With it the next page is asked for; `None` at the end.
    pub next: Option<String>,
}

impl Store {
    /// Every object whose key starts with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when there are more than `keys_max` (or [`LIST_KEYS_MAX`]).
    pub fn list_prefix<'a>(
        &'a self,
        bucket: &'a str,
        prefix: &'a str,
        keys_max: usize,
    ) -> BoxFuture<'a, Result<Vec<ObjectEntry>, Error>> {
        Box::pin(async move {
            let target = Target { operation: "list", bucket, key: prefix };
            let limit = keys_max.min(LIST_KEYS_MAX);
            check_prefix(prefix)?;
            let mut entries = Vec::new();
            let mut after = None;
            loop {
                let (page, next) = self.list_page(target, after).await?;
                if entries.len() + page.len() > limit {
                    return Err(target.too_large(limit as u64));
                }
                entries.extend(page);
                match next {
                    Some(token) => after = Some(token),
                    None => return Ok(entries),
                }
            }
        })
    }

    /// Names of the folders right below `prefix`, which ends with `/`: at most `names_max` (1000 whatever that says), in order,
    /// by pages. Objects right below it are left out.
    pub fn list_folders<'a>(
        &'a self,
        bucket: &'a str,
        prefix: &'a str,
        token: Option<String>,
        names_max: usize,
    ) -> BoxFuture<'a, Result<FolderPage, Error>> {
        Box::pin(async move {
            let target = Target { operation: "list", bucket, key: prefix };
            check_prefix(prefix)?;
            let names_max = i32::try_from(names_max).unwrap_or(PAGE_KEYS).min(PAGE_KEYS);
            let answer = self
                .client
                .list_objects_v2()
                .bucket(bucket)
                .prefix(prefix)
                .delimiter("/")
                .max_keys(names_max)
                .set_continuation_token(token)
                .send()
                .await
                .map_err(|error| target.classify(error))?;
            let next = next_token(target, answer.is_truncated(), answer.next_continuation_token())?;
            let folders = answer.common_prefixes.unwrap_or_default().into_iter();
            let names = folders.filter_map(|folder| {
                let name = folder.prefix?.strip_prefix(prefix)?.strip_suffix('/')?.to_owned();
                (!name.is_empty()).then_some(name)
            });
            Ok(FolderPage { names: names.collect(), next })
        })
    }

    /// Deletes every object whose key starts with `prefix`; returns how many.
    /// Not atomic: a failure leaves some of them, and repeating goes on.
    ///
    /// End the prefix with `/` unless `app-1` may take `app-10` with it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] after [`LIST_KEYS_MAX`] keys.
    pub fn delete_prefix<'a>(
        &'a self,
        bucket: &'a str,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let target = Target { operation: "delete", bucket, key: prefix };
            check_prefix(prefix)?;
            let mut deleted = 0;
            while deleted <= LIST_KEYS_MAX {
                // Always the first page: what it named before is gone by now.
                let (page, _) = self.list_page(target, None).await?;
                if page.is_empty() {
                    return Ok(deleted as u64);
                }
                deleted += page.len();
                self.delete_page(target, page).await?;
            }
            Err(target.too_large(LIST_KEYS_MAX as u64))
        })
    }

    async fn list_page(
        &self,
        target: Target<'_>,
        after: Option<String>,
    ) -> Result<(Vec<ObjectEntry>, Option<String>), Error> {
        let answer = self
            .client
            .list_objects_v2()
            .bucket(target.bucket)
            .prefix(target.key)
            .max_keys(PAGE_KEYS)
            .set_continuation_token(after)
            .send()
            .await
            .map_err(|error| target.classify(error))?;
        let next = next_token(target, answer.is_truncated(), answer.next_continuation_token())?;
        let entries = answer
            .contents
            .unwrap_or_default()
            .into_iter()
            .filter_map(|object| {
                let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                let modified = object.last_modified.and_then(|time| SystemTime::try_from(time).ok());
                object.key.map(|key| ObjectEntry { key, size, modified })
            })
            .collect();
        Ok((entries, next))
    }

    async fn delete_page(&self, target: Target<'_>, page: Vec<ObjectEntry>) -> Result<(), Error> {
        let mut delete = Delete::builder().quiet(true);
        for entry in page {
            let object = ObjectIdentifier::builder().key(entry.key).build();
            delete = delete.objects(object.expect("a key is all an identifier needs, and it is set"));
        }
        let delete = delete.build().expect("a page is never empty, and objects are all a deletion needs");
        let answer = self
            .client
            .delete_objects()
            .bucket(target.bucket)
            .delete(delete)
            .send()
            .await
            .map_err(|error| target.classify(error))?;
        match answer.errors().first() {
            None => Ok(()),
            Some(error) => {
                let code = error.code().unwrap_or("no code");
                let detail = format!("{code} for {}", error.key().unwrap_or("a key"));
                Err(match code {
                    "AccessDenied" => Error::AccessDenied {
                        bucket: target.bucket.to_owned(),
                        key: target.key.to_owned(),
                        code: detail,
                    },
                    "InternalError" | "SlowDown" => target.unavailable(detail, None),
                    _ => target.other(detail, None),
                })
            }
        }
    }
}

/// Where a list goes on that was cut.
fn next_token(
    target: Target<'_>,
    truncated: Option<bool>,
    token: Option<&str>,
) -> Result<Option<String>, Error> {
    match (truncated, token) {
        (Some(true), Some(token)) => Ok(Some(token.to_owned())),
        (Some(true), None) => Err(target.other("a list was cut without saying where", None)),
        _ => Ok(None),
    }
}
