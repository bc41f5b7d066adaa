//! One client's way to its endpoint: which edge it asks, and over which connection.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use client::{AUTH_HEADER, Context, EndpointClient, EndpointConnection, HttpVersion};
use http_body_util::{BodyExt as _, Full};
use serde::Deserialize;

/// Longest answer of the app that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// Most of an answer that is no success, as evidence shows it.
const SHOWN_BYTES_MAX: usize = 200;

/// What a client does with its connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It makes another for the next request.
    Anew,
    /// It keeps it, and asks the next over it.
    Kept(HttpVersion),
}

#[derive(Debug)]
pub struct Asker {
    ca: PathBuf,
    /// The edges in the order in which this client tries them.
    edges: Vec<String>,
    manner: Manner,
    kept: Option<Kept>,
}

struct Kept {
    endpoint: String,
    connection: EndpointConnection,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Why a request has no answer of the app's.
#[derive(Debug)]
pub struct Unanswered {
    pub error: anyhow::Error,
    /// The app may have had it all the same.
    pub may_have_come: bool,
}

#[derive(Deserialize)]
struct Answer {
    count: u64,
}

impl Asker {
    /// Client `number`: they begin with different edges and differ in what they do with their connections.
    pub fn new(context: &Context, number: usize) -> Self {
        let mut edges: Vec<String> = context.edge.split(',').map(str::to_owned).collect();
        let first = number % edges.len().max(1);
        edges.rotate_left(first);
        let manners = [Manner::Anew, Manner::Kept(HttpVersion::Http1), Manner::Kept(HttpVersion::Http2)];
        let manner = manners[(number / edges.len().max(1)) % manners.len()];
        Self { ca: context.ca.clone(), edges, manner, kept: None }
    }

    /// One request to the first edge that takes it, within `wait`; an edge that broke it off is the last to be tried next. The
    /// app's count.
    pub async fn ask(&mut self, endpoint: &str, token: &str, wait: Duration) -> Result<u64, Unanswered> {
        let sent = async {
            let mut connection = self.connection(endpoint).await?;
            let request = http::Request::get("/").header(AUTH_HEADER, token).body(Full::default())?;
            anyhow::Ok((connection.connection.send(request).await, connection))
        };
        let answering = async {
            let (response, connection) = match sent.await {
                Ok(sent) => sent,
                Err(error) => return Err(Unanswered { error, may_have_come: false }),
            };
            let failed = |error| Unanswered { error, may_have_come: true };
            let response = response.map_err(|error| failed(error.into()))?;
            let status = response.status();
            let goes = response.headers().get(http::header::CONNECTION).is_some_and(|value| value == "close");
            let body = response.into_body().collect().await.map_err(|error| failed(error.into()))?;
            Ok((status, body.to_bytes(), connection, goes))
        };
        let answer = tokio::time::timeout(wait, answering).await.unwrap_or_else(|_| {
            Err(Unanswered { error: anyhow::anyhow!("no answer in {wait:?}"), may_have_come: true })
        });
        let (status, body, connection, goes) = match answer {
            Ok(answer) => answer,
            Err(unanswered) => {
                self.edges.rotate_left(1);
                return Err(unanswered);
            }
        };
        if self.manner != Manner::Anew && !goes && connection.connection.is_open() {
            self.kept = Some(connection);
        }
        if status.is_success() && body.len() <= ANSWER_BYTES_MAX {
            let answer = serde_json::from_slice(&body).context("the app's answer");
            let wrong = |error| Unanswered { error, may_have_come: true };
            return answer.map(|Answer { count }| count).map_err(wrong);
        }
        let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES_MAX)]).into_owned();
        // The edge has answered in the app's place, after the request may have reached it.
        Err(Unanswered {
            error: anyhow::anyhow!("{status}: {shown}"),
            may_have_come: status.is_server_error(),
        })
    }

    /// The connection that was kept, or another. The CAs are read for each: they may be others by now.
    async fn connection(&mut self, endpoint: &str) -> anyhow::Result<Kept> {
        let kept = self.kept.take();
        if let Some(kept) = kept.filter(|kept| kept.endpoint == endpoint && kept.connection.is_open()) {
            return Ok(kept);
        }
        let version = match self.manner {
            Manner::Kept(version) => version,
            Manner::Anew => HttpVersion::Http1,
        };
        let endpoints = EndpointClient::new(&self.ca)?;
        let connection = endpoints.connect(&self.edges.join(","), endpoint, version).await?;
        Ok(Kept { endpoint: endpoint.to_owned(), connection })
    }
}
