//! Records in etcd: images, versions, builds and what keeps them consistent.
//!
//! ```text
//! images/<name>                            Image
//! versions/<name>/<version>                ImageVersion
//! builds/<build>                           ImageBuild
//! version-builds/<name>/<version>/<build>  empty: finds a version's builds
//! build-queue/<build>                      QueueEntry, while the build is not over
//! build-owners/<build>                     builder's name, under its lease
//! image-tokens/<digest>                    TokenEntry, for ever
//! image-admission                          empty: written by whatever uses up a quota
//! base-images/<name>/<version>             BaseEntry
//! base-locks/<name>                        builder's name, under its lease
//! ```
//!
//! Every write names the revision it replaces. Records that must agree change in one transaction.

use api::image::v1::{BaseImage, Image, ImageBuild, ImageVersion};
use model::VersionNumber;
use prost::Message;
use records::{Committed, Expect, Lease, Store, Tenure, Write};

/// A record and the revision a write to it must name.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<T> {
    pub value: T,
    pub revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct QueueEntry {
    #[prost(string, tag = "1")]
    pub build_id: String,
    #[prost(string, tag = "2")]
    pub image_name: String,
    #[prost(string, tag = "3")]
    pub image_version: String,
    #[prost(string, tag = "4")]
    pub image_id: String,
    /// When it was queued, in milliseconds since the epoch: the order of the queue.
    #[prost(uint64, tag = "5")]
    pub queued_unix_ms: u64,
    #[prost(uint32, tag = "6")]
    pub attempt: u32,
}

/// What a client token was used for.
#[derive(Clone, PartialEq, Message)]
pub struct TokenEntry {
    /// BLAKE3 of the request without its token.
    #[prost(string, tag = "1")]
    pub request_digest: String,
    #[prost(message, optional, tag = "2")]
    pub image: Option<Image>,
    /// The version as it was answered, without its environment variables: they
    /// are secrets, and a caller that repeats the call sends them again.
    #[prost(message, optional, tag = "3")]
    pub version: Option<ImageVersion>,
}

#[derive(Clone, PartialEq, Message)]
pub struct BaseEntry {
    #[prost(message, optional, tag = "1")]
    pub base: Option<BaseImage>,
    /// Key of its compressed tar in the snapshot bucket.
    #[prost(string, tag = "2")]
    pub key: String,
    /// BLAKE3 of the compressed tar.
    #[prost(string, tag = "3")]
    pub digest: String,
}

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] records::Error),
    /// A value that is no record: written by something else.
    #[error("the record {0} cannot be read")]
    Unreadable(String),
}

impl Error {
    /// True when a record was not as expected and nothing was written.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Store(records::Error::Conflict { .. }))
    }
}

type Result<T> = std::result::Result<T, Error>;

/// Prefix of the queue, for watching.
pub const QUEUE: &str = "build-queue/";
/// Prefix of the owners, for watching.
pub const OWNERS: &str = "build-owners/";
const IMAGES: &str = "images/";
const BASES: &str = "base-images/";
const TOKENS: &str = "image-tokens/";
const ADMISSION: &str = "image-admission";

fn image_key(name: &str) -> String {
    format!("{IMAGES}{name}")
}

fn version_key(name: &str, version: &str) -> String {
    format!("versions/{name}/{version}")
}

fn build_key(build: &str) -> String {
    format!("builds/{build}")
}

fn index_key(name: &str, version: &str, build: &str) -> String {
    format!("version-builds/{name}/{version}/{build}")
}

#[derive(Debug, Clone)]
pub struct Catalog {
    store: Store,
}

impl Catalog {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The store itself, for watches and leases.
    pub fn store(&self) -> &Store {
        &self.store
    }

    async fn get<T: Message + Default>(&self, key: &str) -> Result<Option<Record<T>>> {
        let Some(found) = self.store.get(key).await? else {
            return Ok(None);
        };
        let value = decode(key, &found.value)?;
        Ok(Some(Record { value, revision: found.revision }))
    }

    async fn list<T: Message + Default>(&self, prefix: &str) -> Result<Vec<Record<T>>> {
        let (entries, _) = self.store.list(prefix).await?;
        let read = |(key, found): (String, records::Versioned)| {
            Ok(Record { value: decode(&key, &found.value)?, revision: found.revision })
        };
        entries.into_iter().map(read).collect()
    }

