use super::*;
use crate::fleet::s3::requests::request;

const TAGS: &str = "<Tagging xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><TagSet><Tag><Key>team</Key>\
                    <Value>a</Value></Tag></TagSet></Tagging>";

struct World {
    directory: tempfile::TempDir,
    settings: BucketSettings,
}

/// Status and body, or the error's code.
type Told = Result<(u16, String), String>;

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("one")).unwrap();
        let settings = BucketSettings::new(directory.path());
        Self { directory, settings }
    }

    async fn ask(&self, method: Method, target: &str, body: &str) -> Told {
        let uri: Uri = target.parse().unwrap();
        assert!(self.settings.is_match(&method, &uri, &HeaderMap::new(), &mut Extensions::new()), "{target}");
        let request = request(method, uri, Body::from(body.to_owned()));
        let answer = self.settings.call(request).await.map_err(|error| error.code().as_str().to_owned())?;
        let body = answer.output.collect().await.unwrap().to_bytes();
        Ok((answer.status.unwrap_or_default().as_u16(), String::from_utf8(body.to_vec()).unwrap()))
    }

    async fn get(&self, target: &str) -> Told {
        self.ask(Method::GET, target, "").await
    }
}

fn code(code: &str) -> Told {
    Err(code.to_owned())
}

fn done(status: u16) -> Told {
    Ok((status, String::new()))
}

#[tokio::test]
async fn what_is_put_is_shown_until_it_is_deleted() {
    let world = World::new();
    for (name, unset, put, document) in [
        (
            "publicAccessBlock",
            "NoSuchPublicAccessBlockConfiguration",
            200,
            "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>",
        ),
        (
            "encryption",
            "ServerSideEncryptionConfigurationNotFoundError",
            200,
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm>\
             </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>",
        ),
        (
            "lifecycle",
            "NoSuchLifecycleConfiguration",
            200,
            "<LifecycleConfiguration><Rule><ID>old</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>\
             <Expiration><Days>7</Days></Expiration></Rule></LifecycleConfiguration>",
        ),
        ("tagging", "NoSuchTagSet", 204, TAGS),
        ("policy", "NoSuchBucketPolicy", 204, "{\"Version\": \"2012-10-17\", \"Statement\": []}"),
        (
            "ownershipControls",
            "OwnershipControlsNotFoundError",
            200,
            "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>",
        ),
    ] {
        let target = format!("/one?{name}");
        assert_eq!(world.get(&target).await, code(unset), "{name}");
        assert_eq!(world.ask(Method::PUT, &target, document).await, done(put), "{name}");
        let shown = Ok((200, document.to_owned()));
        assert_eq!(world.get(&target).await, shown, "{name}");
        // Another process finds the same.
        let again = BucketSettings::new(world.directory.path());
        assert_eq!(again.store.get("one", name).unwrap().as_deref(), Some(document), "{name}");
        assert_eq!(world.ask(Method::DELETE, &target, "").await, done(204), "{name}");
        assert_eq!(world.get(&target).await, code(unset), "{name}");
        assert_eq!(world.ask(Method::DELETE, &target, "").await, done(204), "{name} again");
    }
}

#[tokio::test]
async fn versioning_is_off_until_it_is_put() {
    let world = World::new();
    assert_eq!(world.get("/one?versioning").await, Ok((200, NO_VERSIONS.to_owned())));
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    assert_eq!(world.ask(Method::PUT, "/one/?versioning=", enabled).await, done(200));
    assert_eq!(world.get("/one?versioning&x-id=GetBucketVersioning").await, Ok((200, enabled.to_owned())));
    assert_eq!(world.ask(Method::DELETE, "/one?versioning", "").await, code("MethodNotAllowed"));
}

#[tokio::test]
async fn what_is_not_sound_is_refused_and_changes_nothing() {
    let world = World::new();
    world.ask(Method::PUT, "/one?tagging", TAGS).await.unwrap();
    let long = format!("<Tagging><TagSet></TagSet></Tagging>{}", " ".repeat(DOCUMENT_BYTES_MAX));
    for (target, body, expected) in [
        ("/one?tagging", "<Tagging>", "MalformedXML"),
        ("/one?tagging", "<Other></Other>", "MalformedXML"),
        ("/one?tagging", "", "MalformedXML"),
        ("/one?tagging", &long, "MaxMessageLengthExceeded"),
        ("/one?policy", "[]", "MalformedPolicy"),
        ("/two?tagging", TAGS, "NoSuchBucket"),
    ] {
        assert_eq!(world.ask(Method::PUT, target, body).await, code(expected), "{target}");
    }
    assert_eq!(world.get("/two?policy").await, code("NoSuchBucket"));
    assert_eq!(world.get("/one?tagging").await, Ok((200, TAGS.to_owned())));
}

#[tokio::test]
async fn a_new_bucket_of_the_name_has_no_settings() {
    let world = World::new();
    world.ask(Method::PUT, "/one?tagging", TAGS).await.unwrap();
    let bucket = world.directory.path().join("one");
    if std::fs::metadata(&bucket).unwrap().created().is_err() {
        return; // This file system does not say when a directory was made.
    }
    std::fs::remove_dir(&bucket).unwrap();
    std::fs::create_dir(&bucket).unwrap();
    assert_eq!(world.get("/one?tagging").await, code("NoSuchTagSet"));
}

#[test]
fn objects_and_other_questions_are_not_the_routes_business() {
    let settings = BucketSettings::new(Path::new("/none"));
    for (method, target) in [
        (Method::GET, "/one"),
        (Method::GET, "/one?list-type=2"),
        (Method::GET, "/one/key?tagging"),
        (Method::GET, "/?tagging"),
        (Method::POST, "/one?tagging"),
        (Method::DELETE, "/one"),
        (Method::GET, "/.one?tagging"),
    ] {
        let uri: Uri = target.parse().unwrap();
        let matched = settings.is_match(&method, &uri, &HeaderMap::new(), &mut Extensions::new());
        assert!(!matched, "{method} {target}");
    }
}
