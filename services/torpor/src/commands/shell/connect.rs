//! The way to a microVM's shell: a token of its own kind, TLS to the edge, a WebSocket.

use std::time::Duration;

use api::microvm::v1::CreateMicrovmShellAuthTokenRequest;
use client::{EndpointClient, EndpointStream, HttpVersion};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Error};

use super::super::curl::Shown;
use super::super::microvm::fetch;
use super::super::{Session, edge_error};
use crate::durations;
use crate::error::{CliError, Kind};

/// An open connection to a shell.
pub type Line = WebSocketStream<EndpointStream>;

/// How long a token opens the shell. It is shown once, right away; the session may outlive it.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// Subprotocol that says whose values the others are.
const MARKER: &str = "lambda-microvms";

/// Longest message from a shell, in bytes. The guest-agent's own are far below it.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that may wait for the edge.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// The error of an edge that found nothing at the shells' port.
const NO_SERVER: &str = "APP_CONNECT_FAILED";

pub struct Route<'a> {
    session: &'a Session,
    id: String,
    host: String,
    endpoints: EndpointClient,
    max_time: Duration,
}

impl<'a> Route<'a> {
    /// The way to the shell of the microVM with that id, each opening bounded by `max_time`.
    pub async fn to(session: &'a Session, id: String, max_time: Duration) -> Result<Self, CliError> {
        let host = fetch(session, &id).await?.endpoint;
        let endpoints = EndpointClient::new(&session.context.ca)?;
        Ok(Self { session, id, host, endpoints, max_time })
    }

    /// A new shell.
    pub async fn open(&self) -> Result<Line, CliError> {
        tokio::time::timeout(self.max_time, self.connect()).await.unwrap_or_else(|_| {
            let waited = durations::short(self.max_time);
            Err(CliError::new(Kind::Timeout, format!("no shell within {waited}"))
                .next(format!("see its state: torpor get {}", self.id)))
        })
    }

    async fn connect(&self) -> Result<Line, CliError> {
        let request = request(&self.host, &self.token().await?)?;
        let edge = &self.session.context.edge;
        let stream = self.endpoints.open(edge, &self.host, HttpVersion::Http1).await?;
        let config = WebSocketConfig::default()
            .max_write_buffer_size(UNSENT_BYTES_MAX)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((line, _)) => Ok(line),
            Err(Error::Http(response)) => Err(self.refusal(*response).await?),
            Err(error) => Err(CliError::new(Kind::Unavailable, format!("the shell did not open: {error}"))
                .next(format!("see its state: torpor get {}", self.id))),
        }
    }

    async fn token(&self) -> Result<String, CliError> {
        let message = CreateMicrovmShellAuthTokenRequest {
            microvm_id: self.id.clone(),
            expiration: Some(api::duration_proto(TOKEN_TTL)),
        };
        let made = self.session.call(message).await?;
        made.auth_token.into_values().next().ok_or_else(|| CliError::failed("the scheduler made no token"))
    }

    /// Why an answer is not a shell.
    async fn refusal(&self, response: Response) -> Result<CliError, CliError> {
        let (head, body) = response.into_parts();
        let shown = Shown { head, start: body.unwrap_or_default() };
        if shown.head.headers.get(edge_error::ERROR).is_some_and(|error| error == NO_SERVER) {
            return Ok(no_server());
        }
        let known = edge_error::of(self.session, &self.id, 0, &shown).await?;
        Ok(known.unwrap_or_else(|| {
            let said = String::from_utf8_lossy(&shown.start).trim().to_owned();
            CliError::failed(format!("the shell did not open: {} {said}", shown.head.status))
        }))
    }
}

fn no_server() -> CliError {
    CliError::failed(
        "nothing serves shells in this microVM: its image was baked before the guest-agent served them",
    )
    .next(
        "build a new version of the image, then start a microVM of it: torpor image update NAME --artifact …",
    )
}

fn request(host: &str, token: &str) -> Result<Request, CliError> {
    let wrong = |error: tungstenite::Error| CliError::failed(format!("cannot make the request: {error}"));
    let mut request = format!("wss://{host}/shell").into_client_request().map_err(wrong)?;
    let protocols = format!("{MARKER}, {MARKER}.authentication.{token}");
    let mut protocols = HeaderValue::from_str(&protocols)
        .map_err(|_| CliError::failed("the token holds characters no header may have"))?;
    protocols.set_sensitive(true);
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocols);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_the_endpoint_and_carries_the_token_as_a_subprotocol() {
        let request = request("a.microvms.localhost", "x.y").unwrap();
        assert_eq!(request.uri(), "wss://a.microvms.localhost/shell");
        assert_eq!(request.headers()["host"], "a.microvms.localhost");
        let protocols = &request.headers()["sec-websocket-protocol"];
        assert_eq!(protocols, "lambda-microvms, lambda-microvms.authentication.x.y");
        assert!(super::request("a", "x\ny").is_err());
    }
}
