//! What every call passes through on the server side, outermost first: request
//! id, span with the caller's trace context, and a net for panics (a bug in one
//! handler must end one call, as INTERNAL, not the process's other calls).

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;
use uuid::Uuid;

use api::errors::{self, reason};

/// Header and metadata key of the request id.
pub const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_LENGTH_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of one call, the caller's or a fresh one; in every log line, span and answer of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the call this task serves.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// The caller's id when it is short visible ASCII, else a fresh one.
    fn of<B>(request: &Request<B>) -> Self {
        let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
        match given {
            Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_LENGTH_MAX => Self(id.to_owned()),
            _ => Self(Uuid::new_v4().to_string()),
        }
    }
}

/// The request id of a call.
#[must_use]
pub fn request_id<T>(request: &tonic::Request<T>) -> String {
    request.extensions().get::<RequestId>().map_or_else(String::new, |id| id.0.clone())
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CallLayer;

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        CallService { inner }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct CallService<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for CallService<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let id = RequestId::of(&request);
        let span = tracing::info_span!("rpc", method = request.uri().path(), request_id = id.as_str());
        if let Some(parent) = request.headers().get(telemetry::TRACEPARENT).and_then(|v| v.to_str().ok()) {
            telemetry::set_parent(&span, parent);
        }
        request.extensions_mut().insert(id.clone());
        let header = HeaderValue::from_str(id.as_str()).ok();
        let call = CURRENT.scope(id, async move { inner.call(request).await });
        Box::pin(
            async move {
                let mut response = match AssertUnwindSafe(call).catch_unwind().await {
                    Ok(answered) => answered?,
                    Err(_) => {
                        tracing::error!("a handler panicked");
                        panicked().into_http()
                    }
                };
                if let Some(header) = header {
                    response.headers_mut().insert(REQUEST_ID, header);
                }
                Ok(response)
            }
            .instrument(span),
        )
    }
}

fn panicked() -> Status {
    errors::status(Code::Internal, reason::INTERNAL, "a bug in Torpor ended this call", &[])
}