    pub async fn image(&self, name: &str) -> Result<Option<Record<Image>>> {
        self.get(&image_key(name)).await
    }

    pub async fn images(&self) -> Result<Vec<Record<Image>>> {
        self.list(IMAGES).await
    }

    pub async fn count_images(&self) -> Result<usize> {
        Ok(self.store.count(IMAGES).await?)
    }

    pub async fn version(&self, name: &str, version: &str) -> Result<Option<Record<ImageVersion>>> {
        self.get(&version_key(name, version)).await
    }

    pub async fn versions(&self, name: &str) -> Result<Vec<Record<ImageVersion>>> {
        let mut versions: Vec<Record<ImageVersion>> = self.list(&version_key(name, "")).await?;
        versions.sort_by_key(|record| {
            std::cmp::Reverse(record.value.image_version.parse::<VersionNumber>().ok())
        });
        Ok(versions)
    }

    pub async fn count_versions(&self, name: &str) -> Result<usize> {
        Ok(self.store.count(&version_key(name, "")).await?)
    }

    pub async fn build(&self, build: &str) -> Result<Option<Record<ImageBuild>>> {
        // What is no id names no build, and no key either.
        match uuid::Uuid::try_parse(build) {
            Ok(_) => self.get(&build_key(build)).await,
            Err(_) => Ok(None),
        }
    }

    pub async fn build_ids(&self, name: &str, version: &str) -> Result<Vec<String>> {
        let prefix = index_key(name, version, "");
        let (entries, _) = self.store.list(&prefix).await?;
        Ok(entries.into_iter().filter_map(|(key, _)| key.strip_prefix(&prefix).map(str::to_owned)).collect())
    }

    pub async fn builds(&self, name: &str, version: &str) -> Result<Vec<Record<ImageBuild>>> {
        let mut builds = Vec::new();
        for id in self.build_ids(name, version).await? {
            builds.extend(self.build(&id).await?);
        }
        builds.sort_by(|one, other| {
            let (one, other) = (&one.value, &other.value);
            crate::domain::lifecycle::earlier(other.create_time.as_ref(), one.create_time.as_ref())
        });
        Ok(builds)
    }

    /// Builds that are not over, oldest first.
    pub async fn queue(&self) -> Result<Vec<Record<QueueEntry>>> {
        let mut queue: Vec<Record<QueueEntry>> = self.list(QUEUE).await?;
        queue.sort_by(|one, other| {
            (one.value.queued_unix_ms, &one.value.build_id)
                .cmp(&(other.value.queued_unix_ms, &other.value.build_id))
        });
        Ok(queue)
    }

    /// Builds that are not over.
    pub async fn count_queue(&self) -> Result<usize> {
        Ok(self.store.count(QUEUE).await?)
    }

    /// Ids of builds that some builder owns now.
    pub async fn owned(&self) -> Result<Vec<String>> {
        let (entries, _) = self.store.list(OWNERS).await?;
        Ok(entries.into_iter().filter_map(|(key, _)| key.strip_prefix(OWNERS).map(str::to_owned)).collect())
    }

    /// What a token was used for by calls of this kind.
    pub async fn token(&self, kind: &str, token: &str) -> Result<Option<Record<TokenEntry>>> {
        self.get(&token_key(kind, token)).await
    }

    /// Revision of the latest use of a quota, for [`Change::admit`].
    pub async fn admission(&self) -> Result<Option<i64>> {
        let found = self.store.get(ADMISSION).await?;
        Ok(found.map(|found| found.revision))
    }

    /// Every version of every base image.
    pub async fn bases(&self) -> Result<Vec<Record<BaseEntry>>> {
        self.list(BASES).await
    }

    /// Writes all of a change or nothing, as often as it takes to know which, while
    /// `lease` lives. The first write is the witness.
    pub async fn commit(&self, change: Change, lease: &Lease) -> records::Result<Committed> {
        self.store.commit(change.writes, Tenure::Holder(lease)).await
    }

