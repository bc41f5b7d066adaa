//! The embedded S3: the S3 API over a directory, for development. It speaks
//! plain HTTP on loopback; production points the services at a real endpoint.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::bucket_settings::BucketSettings;
use self::tidied::TidiedFiles;
use super::credentials::S3Credentials;
use crate::error::CliError;
use crate::output;

mod bucket_settings;
#[cfg(test)]
mod requests;
mod tidied;

/// How long open requests may take to end when we are asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections served at one time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    listen: SocketAddr,
    root: PathBuf,
    buckets: Vec<String>,
    keys: Vec<S3Credentials>,
}

pub async fn serve(config: &Path) -> Result<(), CliError> {
    let text = std::fs::read_to_string(config)
        .map_err(|error| CliError::failed(format!("cannot read {}: {error}", config.display())))?;
    let settings: Settings =
        toml::from_str(&text).map_err(|error| CliError::failed(format!("{}: {error}", config.display())))?;
    for bucket in &settings.buckets {
        // A bucket is a directory; making it here saves every client the question.
        std::fs::create_dir_all(settings.root.join(bucket))?;
    }
    let files = s3s_fs::FileSystem::new(&settings.root)
        .map_err(|error| CliError::failed(format!("cannot serve {}: {error:?}", settings.root.display())))?;
    let files = TidiedFiles::new(&settings.root, files);
    files.sweep()?;
    let mut builder = S3ServiceBuilder::new(files);
    let mut keys = SimpleAuth::new();
    for key in settings.keys {
        keys.register(key.access_key_id, key.secret_access_key.into());
    }
    builder.set_auth(keys);
    builder.set_route(BucketSettings::new(&settings.root));
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| CliError::failed(format!("cannot listen on {}: {error}", settings.listen)))?;
    output::remark(format_args!("s3 serves {} on http://{}", settings.root.display(), settings.listen));
    accept(listener, builder.build()).await
}

async fn accept(listener: TcpListener, service: S3Service) -> Result<(), CliError> {
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let graceful = GracefulShutdown::new();
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let mut stop = signal(SignalKind::terminate())?;
    loop {
        let place =
            places.clone().acquire_owned().await.map_err(|error| CliError::failed(error.to_string()))?;
        let stream = tokio::select! {
            _ = stop.recv() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: let connections end.
                    output::remark(format_args!("cannot accept: {error}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let connection =
            graceful.watch(server.serve_connection(TokioIo::new(stream), service.clone()).into_owned());
        tokio::spawn(async move {
            // A client that goes away in the middle is no event.
            let _ = connection.await;
            drop(place);
        });
    }
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
    Ok(())
}
