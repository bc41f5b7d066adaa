//! Requests to the app of one microVM, over connections that are kept.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use api::microvm::v1::Microvm;
use bytes::Bytes;
use client::{AUTH_HEADER, EndpointConnection, HttpVersion};
use http_body_util::{BodyExt as _, Full};

use crate::target::Target;

/// An answer of the app's.
pub struct Answer {
    pub body: Bytes,
    /// Where its time went on the way, as `Server-Timing` has it.
    pub timing: String,
}

/// A microVM's endpoint and a token for it, which is good for ten minutes.
pub struct Endpoint {
    target: Target,
    host: String,
    token: String,
    /// As many at most as requests were under way at one time.
    idle: Mutex<Vec<EndpointConnection>>,
}

impl Endpoint {
    pub async fn open(target: &Target, microvm: &Microvm) -> anyhow::Result<Self> {
        let mut target = target.clone();
        let token = target.token(&microvm.microvm_id).await?;
        Ok(Self { target, host: microvm.endpoint.clone(), token, idle: Mutex::default() })
    }

    /// Asks the app and reads the whole answer, within `wait`.
    pub async fn ask(&self, path: &str, wait: Duration) -> anyhow::Result<Answer> {
        tokio::time::timeout(wait, self.exchange(path))
            .await
            .with_context(|| format!("no answer in {wait:?}"))?
    }

    async fn exchange(&self, path: &str) -> anyhow::Result<Answer> {
        let idle = self.idle().pop();
        let mut connection = match idle {
            Some(connection) if connection.is_open() => connection,
            // The edge may close one that is idle whenever it likes.
            Some(_) | None => self.target.connect(&self.host, HttpVersion::Http1).await?,
        };
        let request = http::Request::get(path).header(AUTH_HEADER, &self.token).body(Full::default())?;
        let (head, body) = connection.send(request).await?.into_parts();
        let body = body.collect().await.context("an answer without its end")?.to_bytes();
        self.idle().push(connection);
        ensure!(head.status.is_success(), "{}: {}", head.status, String::from_utf8_lossy(&body));
        let timing = head.headers.get("server-timing").and_then(|timing| timing.to_str().ok());
        Ok(Answer { body, timing: timing.unwrap_or_default().to_owned() })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<EndpointConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
