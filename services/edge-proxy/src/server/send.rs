//! Sends one admitted request to its app and brings the response back.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;
use hyper::ext::on_informational;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::adapters::body::{ClientBody, ReplayBody, ResponseBody};
use crate::adapters::dial::{Dialed, Dialer, GuestStream};
use crate::adapters::expect::Consent;
use crate::adapters::paced::Paced;
use crate::adapters::tls_apps::{self, Redial, TlsApps};
use crate::adapters::tunnels::{Connection, InUse, PortKey, Tunnels};
use crate::domain::port::Door;
use crate::domain::refusal::Refusal;
use crate::domain::route::{Route, RouteState, Traffic};
use crate::domain::timing::Timing;
use crate::metrics::Metrics;
use crate::server::headers;

pub struct Sender {
    pub dialer: Arc<Dialer>,
    /// Longest wait for the app's response headers.
    pub response_wait: Duration,
    pub tunnels: Arc<Tunnels>,
    /// How the ports of apps are spoken to.
    pub tls_apps: Arc<TlsApps>,
    pub metrics: Arc<Metrics>,
    /// The tasks that carry WebSockets.
    pub websockets: TaskTracker,
    /// Longest wait for a client that takes nothing of its WebSocket.
    pub unread: Duration,
    /// Cancelled when the edge begins to stop: no more WebSockets.
    pub stopping: CancellationToken,
    /// Cancelled when the drain time is almost over: ends the WebSockets.
    pub leave: CancellationToken,
}

pub struct Admitted {
    pub label: Uuid,
    /// The route as it was at admission.
    pub route: Arc<Route>,
    pub traffic: Arc<Traffic>,
    pub door: Door,
    pub request_id: String,
    /// How many revocations the token knew of.
    pub token_revocations: u64,
    /// Held until the response has been sent.
    pub permit: OwnedSemaphorePermit,
}

/// Why a try brought no response.
enum AttemptError {
    Final(Refusal),
    /// The connection was dead; here is the request again.
    Resend(Box<Request<ClientBody>>),
}

/// The app's response, and its word on the request's body if that was held back.
struct Answered {
    response: Response<Incoming>,
    consent: Option<Consent>,
    in_use: Option<InUse>,
}

pub struct Opened {
    pub connection: Connection,
    pub key: PortKey,
    reused: bool,
}

impl Sender {
    /// Sends the request; when a kept connection turns out to be dead, once more on a fresh tunnel.
    ///
    /// When a microVM is suspended between two requests, its host cuts the tunnel, and the edge learns of it only by writing
    /// the next request into it. So a failure on a kept connection says nothing about the app: the request goes again,
    /// unless the app may have acted on it. A failure on a fresh tunnel is the app's own and is answered 502, but for that of a
    /// host that was lost: the microVM goes on elsewhere, and so does the request.
    pub async fn send(
        &self,
        admitted: Admitted,
        client: IpAddr,
        host: &HeaderValue,
        request: Request<ClientBody>,
        timing: &mut Timing,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let http2 = headers::wants_http2(&parts);
        headers::forward_request(&mut parts, host, client, http2);
        headers::settle_trace(&mut parts.headers, telemetry::current_traceparent);
        let opened = self.connection(&admitted, http2, false, timing).await?;
        let again = match self.attempt(&admitted, opened, parts, body, timing).await {
            Ok(answered) => return Ok(answered.finish(admitted.permit)),
            Err(AttemptError::Final(refusal)) => return Err(refusal),
            Err(AttemptError::Resend(request)) => request,
        };
        self.metrics.resent.inc();
        let (parts, body) = again.into_parts();
        let opened = Box::pin(self.connection(&admitted, http2, true, timing)).await?;
        match Box::pin(self.attempt(&admitted, opened, parts, body, timing)).await {
            Ok(answered) => Ok(answered.finish(admitted.permit)),
            Err(AttemptError::Final(refusal)) => Err(refusal),
            Err(AttemptError::Resend(_)) => Err(Refusal::AppConnectFailed),
        }
    }

