//! An S3 server in the process, over a temporary folder.
//!
//! Objects are plain files ([`TestS3::object_path`]), so a test can damage one behind the store's back, and
//! writes can be made to fail after a while ([`TestS3::fail_puts_after`]).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::future::BoxFuture;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use object_store::{Config, Store};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

const ACCESS_KEY: &str = "test-access-key";
const SECRET_KEY: &str = "test-secret-key";

/// A running server; dropping it stops it and removes its folder.
pub struct TestS3 {
    endpoint: String,
    folder: tempfile::TempDir,
    puts_left: Arc<AtomicI64>,
    server: tokio::task::JoinHandle<()>,
}

impl TestS3 {
    /// Starts a server on a free loopback port.
    pub fn start() -> BoxFuture<'static, Self> {
        Box::pin(Self::serve())
    }

    async fn serve() -> Self {
        let folder = tempfile::tempdir().expect("tests have a temporary folder");
        let files = s3s_fs::FileSystem::new(folder.path()).expect("the folder was just made");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let puts_left = Arc::new(AtomicI64::new(i64::MAX));
        let left = Arc::clone(&puts_left);
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, left) = (service.clone(), Arc::clone(&left));
                let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let (service, left) = (service.clone(), Arc::clone(&left));
                    async move {
                        let put = request.method() == hyper::Method::PUT;
                        if put && left.fetch_sub(1, Ordering::SeqCst) <= 0 {
                            let mut refusal = s3s::HttpResponse::new(s3s::Body::empty());
                            *refusal.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
                            return Ok(refusal);
                        }
                        service.call(request.map(s3s::Body::from)).await
                    }
                });
                tokio::spawn(async move {
                    let http = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is no news.
                    let _ = http.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        Self { endpoint: format!("http://{address}"), folder, puts_left, server }
    }

    /// Copies all objects into a folder, for other servers to begin with.
    ///
    /// # Panics
    /// When they cannot be copied.
    pub fn save(&self, to: &Path) {
        copy(self.folder.path(), to);
    }

    /// Begins with the objects that another server saved in a folder.
    ///
    /// # Panics
    /// When they cannot be copied.
    pub fn load(&self, from: &Path) {
        copy(from, self.folder.path());
    }

    /// How to reach the server; two attempts per request, so that tests of failures are quick.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            endpoint: Some(self.endpoint.clone()),
            access_key_id: Some(ACCESS_KEY.to_owned()),
            secret_access_key: Some(SECRET_KEY.to_owned()),
            path_style: true,
            attempts_max: 2,
            ..Config::default()
        }
    }

    /// A handle on the server.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::connect(&self.config()).expect("the test server's configuration is complete")
    }

    /// The file in which an object lies.
    #[must_use]
    pub fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.path().join(bucket).join(key)
    }

    /// Lets `count` more PUT requests through, then answers 503 to them.
    pub fn fail_puts_after(&self, count: u32) {
        self.puts_left.store(i64::from(count), Ordering::SeqCst);
    }

    /// Takes every request again.
    pub fn heal(&self) {
        self.puts_left.store(i64::MAX, Ordering::SeqCst);
    }
}

impl Drop for TestS3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Copies what is in a folder into another.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder can be made");
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} cannot be copied", from.display());
}
