//! The settings of a bucket that tools set up and look at again: public access, encryption, versioning, lifecycle, tags,
//! policy, ownership. The embedded S3 keeps them and shows them, and does nothing by them: it has one user, encrypts
//! nothing and keeps no older versions.
//!
//! They are a route in front of the file system that serves the objects. Each is a document that a client puts, whole, and
//! gets back as it was put. A file beside the bucket holds all of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::Extensions;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use s3s::dto;
use s3s::path::{S3Path, parse_path_style};
use s3s::route::S3Route;
use s3s::xml::{Deserialize as FromXml, Deserializer};
use s3s::{Body, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use serde::{Deserialize, Serialize};

use crate::fleet::files;

/// Largest document, in bytes.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Largest file of settings, in bytes: every document, each byte of it escaped.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A setting: the parameter of the query that names it, and its manner.
struct Setting {
    name: &'static str,
    unset: Unset,
    is_sound: fn(&str) -> bool,
    /// Status of a put.
    put: StatusCode,
    content_type: &'static str,
}

/// What is said of a setting that nobody has put.
enum Unset {
    Error(&'static str, &'static str),
    /// It has a document all the same, and cannot be deleted.
    Document(&'static str),
}

const XML: &str = "application/xml";
const NO_VERSIONS: &str = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>";

static SETTINGS: [Setting; 7] = [
    Setting {
        name: "publicAccessBlock",
        unset: Unset::Error(
            "NoSuchPublicAccessBlockConfiguration",
            "The public access block configuration was not found",
        ),
        is_sound: is_xml::<dto::PublicAccessBlockConfiguration>,
        put: StatusCode::OK,
        content_type: XML,
    },
    Setting {
        name: "encryption",
        unset: Unset::Error(
            "ServerSideEncryptionConfigurationNotFoundError",
            "The server side encryption configuration was not found",
        ),
        is_sound: is_xml::<dto::ServerSideEncryptionConfiguration>,
        put: StatusCode::OK,
        content_type: XML,
    },
    Setting {
        name: "versioning",
        unset: Unset::Document(NO_VERSIONS),
        is_sound: is_xml::<dto::VersioningConfiguration>,
        put: StatusCode::OK,
        content_type: XML,
    },
    Setting {
        name: "lifecycle",
        unset: Unset::Error("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
        is_sound: is_xml::<dto::BucketLifecycleConfiguration>,
        put: StatusCode::OK,
        content_type: XML,
    },
    Setting {
        name: "tagging",
        unset: Unset::Error("NoSuchTagSet", "The TagSet does not exist"),
        is_sound: is_xml::<dto::Tagging>,
        put: StatusCode::NO_CONTENT,
        content_type: XML,
    },
    Setting {
        name: "policy",
        unset: Unset::Error("NoSuchBucketPolicy", "The bucket policy does not exist"),
        is_sound: |text| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok(),
        put: StatusCode::NO_CONTENT,
        content_type: "application/json",
    },
    Setting {
        name: "ownershipControls",
        unset: Unset::Error("OwnershipControlsNotFoundError", "The bucket ownership controls were not found"),
        is_sound: is_xml::<dto::OwnershipControls>,
        put: StatusCode::OK,
        content_type: XML,
    },
];

fn is_xml<T: for<'xml> FromXml<'xml>>(text: &str) -> bool {
    let mut reader = Deserializer::new(text.as_bytes());
    T::deserialize(&mut reader).is_ok() && reader.expect_eof().is_ok()
}

/// The file of a bucket's settings.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// When the bucket was made, in nanoseconds since 1970, as far as its file system knows: the settings of a bucket that
    /// was deleted are not those of the next one of its name.
    bucket_made: Option<u64>,
    documents: BTreeMap<String, String>,
}

/// The settings of all buckets below a directory.
pub struct BucketSettings {
    store: Arc<Store>,
}

struct Store {
    root: PathBuf,
    /// Held while a file is read, changed and written.
    changing: Mutex<()>,
}

impl BucketSettings {
    pub fn new(root: &Path) -> Self {
        Self { store: Arc::new(Store { root: root.to_owned(), changing: Mutex::new(()) }) }
    }
}

/// The bucket and the setting that a request is about.
fn named(uri: &Uri) -> Option<(String, &'static Setting)> {
    let Ok(S3Path::Bucket { bucket }) = parse_path_style(uri.path()) else { return None };
    let mut names = uri.query()?.split('&').map(|part| part.split_once('=').map_or(part, |(name, _)| name));
    let setting = names.find_map(|name| SETTINGS.iter().find(|setting| setting.name == name))?;
    Some((bucket.into(), setting))
}

#[async_trait::async_trait]
impl S3Route for BucketSettings {
    fn is_match(&self, method: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        [Method::GET, Method::PUT, Method::DELETE].contains(method) && named(uri).is_some()
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let (bucket, setting) = named(&request.uri).ok_or_else(|| S3Error::new(S3ErrorCode::InvalidURI))?;
        let store = Arc::clone(&self.store);
        let done = |status| Ok(S3Response::with_status(Body::empty(), status));
        match request.method {
            Method::GET => shown(blocking(move || store.get(&bucket, setting.name)).await?, setting),
            Method::PUT => {
                let document = document(request.input, setting).await?;
                blocking(move || store.change(&bucket, setting.name, Some(document))).await?;
                done(setting.put)
            }
            _ if matches!(setting.unset, Unset::Document(_)) => {
                Err(S3Error::new(S3ErrorCode::MethodNotAllowed))
            }
            _ => {
                blocking(move || store.change(&bucket, setting.name, None)).await?;
                done(StatusCode::NO_CONTENT)
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> S3Result<T> + Send + 'static) -> S3Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(S3Error::internal_error)?
}

/// The answer to a get.
fn shown(kept: Option<String>, setting: &Setting) -> S3Result<S3Response<Body>> {
    let document = match (kept, &setting.unset) {
        (Some(document), _) => document,
        (None, Unset::Document(document)) => (*document).to_owned(),
        (None, Unset::Error(code, message)) => {
            let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::NoSuchKey);
            let mut error = S3Error::with_message(code, *message);
            error.set_status_code(StatusCode::NOT_FOUND);
            return Err(error);
        }
    };
    let mut response = S3Response::new(Body::from(document));
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(setting.content_type));
    Ok(response)
}

/// The document in a request, checked as far as its form goes.
async fn document(body: Body, setting: &Setting) -> S3Result<String> {
    let bytes = Limited::new(body, DOCUMENT_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message =
                format!("The document of {} must be at most {DOCUMENT_BYTES_MAX} bytes", setting.name);
            S3Error::with_message(S3ErrorCode::MaxMessageLengthExceeded, message)
        } else {
            S3Error::with_message(S3ErrorCode::IncompleteBody, error.to_string())
        }
    })?;
    let bytes = bytes.to_bytes();
    let text = std::str::from_utf8(&bytes).ok().filter(|text| (setting.is_sound)(text));
    text.map(str::to_owned).ok_or_else(|| {
        let code = if setting.content_type == XML {
            S3ErrorCode::MalformedXML
        } else {
            S3ErrorCode::MalformedPolicy
        };
        S3Error::with_message(code, format!("The document is not one of {}", setting.name))
    })
}

impl Store {
    fn get(&self, bucket: &str, name: &str) -> S3Result<Option<String>> {
        Ok(self.read(bucket)?.documents.remove(name))
    }

    /// Puts a document, or deletes it.
    fn change(&self, bucket: &str, name: &str, document: Option<String>) -> S3Result<()> {
        // A panic while it was held has left the file whole.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = self.read(bucket)?;
        match document {
            Some(document) => kept.documents.insert(name.to_owned(), document),
            None => kept.documents.remove(name),
        };
        let text = serde_json::to_vec(&kept).map_err(S3Error::internal_error)?;
        files::write_private(&self.file(bucket), &text, None).map_err(S3Error::internal_error)
    }

    /// Bucket names have no slashes and do not begin with a dot, so that no bucket has this name.
    fn file(&self, bucket: &str) -> PathBuf {
        self.root.join(format!(".settings-{bucket}.json"))
    }

    fn read(&self, bucket: &str) -> S3Result<Kept> {
        let directory = std::fs::metadata(self.root.join(bucket)).ok().filter(std::fs::Metadata::is_dir);
        let directory = directory.ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchBucket))?;
        let made = directory.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let bucket_made = made.and_then(|made| u64::try_from(made.as_nanos()).ok());
        let kept: Kept = match self.load(bucket) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(S3Error::internal_error(error)),
        };
        if kept.bucket_made == bucket_made { Ok(kept) } else { Ok(Kept { bucket_made, ..Kept::default() }) }
    }

    fn load(&self, bucket: &str) -> io::Result<Kept> {
        use std::io::Read as _;
        let mut text = Vec::new();
        std::fs::File::open(self.file(bucket))?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

#[cfg(test)]
mod tests;
