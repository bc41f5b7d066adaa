//! WebSockets: the handshake goes to the app like any request, then bytes pass both ways unread.
//!
//! A client asks over HTTP/1.1 with `Upgrade`, over HTTP/2 with an extended CONNECT (RFC 8441); apps are always asked over
//! HTTP/1.1. Extensions and frames are a matter of the two ends.

use std::time::{Duration, Instant};

use base64::Engine as _;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::adapters::body::{ClientBody, ReplayBody, ResponseBody};
use crate::adapters::tunnels::Connection;
use crate::domain::refusal::Refusal;
use crate::domain::route::News;
use crate::domain::timing::Timing;
use crate::domain::websocket::{self, Offer};
use crate::metrics::Counted;
use crate::server::headers;
use crate::server::listener::Client;
use crate::server::send::{self, Admitted, Sender};
use crate::server::stream::Patient;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// Bytes of a handshake's key (RFC 6455, section 4.1).
const KEY_BYTES: usize = 16;

/// How a request asks to become a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// `Upgrade: websocket` over HTTP/1.1.
    Upgrade,
    /// `:protocol: websocket` over HTTP/2.
    ExtendedConnect,
}

/// Reads whether the request is a handshake.
///
/// # Errors
/// When it is a CONNECT of another kind, or a handshake that breaks the rules: nothing good comes of passing either on.
pub fn handshake(parts: &Parts) -> Result<Option<Handshake>, Refusal> {
    let version = || parts.headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|value| value == "13");
    if parts.method == Method::CONNECT {
        return match parts.extensions.get::<Protocol>() {
            Some(protocol) if protocol.as_str() == "websocket" && version() => {
                Ok(Some(Handshake::ExtendedConnect))
            }
            Some(_) => Err(Refusal::BadRequest("Invalid WebSocket handshake")),
            None => Err(Refusal::BadRequest("CONNECT is not supported")),
        };
    }
    let listed = |name, wanted: &str| {
        let values = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(wanted))
    };
    if !listed(UPGRADE, "websocket") {
        return Ok(None);
    }
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).is_some_and(|key| {
        base64::prelude::BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == KEY_BYTES)
    });
    let upgrade = parts.method == Method::GET && parts.version == http::Version::HTTP_11;
    if !(upgrade && key && version() && listed(CONNECTION, "upgrade")) {
        return Err(Refusal::BadRequest("Invalid WebSocket handshake"));
    }
    Ok(Some(Handshake::Upgrade))
}

/// The subprotocols that the client offers.
pub fn offer(headers: &HeaderMap) -> Offer {
    Offer::read(headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok()))
}

