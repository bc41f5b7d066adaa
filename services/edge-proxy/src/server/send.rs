//! Sends one admitted request to its app and brings the response back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::adapters::body::{ReplayBody, ResponseBody};
use crate::adapters::dial::Dialer;
use crate::adapters::tunnels::{Connection, PortKey, Tunnels};
use crate::domain::port::Door;
use crate::domain::refusal::Refusal;
use crate::domain::route::{Route, RouteState};
use crate::domain::timing;
use crate::metrics::Metrics;
use crate::server::headers;

pub struct Sender {
    pub dialer: Dialer,
    /// Longest wait for the app's response headers.
    pub response_wait: Duration,
    pub tunnels: Arc<Tunnels>,
    pub metrics: Arc<Metrics>,
    /// The tasks that carry WebSockets.
    pub websockets: TaskTracker,
    /// Cancelled when the edge stops: cuts the WebSockets.
    pub stop: CancellationToken,
}

pub struct Admitted {
    pub label: Uuid,
    /// The route as it was at admission.
    pub route: Arc<Route>,
    pub door: Door,
    pub request_id: String,
    /// How long the token took to check.
    pub token_time: Duration,
    /// How many revocations the token knew of.
    pub token_revocations: u64,
    /// Held until the response has been sent.
    pub permit: OwnedSemaphorePermit,
}

/// Why a try brought no response.
enum AttemptError {
    Final(Refusal),
    /// The connection was dead; here is the request again.
    Resend(Box<Request<Incoming>>),
}

pub struct Opened {
    pub connection: Connection,
    key: PortKey,
    reused: bool,
    pub server_timing: Option<String>,
}

impl Sender {
    /// Sends the request; when a kept connection turns out to be dead, once more on a fresh tunnel.
    ///
    /// When a microVM is suspended between two requests, its host cuts the tunnel, and the edge learns of it only by writing
    /// the next request into it. So a failure on a kept connection says nothing about the app: the request goes again,
    /// unless the app may have acted on it. A failure on a fresh tunnel is the app's own and is answered 502.
    pub async fn send(
        &self,
        admitted: Admitted,
        client: IpAddr,
        host: &HeaderValue,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let http2 = request.headers().get(headers::FORCE_H2).is_some_and(|value| value.as_bytes() == b"true");
        let (mut parts, body) = request.into_parts();
        headers::forward_request(&mut parts, host, client, http2);
        let opened = self.connection(&admitted, http2, false).await?;
        let again = match self.attempt(opened, parts, body).await {
            Ok(response) => return Ok(finish(response, admitted.permit)),
            Err(AttemptError::Final(refusal)) => return Err(refusal),
            Err(AttemptError::Resend(request)) => request,
        };
        self.metrics.resent.inc();
        let (parts, body) = again.into_parts();
        let opened = Box::pin(self.connection(&admitted, http2, true)).await?;
        match Box::pin(self.attempt(opened, parts, body)).await {
            Ok(response) => Ok(finish(response, admitted.permit)),
            Err(AttemptError::Final(refusal)) => Err(refusal),
            Err(AttemptError::Resend(_)) => Err(Refusal::AppConnectFailed),
        }
    }

    /// A connection to the app: a kept one unless it must be `fresh`.
    pub async fn connection(&self, admitted: &Admitted, http2: bool, fresh: bool) -> Result<Opened, Refusal> {
        let key = |generation| PortKey {
            microvm_id: admitted.route.microvm_id.clone(),
            generation,
            door: admitted.door,
        };
        let kept = key(admitted.route.generation);
        // A kept connection sleeps and wakes with its microVM, but only a fresh tunnel says what the wake was made of.
        let awake = admitted.route.state == RouteState::Running;
        if awake
            && !fresh
            && let Some(connection) = self.tunnels.take(&kept, http2)
        {
            return Ok(Opened { connection, key: kept, reused: true, server_timing: None });
        }
        let started = Instant::now();
        let dialed = Box::pin(self.dialer.dial(admitted.label, admitted.door, &admitted.request_id)).await?;
        self.metrics.tunnels_opened.inc();
        let open_time = started.elapsed();
        let waited = !dialed.phases.is_empty();
        if waited {
            self.metrics.waits.observe(open_time.as_secs_f64());
        }
        let server_timing = waited.then(|| timing::header(admitted.token_time, open_time, &dialed.phases));
        let key = key(dialed.generation);
        let connection = Box::pin(self.tunnels.connect(&key, dialed.stream, http2)).await;
        let connection = connection.map_err(|_| Refusal::AppConnectFailed)?;
        Ok(Opened { connection, key, reused: false, server_timing })
    }

    async fn attempt(
        &self,
        opened: Opened,
        parts: Parts,
        body: Incoming,
    ) -> Result<Response<Incoming>, AttemptError> {
        let Opened { connection, key, reused, server_timing } = opened;
        // Only a kept connection can have died while it was unused: what is needed to send again is kept for it alone. The
        // body can be had back only until its first frame is asked for.
        let spare = reused.then(|| (parts.clone(), body.is_end_stream()));
        let (body, replay) = ReplayBody::new(body);
        let request = Request::from_parts(parts, body);
        let limit = self.response_wait;
        let (sent, sender) = match connection {
            Connection::Http1(mut sender) => {
                (tokio::time::timeout(limit, sender.try_send_request(request)).await, Some(sender))
            }
            Connection::Http2(mut sender) => {
                (tokio::time::timeout(limit, sender.try_send_request(request)).await, None)
            }
        };
        let error = match sent {
            Ok(Ok(mut response)) => {
                if let Some(sender) = sender {
                    self.tunnels.keep(key, sender);
                }
                headers::forward_response(response.headers_mut());
                headers::add_server_timing(response.headers_mut(), server_timing);
                return Ok(response);
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(AttemptError::Final(Refusal::AppConnectFailed)),
        };
        tracing::debug!(error = %error.error(), reused, "no response");
        let body = replay.back();
        match (spare, body) {
            (Some((parts, empty)), Some(body)) if may_resend(error, &parts, empty) => {
                Err(AttemptError::Resend(Box::new(Request::from_parts(parts, body))))
            }
            _ => Err(AttemptError::Final(Refusal::AppConnectFailed)),
        }
    }
}

/// True when the app cannot have acted on the request, or may act on it twice.
/// The body, if any, has not been read.
fn may_resend<T>(mut error: TrySendError<T>, parts: &Parts, empty_body: bool) -> bool {
    let never_sent = error.take_message().is_some();
    never_sent || headers::is_idempotent(&parts.method) || !empty_body
}

fn finish(response: Response<Incoming>, permit: OwnedSemaphorePermit) -> Response<ResponseBody> {
    response.map(|body| ResponseBody::app(body, permit))
}
