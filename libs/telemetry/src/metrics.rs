//! `/metrics`, for Prometheus, and how services add to it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CONNECTIONS_MAX: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The metrics of one service, under registration.
#[derive(Debug)]
pub struct Part<'a>(&'a mut Registry);

impl Part<'_> {
    /// Shows `metric` under `name` and gives it back for counting.
    pub fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }
}

/// Lets `fill` add metrics to `registry`, their names prefixed with `<prefix>_` if there is a prefix.
pub fn register<T>(
    registry: &Mutex<Registry>,
    prefix: Option<&str>,
    fill: impl FnOnce(&mut Part<'_>) -> T,
) -> T {
    let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    fill(&mut Part(match prefix {
        Some(prefix) => registry.sub_registry_with_prefix(prefix),
        None => &mut registry,
    }))
}

/// Serves `/metrics` on `address` until the process ends; returns the bound address.
pub fn serve_metrics(
    address: SocketAddr,
    registry: Arc<Mutex<Registry>>,
) -> BoxFuture<'static, Result<SocketAddr, std::io::Error>> {
    Box::pin(async move {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                    return;
                };
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors: others need the processor more than we do.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let registry = Arc::clone(&registry);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&registry)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    drop(permit);
                });
            }
        });
        Ok(bound)
    })
}

async fn answer(
    request: Request<Incoming>,
    registry: Arc<Mutex<Registry>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        let mut response = Response::new(Full::from("not found; try /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    let mut text = String::new();
    let encoded = encode(&mut text, &registry.lock().unwrap_or_else(PoisonError::into_inner));
    let mut response = Response::new(Full::from(text));
    if encoded.is_err() {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    Ok(response)
}