impl Sender {
    /// Sends the handshake; when the app agrees, carries bytes until either side closes or the edge has drained. It always has a
    /// tunnel of its own, since its connection serves nothing else afterwards.
    pub async fn upgrade(
        &self,
        admitted: Admitted,
        client: &Client,
        host: &HeaderValue,
        mut request: Request<ClientBody>,
        (handshake, offer): (Handshake, Offer),
        timing: &mut Timing,
    ) -> Result<Response<ResponseBody>, Refusal> {
        if self.stopping.is_cancelled() {
            return Err(Refusal::NotReady);
        }
        let client_side = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let key = parts.headers.get(SEC_WEBSOCKET_KEY).cloned();
        headers::forward_request(&mut parts, host, client.address.ip(), false);
        headers::settle_trace(&mut parts.headers, telemetry::current_traceparent);
        ask_app(&mut parts, key, &offer);
        let opened = self.connection(&admitted, false, true, timing).await?;
        let Connection::Http1(mut sender) = opened.connection else {
            return Err(Refusal::Internal);
        };
        // The body of a handshake is empty; over HTTP/2 it is the WebSocket itself, and belongs to `client_side`.
        let (body, _) = ReplayBody::new(body, None);
        let request = Request::from_parts(
            parts,
            if handshake == Handshake::Upgrade { body } else { ReplayBody::empty() },
        );
        let started = Instant::now();
        let answered = tokio::time::timeout(self.response_wait, sender.send_request(request)).await;
        timing.app = Some(started.elapsed());
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                self.tls_apps.doubt(&opened.key);
                return Err(send::failed(&error));
            }
            Err(_) => return Err(Refusal::AppConnectFailed),
        };
        let app_side =
            (response.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| hyper::upgrade::on(&mut response));
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT).cloned();
        headers::forward_response(response.headers_mut());
        let Some(app_side) = app_side else {
            return Ok(response.map(|body| ResponseBody::app(body, admitted.permit, None, None)));
        };
        agree(&mut response, handshake, accept, &offer);
        let (leave, metrics, unread) = (self.leave.clone(), self.metrics.clone(), self.unread);
        // Its connection is not idle, also when HTTP/2 has nothing else to do; it is one of the microVM's requests.
        let place = (client.activity.begin(), admitted.permit);
        let revoked = revoked(self.dialer.table.news(admitted.label), admitted.token_revocations);
        self.websockets.spawn(async move {
            let _open = Counted::new(&metrics.websockets);
            tokio::select! {
                () = carry(client_side, app_side, unread, &leave) => {}
                () = revoked => tracing::debug!("a WebSocket was cut: its token was revoked"),
            }
            drop(place);
        });
        Ok(response.map(|_| ResponseBody::text("")))
    }
}

/// Makes the request one for the app: what is hop by hop, and the subprotocols without the platform's.
fn ask_app(parts: &mut Parts, key: Option<HeaderValue>, offer: &Offer) {
    parts.method = Method::GET;
    parts.extensions.remove::<Protocol>();
    let headers = &mut parts.headers;
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
    headers.insert(SEC_WEBSOCKET_KEY, key.unwrap_or_else(new_key));
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Ok(protocols) = HeaderValue::try_from(offer.app.join(", "))
        && !offer.app.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols);
    }
}

/// A key for a client that needed none. It proves nothing to anybody; it only has to be valid.
fn new_key() -> HeaderValue {
    let key = base64::prelude::BASE64_STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
    HeaderValue::try_from(key).expect("base64 is visible ASCII")
}

/// Makes the app's consent one for the client.
fn agree<B>(response: &mut Response<B>, handshake: Handshake, accept: Option<HeaderValue>, offer: &Offer) {
    let headers = response.headers_mut();
    if offer.marked && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(websocket::MARKER));
    }
    match handshake {
        Handshake::Upgrade => {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, WEBSOCKET);
            if let Some(accept) = accept {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
        Handshake::ExtendedConnect => {
            headers.remove(SEC_WEBSOCKET_ACCEPT);
            *response.status_mut() = StatusCode::OK;
            *response.version_mut() = http::Version::HTTP_2;
        }
    }
}

/// Ends when the token is revoked that a WebSocket was opened with. A handshake may meet the revocation on its way: the
/// number is looked at before it is waited for.
async fn revoked(news: Option<watch::Receiver<News>>, known: u64) {
    if let Some(mut news) = news
        && news.wait_for(|news| news.token_revocations > known).await.is_ok()
    {
        return;
    }
    // The microVM has left the table, and its host ends what is open.
    std::future::pending().await
}

/// Carries bytes until both sides have closed, one fails, the client takes nothing for as long as `unread`, or the edge takes
/// leave.
async fn carry(client: OnUpgrade, app: OnUpgrade, unread: Duration, leave: &CancellationToken) {
    match leave.run_until_cancelled(async { tokio::try_join!(client, app) }).await {
        Some(Ok((client, app))) => {
            let client = Patient::new(TokioIo::new(client), unread, None, ());
            super::websocket::carry(client, TokioIo::new(app), leave).await;
        }
        Some(Err(error)) => tracing::debug!(%error, "a WebSocket did not begin"),
        None => {}
    }
}