    /// A connection to the app: a kept one unless it must be `fresh`.
    pub async fn connection(
        &self,
        admitted: &Admitted,
        http2: bool,
        fresh: bool,
        timing: &mut Timing,
    ) -> Result<Opened, Refusal> {
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
            return Ok(Opened { connection, key: kept, reused: true });
        }
        let started = Instant::now();
        let dialed = Box::pin(self.dialer.dial(admitted.label, admitted.door, &admitted.request_id)).await;
        timing.tunnel += started.elapsed();
        let Dialed { stream, generation, phases } = dialed?;
        self.metrics.tunnels_opened.inc();
        if !phases.is_empty() {
            self.metrics.waits.observe(started.elapsed().as_secs_f64());
            timing.phases = phases;
        }
        let (key, stream) = (key(generation), Paced::new(stream, admitted.traffic.clone()));
        let connection = if self.tls_apps.is_plain(&key) {
            Box::pin(self.tunnels.connect(&key, stream, http2)).await
        } else {
            let started = Instant::now();
            let stream = Box::pin(self.tls_apps.open(&key, stream, self.redial(admitted), http2)).await;
            timing.tunnel += started.elapsed();
            let stream = stream.map_err(|error| turned_down(&error))?;
            Box::pin(self.tunnels.connect(&key, stream, http2)).await
        };
        let connection = connection.map_err(|error| failed(&error))?;
        Ok(Opened { connection, key, reused: false })
    }

    /// How another tunnel to the same port is opened, should the app turn out to speak TLS.
    fn redial(&self, admitted: &Admitted) -> Redial<Paced<GuestStream>> {
        let Admitted { label, door, .. } = *admitted;
        let (request_id, traffic) = (admitted.request_id.clone(), admitted.traffic.clone());
        let (dialer, metrics) = (self.dialer.clone(), self.metrics.clone());
        Box::new(move || {
            let (dialer, request_id, traffic) = (dialer.clone(), request_id.clone(), traffic.clone());
            let opened = metrics.tunnels_opened.clone();
            Box::pin(async move {
                let dialed = dialer.dial(label, door, &request_id).await;
                let Dialed { stream, .. } = dialed.map_err(|_| io::ErrorKind::ConnectionRefused)?;
                opened.inc();
                Ok(Paced::new(stream, traffic))
            })
        })
    }

    async fn attempt(
        &self,
        admitted: &Admitted,
        opened: Opened,
        parts: Parts,
        body: ClientBody,
        timing: &mut Timing,
    ) -> Result<Answered, AttemptError> {
        let Opened { connection, key, reused } = opened;
        let generation = key.generation;
        // What is needed to send again. The body can be had back only until its first frame is asked for.
        let (spare, empty) = (parts.clone(), body.is_end_stream());
        let (consent, waiting) = headers::expects(&parts, &body).then(Consent::unsaid).unzip();
        let (body, replay) = ReplayBody::new(body, waiting);
        let mut request = Request::from_parts(parts, body);
        if let Some(consent) = consent.clone() {
            on_informational(&mut request, move |response| consent.hear(response.status()));
        }
        let (limit, started) = (self.response_wait, Instant::now());
        let (sent, sender, in_use) = match connection {
            Connection::Http1(mut sender) => {
                (tokio::time::timeout(limit, sender.try_send_request(request)).await, Some(sender), None)
            }
            Connection::Http2(mut sender, in_use) => {
                (tokio::time::timeout(limit, sender.try_send_request(request)).await, None, Some(in_use))
            }
        };
        timing.app = Some(timing.app.unwrap_or_default() + started.elapsed());
        let error = match sent {
            Ok(Ok(mut response)) => {
                if response.status() == StatusCode::BAD_REQUEST {
                    // Perhaps from an app that was started anew and wants TLS now: the next tunnel finds out.
                    self.tls_apps.doubt(&key);
                }
                // An app that answers before it has the whole request may close without reading the rest: what comes next on
                // the connection would be lost with it.
                if let Some(sender) = sender.filter(|_| replay.is_sent()) {
                    self.tunnels.keep(key, sender);
                }
                headers::forward_response(response.headers_mut());
                if let Some(consent) = &consent {
                    consent.hear(response.status());
                }
                return Ok(Answered { response, consent, in_use });
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(AttemptError::Final(Refusal::AppConnectFailed)),
        };
        tracing::debug!(error = %error.error(), reused, "no response");
        if !reused {
            self.tls_apps.doubt(&key);
        }
        let refusal = failed(error.error());
        // Only a kept connection can have died while it was unused.
        let elsewhere = self.dialer.table.get(admitted.label);
        let elsewhere = elsewhere.is_some_and(|entry| entry.route.generation > generation);
        match replay.back() {
            Some(body) if (reused || elsewhere) && may_resend(error, &spare, empty) => {
                Err(AttemptError::Resend(Box::new(Request::from_parts(spare, body))))
            }
            _ => Err(AttemptError::Final(refusal)),
        }
    }
}

/// What a client is told of an app that brought no response.
pub fn failed(error: &hyper::Error) -> Refusal {
    let source = std::error::Error::source(error);
    match source.and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(source) => turned_down(source),
        None if error.is_parse() => Refusal::NotHttp("The app on this port speaks neither HTTP nor TLS"),
        None => Refusal::AppConnectFailed,
    }
}

fn turned_down(error: &io::Error) -> Refusal {
    if tls_apps::is_refused(error) {
        Refusal::NotHttp("The app on this port turned the TLS handshake down")
    } else {
        Refusal::AppConnectFailed
    }
}

/// True when the app cannot have acted on the request, or may act on it twice.
/// The body, if any, has not been read.
fn may_resend<T>(mut error: TrySendError<T>, parts: &Parts, empty_body: bool) -> bool {
    let never_sent = error.take_message().is_some();
    never_sent || headers::is_idempotent(&parts.method) || !empty_body
}

impl Answered {
    fn finish(self, permit: OwnedSemaphorePermit) -> Response<ResponseBody> {
        self.response.map(|body| ResponseBody::app(body, permit, self.consent, self.in_use))
    }
}
