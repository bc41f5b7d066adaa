//! What Torpor asks of an S3 server. Runs against one in the process, and also
//! against `$TORPOR_TEST_S3_ENDPOINT` (with the usual `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY` and `AWS_REGION`) when that is set.
#![allow(clippy::unwrap_used)] // Helpers of tests may panic like the tests themselves.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::{Config, Error, MULTIPART_THRESHOLD_BYTES, Store};
use testkit::TestS3;

/// A store, a bucket of the test's own, and a key prefix nobody else uses.
struct Place {
    store: Store,
    bucket: String,
    prefix: String,
    _server: Option<TestS3>,
}

impl Place {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }
}

async fn places() -> Vec<Place> {
    let server = TestS3::start().await;
    let mut places = vec![Place {
        store: server.store(),
        bucket: "conformance".to_owned(),
        prefix: "t".to_owned(),
        _server: Some(server),
    }];
    if let Ok(endpoint) = std::env::var("TORPOR_TEST_S3_ENDPOINT") {
        let config = Config {
            endpoint: Some(endpoint),
            access_key_id: std::env::var("AWS_ACCESS_KEY_ID").ok(),
            secret_access_key: std::env::var("AWS_SECRET_ACCESS_KEY").ok(),
            region: std::env::var("AWS_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
            path_style: true,
            ..Config::default()
        };
        let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        places.push(Place {
            store: Store::connect(&config).unwrap(),
            bucket: "torpor-conformance".to_owned(),
            prefix: format!("t{unique}"),
            _server: None,
        });
    }
    for place in &places {
        place.store.ensure_bucket(&place.bucket).await.unwrap();
    }
    places
}

#[tokio::test]
async fn objects_come_back_as_they_were_put() {
    for place in places().await {
        let (store, bucket) = (&place.store, place.bucket.as_str());
        store.ensure_bucket(bucket).await.unwrap();
        for (name, body) in
            [("empty", Bytes::new()), ("small", "abc".into()), ("deep/er/one", vec![7u8; 100_000].into())]
        {
            let key = place.key(name);
            store.put(bucket, &key, body.clone()).await.unwrap();
            assert_eq!(store.get(bucket, &key, 1 << 20).await.unwrap(), body, "{name}");
            let head = store.head(bucket, &key).await.unwrap();
            assert_eq!(head.size, body.len() as u64, "{name}");
            assert!(head.etag.is_some(), "{name}");
        }
        store.put(bucket, &place.key("small"), "other".into()).await.unwrap();
        assert_eq!(store.get(bucket, &place.key("small"), 5).await.unwrap(), "other");
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_missing_is_not_found_and_may_be_deleted() {
    for place in places().await {
        let (store, bucket, key) = (&place.store, place.bucket.as_str(), place.key("nothing"));
        let error = store.get(bucket, &key, 10).await.unwrap_err();
        assert!(
            matches!(&error, Error::NotFound { bucket: b, key: k } if b == bucket && *k == key),
            "{error}"
        );
        assert!(error.determinate() && !error.retryable());
        assert!(store.head(bucket, &key).await.unwrap_err().is_not_found());
        assert!(store.get_range(bucket, &key, 0..1).await.unwrap_err().is_not_found());
        store.delete(bucket, &key).await.unwrap();
        assert_eq!(store.delete_prefix(bucket, &key).await.unwrap(), 0);
        assert!(store.list_prefix(bucket, &key, 10).await.unwrap().is_empty());
        let missing = "no-such-bucket-anywhere";
        assert!(store.get(missing, &key, 10).await.unwrap_err().is_not_found());
        let error = store.list_prefix(missing, "a", 10).await.unwrap_err();
        assert!(matches!(error, Error::NoSuchBucket { .. }), "{error}");
    }
}

#[tokio::test]
async fn put_if_absent_keeps_the_first() {
    for place in places().await {
        let (store, bucket, key) = (&place.store, place.bucket.as_str(), place.key("once"));
        store.put_if_absent(bucket, &key, "first".into()).await.unwrap();
        let error = store.put_if_absent(bucket, &key, "second".into()).await.unwrap_err();
        assert!(matches!(error, Error::PreconditionFailed { .. }), "{error}");
        assert!(!error.determinate());
        assert_eq!(store.get(bucket, &key, 10).await.unwrap(), "first");
        store.delete(bucket, &key).await.unwrap();
        store.put_if_absent(bucket, &key, "third".into()).await.unwrap();
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn limits_are_kept() {
    for place in places().await {
        let (store, bucket, key) = (&place.store, place.bucket.as_str(), place.key("ten"));
        store.put(bucket, &key, "0123456789".into()).await.unwrap();
        assert_eq!(store.get(bucket, &key, 10).await.unwrap().len(), 10);
        let error = store.get(bucket, &key, 9).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 9, .. }), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ten");
        let error = store.get_file(bucket, &key, &path, 9, &|_, _| {}).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 9, .. }), "{error}");
        assert!(!path.exists());
        store.put(bucket, &place.key("eleven"), "x".into()).await.unwrap();
        let error = store.list_prefix(bucket, &place.prefix, 1).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 1, .. }), "{error}");
        let error = store.put(bucket, "a/../b", "x".into()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn ranges() {
    for place in places().await {
        let (store, bucket, key) = (&place.store, place.bucket.as_str(), place.key("ten"));
        store.put(bucket, &key, "0123456789".into()).await.unwrap();
        for (range, expected) in [(0..1, "0"), (3..7, "3456"), (9..10, "9"), (8..50, "89")] {
            assert_eq!(store.get_range(bucket, &key, range.clone()).await.unwrap(), expected, "{range:?}");
        }
        for range in [10..11, 5..5] {
            let error = store.get_range(bucket, &key, range.clone()).await.unwrap_err();
            assert!(matches!(error, Error::Other { .. }), "{range:?}: {error}");
        }
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn lists_have_pages_and_an_order() {
    for place in places().await {
        let (store, bucket) = (&place.store, place.bucket.as_str());
        // More than one page, written a few at a time.
        let keys: Vec<String> = (0..1005).map(|index| place.key(&format!("many/{index:05}"))).collect();
        for some in keys.chunks(50) {
            let puts = some.iter().map(|key| store.put(bucket, key, "x".into()));
            futures::future::try_join_all(puts).await.unwrap();
        }
        store.put(bucket, &place.key("many-not"), "x".into()).await.unwrap();
        let listed = store.list_prefix(bucket, &place.key("many/"), 2000).await.unwrap();
        assert_eq!(listed.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), keys);
        assert!(listed.iter().all(|entry| entry.size == 1));
        assert_eq!(store.delete_prefix(bucket, &place.key("many/")).await.unwrap(), 1005);
        let rest = store.list_prefix(bucket, &place.prefix, 10).await.unwrap();
        assert_eq!(rest.len(), 1, "only the object beside the prefix is left");
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn folders_are_listed_once_and_objects_say_when_they_were_written() {
    for place in places().await {
        let (store, bucket) = (&place.store, &place.bucket);
        for name in ["a/1/x", "a/1/y", "a/2/x", "a/3/z/x", "a/beside"] {
            store.put(bucket, &place.key(name), Bytes::from_static(b"x")).await.unwrap();
        }
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let page = store.list_folders(bucket, &place.key("a/"), token, 2).await.unwrap();
            assert!(page.names.len() <= 2);
            found.extend(page.names);
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(found, ["1", "2", "3"]);
        let listed = store.list_prefix(bucket, &place.key("a/2/"), 10).await.unwrap();
        let age = SystemTime::now().duration_since(listed[0].modified.unwrap()).unwrap_or_default();
        assert!(age.as_secs() < 3600, "{age:?}");
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn files_go_up_and_down_in_both_sizes() {
    for place in places().await {
        let (store, bucket) = (&place.store, place.bucket.as_str());
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 5, MULTIPART_THRESHOLD_BYTES, MULTIPART_THRESHOLD_BYTES + 12_345] {
            let key = place.key("file");
            let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            let (up, down) = (folder.path().join("up"), folder.path().join("down"));
            std::fs::write(&up, &content).unwrap();
            let seen = Mutex::new((0, 0));
            let progress = |done, total| *seen.lock().unwrap() = (done, total);
            assert_eq!(store.put_file(bucket, &key, &up, &progress).await.unwrap(), size);
            assert_eq!(*seen.lock().unwrap(), (size, size));
            assert_eq!(store.get_file(bucket, &key, &down, size, &progress).await.unwrap(), size);
            assert!(std::fs::read(&down).unwrap() == content, "{size} bytes");
        }
        store.delete_prefix(bucket, &place.prefix).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_multipart_upload_leaves_nothing() {
    let server = TestS3::start().await;
    let store = server.store();
    store.ensure_bucket("files").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("up");
    std::fs::write(&path, vec![1u8; 40 << 20]).unwrap();
    server.fail_puts_after(2);
    let error = store.put_file("files", "big", &path, &|_, _| {}).await.unwrap_err();
    assert!(error.retryable() && !error.determinate(), "{error}");
    assert!(store.head("files", "big").await.unwrap_err().is_not_found());
    let root = server.object_path("files", "big").parent().unwrap().parent().unwrap().to_owned();
    let left: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".part-"))
        .collect();
    assert!(left.is_empty(), "parts are given back: {left:?}");
    server.heal();
    assert_eq!(store.put_file("files", "big", &path, &|_, _| {}).await.unwrap(), 40 << 20);
}

#[tokio::test]
async fn wrong_credentials_are_denied() {
    let server = TestS3::start().await;
    server.store().ensure_bucket("private").await.unwrap();
    server.store().put("private", "a", "x".into()).await.unwrap();
    let wrong = [Some(("test-access-key", "wrong")), Some(("nobody", "wrong")), None];
    for credentials in wrong {
        let config = Config {
            access_key_id: credentials.map(|(id, _)| id.to_owned()),
            secret_access_key: credentials.map(|(_, secret)| secret.to_owned()),
            ..server.config()
        };
        let error = Store::connect(&config).unwrap().get("private", "a", 10).await.unwrap_err();
        assert!(matches!(error, Error::AccessDenied { .. }), "{credentials:?}: {error}");
    }
}

#[tokio::test]
async fn a_store_out_of_reach_is_unavailable() {
    // A port that was free a moment ago answers nobody.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    drop(socket);
    let config = Config { endpoint: Some(endpoint), path_style: true, attempts_max: 2, ..Config::default() };
    let error = Store::connect(&config).unwrap().put("b", "k", "x".into()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { operation: "put", .. }), "{error}");
    assert!(error.retryable() && !error.determinate());
}

#[test]
fn half_a_configuration_is_refused() {
    let bad = [
        Config { endpoint: Some("localhost:9000".to_owned()), ..Config::default() },
        Config { access_key_id: Some("id".to_owned()), ..Config::default() },
    ];
    for config in bad {
        assert!(Store::connect(&config).is_err(), "{config:?}");
    }
}
