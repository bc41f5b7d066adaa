use hyper::{Method, Uri};
use s3s::Body;

use super::*;
use crate::fleet::s3::requests;

const BUCKET: &str = "one";

struct World {
    directory: tempfile::TempDir,
    files: TidiedFiles,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let files = Self::serve(directory.path());
        Self { directory, files }
    }

    fn serve(root: &Path) -> TidiedFiles {
        TidiedFiles::new(root, FileSystem::new(root).unwrap())
    }

    async fn put(&self, key: &str) {
        let body = StreamingBlob::from(Body::from("content".to_owned()));
        let input = PutObjectInput::builder().bucket(BUCKET.into()).key(key.into()).body(Some(body));
        self.files.put_object(request(input.build().unwrap())).await.unwrap();
    }

    async fn delete(&self, key: &str) {
        let input = DeleteObjectInput::builder().bucket(BUCKET.into()).key(key.into()).build().unwrap();
        self.files.delete_object(request(input)).await.unwrap();
    }

    async fn delete_many(&self, keys: &[&str]) {
        let objects = keys.iter().map(|key| ObjectIdentifier { key: (*key).into(), ..Default::default() });
        let delete = Delete { objects: objects.collect(), quiet: None };
        let input = DeleteObjectsInput::builder().bucket(BUCKET.into()).delete(delete).build().unwrap();
        self.files.delete_objects(request(input)).await.unwrap();
    }

    async fn get(&self, key: &str) -> S3Result<S3Response<GetObjectOutput>> {
        let input = GetObjectInput::builder().bucket(BUCKET.into()).key(key.into()).build().unwrap();
        self.files.get_object(request(input)).await
    }

    /// Directories and files of attributes, without the buckets' own.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        visit(self.directory.path(), "", &mut left);
        left.sort();
        left
    }
}

fn visit(path: &Path, below: &str, left: &mut Vec<String>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        let is_directory = entry.file_type().unwrap().is_dir();
        if name != BUCKET {
            left.push(name.clone());
        }
        if is_directory {
            visit(&entry.path(), &format!("{name}/"), left);
        }
    }
}

fn request<T>(input: T) -> S3Request<T> {
    requests::request(Method::GET, Uri::from_static("/"), input)
}

#[tokio::test]
async fn what_is_deleted_leaves_nothing_and_its_neighbours_stay() {
    let world = World::new();
    assert_eq!(world.left(), [""; 0]);
    for key in ["a/b/c/1", "a/b/c/2", "a/d", "e", "f/g/1", "f/g/2"] {
        world.put(key).await;
    }
    let attributes = world.left().iter().filter(|name| name.starts_with(".bucket-")).count();
    assert_eq!(attributes % 6, 0, "of each object as many");
    assert!(attributes > 0, "the server keeps none any more: this is not needed");
    world.delete("a/b/c/1").await;
    assert!(world.left().contains(&"one/a/b/c/2".to_owned()));
    world.delete("a/b/c/2").await;
    world.delete("a/b/c/2").await;
    world.delete("e").await;
    world.delete_many(&["f/g/1", "f/g/2", "f/none"]).await;
    let left = world.left();
    let (own, objects): (Vec<_>, Vec<_>) = left.iter().partition(|name| name.starts_with(".bucket-"));
    assert_eq!((own.len(), objects), (attributes / 6, vec![&"one/a".to_owned(), &"one/a/d".to_owned()]));
    world.get("a/d").await.unwrap();
    world.delete("a/d").await;
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn a_directory_that_is_written_to_stays() {
    let world = World::new();
    world.put("a/b/1").await;
    let writing = [world.files.writing(BUCKET, "a/b/2"), world.files.writing(BUCKET, "a/b/2")];
    world.delete("a/b/1").await;
    assert_eq!(world.left(), ["one/a", "one/a/b"]);
    let [first, second] = writing;
    drop(first);
    world.put("a/b/1").await;
    world.delete("a/b/1").await;
    assert_eq!(world.left(), ["one/a", "one/a/b"], "one of two writes on");
    drop(second);
    // Of the same name prefix, and another directory.
    let _beside = world.files.writing(BUCKET, "a/bc");
    world.put("a/b/1").await;
    world.delete("a/b/1").await;
    assert_eq!(world.left(), ["one/a"]);
}

#[tokio::test]
async fn a_start_removes_what_others_left() {
    let world = World::new();
    for key in ["a/b/1", "c/2", "d"] {
        world.put(key).await;
    }
    // As a process leaves them that dies after it has removed the object.
    for key in ["a/b/1", "d"] {
        std::fs::remove_file(world.directory.path().join(BUCKET).join(key)).unwrap();
    }
    World::serve(world.directory.path()).sweep().unwrap();
    world.get("c/2").await.unwrap();
    world.delete("c/2").await;
    assert_eq!(world.left(), [""; 0]);
}
