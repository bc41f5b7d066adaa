//! Requests to endpoints: who may pass, and what everybody else is told.
//!
//! The order matters. The token is checked before anything is looked up at the scheduler, woken or opened,
//! and a caller without a good token learns nothing about which microVMs exist.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use clock::Clock;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use token::{Claims, Kind, PortScope, VerifyError};
use tokio::sync::Semaphore;
use tracing::{Instrument as _, Span, field};
use uuid::Uuid;

use crate::adapters::body::{ClientBody, ResponseBody};
use crate::adapters::domains::{Destination, Domains};
use crate::adapters::scheduler::Scheduler;
use crate::adapters::token_keys::{KeyError, TokenKeys};
use crate::domain::host;
use crate::domain::port::{self, Door};
use crate::domain::refusal::{Refusal, TOO_MANY_AGAIN};
use crate::domain::route::{Entry, Route, Table};
use crate::domain::timing::Timing;
use crate::domain::websocket::Offer;
use crate::metrics::{ConnectionMetrics, Metrics, Outcome, Status};
use crate::server::browser::{self, Shown};
use crate::server::headers;
use crate::server::listener::{Client, Handler};
use crate::server::send::{Admitted, Sender};
use crate::server::upgrade::{self, Handshake};

/// Where a shell is reached.
const SHELL_PATH: &str = "/shell";

pub struct Endpoints {
    pub domain: String,
    /// Further names of microVMs.
    pub domains: Domains,
    pub clock: Clock,
    pub keys: TokenKeys,
    /// What is known of every microVM.
    pub table: Arc<Table>,
    /// For microVMs that the table does not know yet.
    pub scheduler: Arc<Scheduler>,
    pub sender: Sender,
    /// Invitations that may be redeemed at a time.
    pub redemptions: Semaphore,
    pub metrics: Arc<Metrics>,
}

impl Handler for Endpoints {
    type Body = ResponseBody;

    async fn handle(self: Arc<Self>, client: Client, request: Request<Incoming>) -> Response<ResponseBody> {
        let request_id = Uuid::new_v4().to_string();
        // Shown with log lines only where somebody looks closely: to write down its fields for each request costs more than
        // routing it. Traces have it always.
        let span = tracing::debug_span!(
            "request",
            request_id,
            method = %request.method(),
            edge_us = field::Empty,
            tunnel_us = field::Empty,
            app_us = field::Empty,
        );
        let head = request.method() == Method::HEAD;
        let mut timing = Timing::default();
        let answered = self.forward(&client, request, &request_id, &mut timing).instrument(span.clone());
        let (mut response, outcome) = match answered.await {
            Ok(response) => {
                let outcome = app_outcome(response.status());
                (response, outcome)
            }
            Err(refusal) => {
                span.in_scope(|| tracing::debug!(?refusal, "refused"));
                let refused = refuse(&refusal);
                // HTTP/2 would send the body after all, and clients take that for a broken stream.
                let refused = if head { refused.map(|_| ResponseBody::text("")) } else { refused };
                (refused, refusal.reason())
            }
        };
        headers::add_server_timing(response.headers_mut(), timing.header());
        let id = HeaderValue::try_from(request_id).expect("a UUID is visible ASCII");
        response.headers_mut().insert(headers::REQUEST_ID, id);
        self.count(&span, response.status(), outcome, &timing);
        response
    }

    fn connections(&self) -> &ConnectionMetrics {
        &self.metrics.connections
    }
}

