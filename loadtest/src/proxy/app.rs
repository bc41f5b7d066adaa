//! The app behind every proxy: a plain server on loopback, so that what is measured is the proxies. It answers
//! `/1k` and `/1m` with bodies of those sizes and returns WebSocket messages on `/ws`.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::websocket;

pub const SMALL_BYTES: usize = 1 << 10;
pub const LARGE_BYTES: usize = 1 << 20;
pub const SMALL_PATH: &str = "/1k";
pub const LARGE_PATH: &str = "/1m";
pub const WEBSOCKET_PATH: &str = "/ws";

/// What RFC 6455 has a server append to the client's key.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves until the process is ended.
pub async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the app")?;
    println!("{}", listener.local_addr()?);
    let bodies = [SMALL_BYTES, LARGE_BYTES].map(|length| Bytes::from(vec![b'x'; length]));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        stream.set_nodelay(true)?;
        let bodies = bodies.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request, &bodies);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // How a client leaves is its own matter.
            let _ = connection.with_upgrades().await;
        });
    }
}

fn answer(request: Request<Incoming>, [small, large]: &[Bytes; 2]) -> Response<Full<Bytes>> {
    match request.uri().path() {
        SMALL_PATH => Response::new(Full::from(small.clone())),
        LARGE_PATH => Response::new(Full::from(large.clone())),
        WEBSOCKET_PATH => switch(request).unwrap_or_else(|| refusal(StatusCode::BAD_REQUEST)),
        _ => refusal(StatusCode::NOT_FOUND),
    }
}

fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn switch(mut request: Request<Incoming>) -> Option<Response<Full<Bytes>>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{ACCEPT_SUFFIX}").as_bytes());
    let accept = HeaderValue::try_from(BASE64_STANDARD.encode(accept)).ok()?;
    tokio::spawn(echo(hyper::upgrade::on(&mut request)));
    let mut response = refusal(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Some(response)
}

async fn echo(upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    // hyper boxes what it hands over; the socket itself is a system call with less around it.
    match upgraded.downcast::<TokioIo<tokio::net::TcpStream>>() {
        Ok(parts) if parts.read_buf.is_empty() => websocket::echo(parts.io.into_inner()).await,
        Ok(_) => {}
        Err(upgraded) => websocket::echo(TokioIo::<Upgraded>::new(upgraded)).await,
    }
}