    /// Writes all of a change, or nothing.
    pub async fn apply(&self, change: Change) -> Result<i64> {
        Ok(self.store.txn(change.writes, None).await?)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Change {
    writes: Vec<Write>,
}

impl Change {
    pub fn new() -> Self {
        Self::default()
    }

    fn put(mut self, key: String, value: Vec<u8>, revision: Option<i64>) -> Self {
        let expect = revision.map_or(Expect::Absent, Expect::Revision);
        self.writes.push(Write::Put { key, value, expect, lease: None });
        self
    }

    /// Writes an image; without a revision it must be new.
    pub fn image(self, image: &Image, revision: Option<i64>) -> Self {
        self.put(image_key(&image.name), image.encode_to_vec(), revision)
    }

    pub fn version(self, version: &ImageVersion, revision: Option<i64>) -> Self {
        let key = version_key(&version.image_name, &version.image_version);
        self.put(key, version.encode_to_vec(), revision)
    }

    pub fn build(self, build: &ImageBuild, revision: Option<i64>) -> Self {
        self.put(build_key(&build.build_id), build.encode_to_vec(), revision)
    }

    /// Writes a new build with its index and its place in the queue.
    pub fn new_build(self, build: &ImageBuild, entry: &QueueEntry) -> Self {
        let index = index_key(&build.image_name, &build.image_version, &build.build_id);
        self.build(build, None).put(index, Vec::new(), None).queue(entry, None)
    }

    pub fn queue(self, entry: &QueueEntry, revision: Option<i64>) -> Self {
        self.put(format!("{QUEUE}{}", entry.build_id), entry.encode_to_vec(), revision)
    }

    /// Takes a build out of the queue.
    pub fn dequeue(mut self, build: &str) -> Self {
        self.writes.push(Write::Delete { key: format!("{QUEUE}{build}"), expect: Expect::Any });
        self
    }

    /// Makes a builder the owner of a build that has none.
    pub fn own(mut self, build: &str, owner: &str, lease: i64) -> Self {
        let key = format!("{OWNERS}{build}");
        self.writes.push(Write::Put { key, value: owner.into(), expect: Expect::Absent, lease: Some(lease) });
        self
    }

    /// Makes a builder the only one that makes a base image.
    pub fn lock_base(mut self, name: &str, owner: &str, lease: i64) -> Self {
        let key = format!("base-locks/{name}");
        self.writes.push(Write::Put { key, value: owner.into(), expect: Expect::Absent, lease: Some(lease) });
        self
    }

    /// Records what a token was used for, for the first time.
    pub fn token(self, kind: &str, token: &str, entry: &TokenEntry) -> Self {
        self.put(token_key(kind, token), entry.encode_to_vec(), None)
    }

    /// Uses up a quota: conflicts when another call did since `revision` was
    /// read, so that what was counted after it still holds.
    pub fn admit(self, revision: Option<i64>) -> Self {
        self.put(ADMISSION.to_owned(), Vec::new(), revision)
    }

    pub fn new_base(self, entry: &BaseEntry) -> Self {
        let base = entry.base.as_ref();
        let (name, version) = base.map_or(("", ""), |base| (base.name.as_str(), base.version.as_str()));
        self.put(format!("{BASES}{name}/{version}"), entry.encode_to_vec(), None)
    }

    pub fn remove_image(self, name: &str, revision: i64) -> Self {
        self.remove(image_key(name), Expect::Revision(revision))
    }

    pub fn remove_version(self, name: &str, version: &str) -> Self {
        self.remove(version_key(name, version), Expect::Any)
    }

    /// Removes a build and its index.
    pub fn remove_build(self, name: &str, version: &str, build: &str) -> Self {
        self.remove(build_key(build), Expect::Any).remove(index_key(name, version, build), Expect::Any)
    }

    fn remove(mut self, key: String, expect: Expect) -> Self {
        self.writes.push(Write::Delete { key, expect });
        self
    }
}

fn token_key(kind: &str, token: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes()).update(&[0]).update(token.as_bytes());
    format!("{TOKENS}{}", hasher.finalize().to_hex())
}

fn decode<T: Message + Default>(key: &str, bytes: &[u8]) -> Result<T> {
    T::decode(bytes).map_err(|_| Error::Unreadable(key.to_owned()))
}