impl Endpoints {
    async fn forward(
        &self,
        client: &Client,
        request: Request<Incoming>,
        request_id: &str,
        timing: &mut Timing,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let started = Instant::now();
        client.share.request(started).map_err(|retry_after| Refusal::TooMany { retry_after })?;
        let (parts, body) = request.into_parts();
        let body = ClientBody::new(body, headers::is_held_back(&parts));
        let server_name = client.server_name.as_deref();
        let host =
            headers::host(&parts)?.or(server_name).ok_or(Refusal::BadRequest("Missing host"))?.to_owned();
        let destination = self.destination(&host);
        if destination.is_some() && server_name.is_some_and(|name| !host::is_directed(&host, name)) {
            return Err(Refusal::Misdirected);
        }
        let handshake = upgrade::handshake(&parts)?;
        let offer = handshake.map(|_| upgrade::offer(&parts.headers));
        if let (Some(code), Some(to)) = (browser::code(&parts), &destination) {
            return Box::pin(browser::begin(&self.scheduler, &self.redemptions, to.label, code)).await;
        }
        let claims = self.claims(client, &parts, &host, offer.as_ref()).await?;
        let destination = destination.ok_or(Refusal::AuthenticationFailed)?;
        let label = destination.label;
        let entry = self.entry(&destination, &claims).await?;
        let door = door(&parts, &claims, offer.as_ref())?;
        scope(&parts, &claims, handshake)?;
        let host = HeaderValue::try_from(host).map_err(|_| Refusal::BadRequest("Invalid host"))?;
        timing.edge = Some(started.elapsed());
        let Entry { route, traffic } = entry;
        traffic.requests.take(started).map_err(|retry_after| Refusal::TooMany { retry_after })?;
        let busy = Refusal::TooMany { retry_after: TOO_MANY_AGAIN };
        let permit = traffic.permits.clone().try_acquire_owned().map_err(|_| busy)?;
        let admitted = Admitted {
            label,
            route,
            traffic,
            door,
            request_id: request_id.to_owned(),
            token_revocations: claims.revocations,
            permit,
        };
        let request = Request::from_parts(parts, body);
        match handshake.zip(offer) {
            Some(asked) => {
                Box::pin(self.sender.upgrade(admitted, client, &host, request, asked, timing)).await
            }
            None => self.sender.send(admitted, client.address.ip(), &host, request, timing).await,
        }
    }

    /// What came of a request, and what its time went to.
    fn count(&self, span: &Span, status: StatusCode, outcome: &'static str, timing: &Timing) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.metrics.requests.get_or_create(&Status { code: status.as_u16() }).inc();
        let woke = if timing.woke() { "true" } else { "false" };
        self.metrics.outcomes.get_or_create(&Outcome { outcome, woke }).inc();
        if let Some(edge) = timing.edge {
            span.record("edge_us", micros(edge));
            span.record("tunnel_us", micros(timing.tunnel));
        }
        if let Some(app) = timing.app {
            span.record("app_us", micros(app));
        }
        if let (Some(added), Some(_), false) = (timing.added(), timing.app, timing.woke()) {
            self.metrics.added.observe(added.as_secs_f64());
        }
    }

    /// The claims of the token in the header, or else among the subprotocols that a WebSocket client offers, or else in the
    /// cookie of a browser session.
    async fn claims(
        &self,
        client: &Client,
        parts: &Parts,
        host: &str,
        offer: Option<&Offer>,
    ) -> Result<Arc<Claims>, Refusal> {
        let shown = browser::shown(&parts.headers, offer).ok_or(Refusal::NoAuthentication)?;
        let claims = self.verified(client, shown).await?;
        match shown {
            // Each kind in its own place: what is stolen from a browser is no use to a program, and no page's script can make
            // a session of a program's token.
            Shown::Token(_) if claims.kind != Kind::Browser => Ok(claims),
            Shown::Cookie(_) if claims.kind == Kind::Browser => {
                let trusted = browser::is_trusted(parts, host, offer.is_some());
                if trusted { Ok(claims) } else { Err(Refusal::CrossSite) }
            }
            Shown::Token(_) | Shown::Cookie(_) => Err(Refusal::AuthenticationFailed),
        }
    }

