//! Objects over a directory, of which nothing is left when they are gone.
//!
//! The file system that serves them removes an object's file and leaves the directories of its key, and two files of attributes
//! beside the bucket. Every list walks all directories, so a fleet whose microVMs sleep and wake would become slower for ever.
//! Here a deletion takes them along, unless something is being written there. What a deletion leaves because the process
//! dies, the next start removes ([`TidiedFiles::sweep`]).

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// Ends of the names of the files that hold an object's attributes.
const ATTRIBUTES: [&str; 2] = [".metadata.json", ".internal.json"];

pub struct TidiedFiles {
    files: FileSystem,
    tree: Arc<Tree>,
}

struct Tree {
    root: PathBuf,
    /// Calls that write an object now, by "bucket/key". They make its directories first and put the file there last.
    writing: Mutex<BTreeMap<String, usize>>,
}

/// One call that writes an object.
struct Writing {
    tree: Arc<Tree>,
    name: String,
}

impl TidiedFiles {
    pub fn new(root: &Path, files: FileSystem) -> Self {
        let tree = Tree { root: root.to_owned(), writing: Mutex::default() };
        Self { files, tree: Arc::new(tree) }
    }

    /// Removes what objects that are gone have left. Before anything is served.
    pub fn sweep(&self) -> io::Result<()> {
        let mut known = HashSet::new();
        for entry in std::fs::read_dir(&self.tree.root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Some(bucket) = entry.file_name().to_str()
            {
                sweep_directory(&entry.path(), bucket, "", &mut known)?;
            }
        }
        for entry in std::fs::read_dir(&self.tree.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let of = ATTRIBUTES.iter().find_map(|end| name.strip_suffix(end));
            // Those of an upload in parts are named for it, and go with it.
            if of.is_some_and(|of| {
                of.starts_with(".bucket-") && !of.contains(".upload-") && !known.contains(of)
            }) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn writing(&self, bucket: &str, key: &str) -> Writing {
        let name = format!("{bucket}/{key}");
        *self.tree.writing().entry(name.clone()).or_default() += 1;
        Writing { tree: Arc::clone(&self.tree), name }
    }

    async fn tidy(&self, bucket: String, keys: Vec<String>) {
        let tree = Arc::clone(&self.tree);
        let tidied = tokio::task::spawn_blocking(move || {
            for key in keys {
                tree.tidy(&bucket, &key);
            }
        });
        if let Err(error) = tidied.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Visits a directory of a bucket, of which `below` is the key's part so far; removes directories without a file, and notes what
/// the attributes of each object are named by.
fn sweep_directory(path: &Path, bucket: &str, below: &str, known: &mut HashSet<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        // A name that is no text is no key.
        let Some(name) = name.to_str() else { continue };
        if entry.file_type()?.is_dir() {
            sweep_directory(&entry.path(), bucket, &format!("{below}{name}/"), known)?;
            // Refused unless it is empty.
            let _ = std::fs::remove_dir(entry.path());
        } else {
            known.insert(attributes_of(bucket, &format!("{below}{name}")));
        }
    }
    Ok(())
}

/// What the names of the files with an object's attributes begin with.
fn attributes_of(bucket: &str, key: &str) -> String {
    let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!(".bucket-{}.object-{}", encode(bucket), encode(key))
}

impl Tree {
    fn writing(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After an object has been deleted. A call that begins to write now waits until this is done.
    fn tidy(&self, bucket: &str, key: &str) {
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return;
        }
        let writing = self.writing();
        let name = format!("{bucket}/{key}");
        if writing.contains_key(&name) || self.root.join(&name).exists() {
            return;
        }
        for end in ATTRIBUTES {
            let _ = std::fs::remove_file(self.root.join(format!("{}{end}", attributes_of(bucket, key))));
        }
        let mut below = key;
        while let Some((parent, _)) = below.rsplit_once('/') {
            let directory = format!("{bucket}/{parent}/");
            let is_written_to = writing
                .range(directory.clone()..)
                .next()
                .is_some_and(|(name, _)| name.starts_with(&directory));
            // Refused unless it is empty; another deletion may have been faster.
            if is_written_to || std::fs::remove_dir(self.root.join(directory)).is_err() {
                return;
            }
            below = parent;
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut writing = self.tree.writing();
        if let Some(calls) = writing.get_mut(&self.name) {
            *calls -= 1;
            if *calls == 0 {
                writing.remove(&self.name);
            }
        }
    }
}

/// The S3 API of `files`, with what is said above around the calls that write and delete.
macro_rules! s3 {
    ($($call:ident($input:ty) -> $output:ty $(, $kind:ident)?;)*) => {
        #[async_trait::async_trait]
        impl S3 for TidiedFiles {
            $(async fn $call(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                s3!(@ self, request, $call $(, $kind)?)
            })*
        }
    };
    (@ $self:ident, $request:ident, $call:ident) => { $self.files.$call($request).await };
    (@ $self:ident, $request:ident, $call:ident, writes) => {{
        let _writing = $self.writing(&$request.input.bucket, &$request.input.key);
        $self.files.$call($request).await
    }};
    (@ $self:ident, $request:ident, $call:ident, deletes) => {{
        let (bucket, key) = ($request.input.bucket.clone(), $request.input.key.clone());
        let answer = $self.files.$call($request).await?;
        $self.tidy(bucket, vec![key]).await;
        Ok(answer)
    }};
    (@ $self:ident, $request:ident, $call:ident, deletes_many) => {{
        let input = &$request.input;
        let (bucket, objects) = (input.bucket.clone(), input.delete.objects.iter());
        let keys = objects.map(|object| object.key.clone()).collect();
        let answer = $self.files.$call($request).await?;
        $self.tidy(bucket, keys).await;
        Ok(answer)
    }};
}

s3! {
    create_bucket(CreateBucketInput) -> CreateBucketOutput;
    delete_bucket(DeleteBucketInput) -> DeleteBucketOutput;
    head_bucket(HeadBucketInput) -> HeadBucketOutput;
    get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput;
    list_buckets(ListBucketsInput) -> ListBucketsOutput;
    list_objects(ListObjectsInput) -> ListObjectsOutput;
    list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
    get_object(GetObjectInput) -> GetObjectOutput;
    head_object(HeadObjectInput) -> HeadObjectOutput;
    put_object(PutObjectInput) -> PutObjectOutput, writes;
    copy_object(CopyObjectInput) -> CopyObjectOutput, writes;
    delete_object(DeleteObjectInput) -> DeleteObjectOutput, deletes;
    delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput, deletes_many;
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    upload_part(UploadPartInput) -> UploadPartOutput;
    upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput;
    list_parts(ListPartsInput) -> ListPartsOutput;
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput, writes;
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
}

#[cfg(test)]
mod tests;