    async fn verified(&self, client: &Client, shown: Shown<'_>) -> Result<Arc<Claims>, Refusal> {
        let (Shown::Token(token) | Shown::Cookie(token)) = shown;
        let now = self.clock.now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |time| time.as_secs());
        match self.keys.verify(token, &client.last_token, now).await {
            Ok(claims) => Ok(claims),
            Err(KeyError::NotReady) => Err(Refusal::NotReady),
            Err(KeyError::Token(VerifyError::Malformed)) => Err(Refusal::NoAuthentication),
            Err(KeyError::Token(VerifyError::UnknownKey | VerifyError::Bad | VerifyError::Expired)) => {
                Err(Refusal::AuthenticationFailed)
            }
        }
    }

    /// The microVM that a host stands for: one of the fleet's own names, or else one of an own domain.
    fn destination(&self, host: &str) -> Option<Destination> {
        match host::label(host, &self.domain) {
            Some(label) => Some(Destination { label, image: None }),
            None => self.domains.destination(host::name(host)?),
        }
    }

    /// What is known of the endpoint, when the token is for it. A good token may
    /// be ahead of the news of its microVM, which is then asked for.
    async fn entry(&self, to: &Destination, claims: &Claims) -> Result<Entry, Refusal> {
        let label = to.label;
        let entry = match self.table.get(label) {
            Some(entry) => Some(entry),
            None => match Box::pin(self.scheduler.look_up(&claims.microvm_id)).await {
                Some((found, route)) if found == label => Some(self.table.put_if_absent(label, route)),
                _ => None,
            },
        };
        let opens = |route: &Route| {
            *route.microvm_id == *claims.microvm_id
                && !claims.is_revoked(route.token_revocations)
                && to.image.as_ref().is_none_or(|image| *image == route.image)
        };
        entry.filter(|entry| opens(&entry.route)).ok_or(Refusal::AuthenticationFailed)
    }
}

/// Where in the guest the request goes, when the token opens it.
fn door(parts: &Parts, claims: &Claims, offer: Option<&Offer>) -> Result<Door, Refusal> {
    let wanted = parts.headers.get_all(headers::PORT).iter().map(HeaderValue::as_bytes);
    let named = if parts.headers.contains_key(headers::PORT) {
        Some(port::requested(wanted))
    } else {
        offer.and_then(Offer::port)
    };
    let named = named.transpose().map_err(|_| Refusal::BadRequest("Invalid port"))?;
    match claims.kind {
        Kind::Endpoint => {
            let port = named.unwrap_or(port::DEFAULT);
            if claims.allows(port) { Ok(Door::Port(port)) } else { Err(Refusal::PortDenied) }
        }
        Kind::Shell if parts.uri.path() != SHELL_PATH => Err(Refusal::AuthenticationFailed),
        Kind::Shell if named.is_some_and(|port| port != port::SHELL) => Err(Refusal::PortDenied),
        // A browser names no port on its own: the session has one.
        Kind::Browser => match (named, claims.ports.first()) {
            (Some(port), _) if claims.allows(port) => Ok(Door::Port(port)),
            (None, Some(PortScope::Single(port))) => Ok(Door::Port(*port)),
            _ => Err(Refusal::PortDenied),
        },
        // The shell speaks WebSocket and nothing else.
        Kind::Shell if offer.is_none() => Err(Refusal::AppConnectFailed),
        Kind::Shell => Ok(Door::Shell),
    }
}

fn app_outcome(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "app_1xx",
        2 => "app_2xx",
        3 => "app_3xx",
        4 => "app_4xx",
        _ => "app_5xx",
    }
}

/// Checks path and method, as the app will see them: a handshake is a GET request to it, whatever the client speaks.
fn scope(parts: &Parts, claims: &Claims, handshake: Option<Handshake>) -> Result<(), Refusal> {
    let method = if handshake.is_some() { Method::GET.as_str() } else { parts.method.as_str() };
    if !claims.allows_path(parts.uri.path()) {
        return Err(Refusal::PathDenied);
    }
    if claims.allows_method(method) { Ok(()) } else { Err(Refusal::MethodDenied) }
}

fn refuse(refusal: &Refusal) -> Response<ResponseBody> {
    let answer = refusal.answer();
    let mut response = Response::new(ResponseBody::text(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !answer.body.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    if let Some(error) = answer.error {
        headers.insert(headers::ERROR, HeaderValue::from_static(error));
    }
    if let Some(seconds) = answer.retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
