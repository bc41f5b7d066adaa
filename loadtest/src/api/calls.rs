//! The measured calls: requests of the REST API, each signed anew, and the gRPC
//! call that GetMicrovm is compared with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use api::microvm::v1::GetMicrovmRequest;
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use bytes::Bytes;
use client::Context;
use http::{Request, StatusCode};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tonic::transport::Channel;

use super::http::Connections;
use super::sign::{DATE, INVOCATION_ID, Signer, Unsigned};
use crate::image::PAGE_SIZE;

/// Everything a run makes ends by itself after this, in seconds, also when the run was killed.
const LIFE_SECONDS: u32 = 3600;
const PATH: &str = "/2025-09-09/microvms";
const JSON: &str = "application/json";
/// What the form of a canonical query leaves as it is.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A call that the fleet's throttles refused.
#[derive(Debug, thiserror::Error)]
#[error("the fleet's throttles refused a call")]
pub struct Throttled;

impl Throttled {
    pub fn advice(&self) -> String {
        format!(
            "{self}; start the fleet with: --set edge-proxy.aws.throttles.run_microvm=0 --set \
             edge-proxy.aws.throttles.get_microvm=0 --set edge-proxy.aws.throttles.other=0"
        )
    }
}

/// A client of the API with one key.
pub struct Caller {
    connections: Connections,
    signer: Signer,
    grpc: MicrovmServiceClient<Channel>,
    image_arn: String,
    list_query: String,
    /// Ids that GetMicrovm asks for, in turn.
    population: Vec<String>,
    turn: AtomicUsize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    microvm_id: String,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<serde::de::IgnoredAny>,
}

impl Caller {
    /// Signs with the fleet's root key and launches `image_arn`.
    pub fn new(context: &Context, connections: Connections, image_arn: &str) -> anyhow::Result<Self> {
        let s3 = &context.s3;
        let (id, secret) = (&s3.access_key_id, &s3.secret_access_key);
        let host = connections.authority().to_owned();
        let encoded = utf8_percent_encode(image_arn, RESERVED);
        Ok(Self {
            signer: Signer::new(id, secret, &s3.region, &host, SystemTime::now()),
            connections,
            grpc: context.microvms()?,
            image_arn: image_arn.to_owned(),
            list_query: format!("imageIdentifier={encoded}&maxResults={PAGE_SIZE}"),
            population: Vec::new(),
            turn: AtomicUsize::new(0),
        })
    }

    /// Gives GetMicrovm the ids it asks for.
    pub fn with_population(self, population: Vec<String>) -> Arc<Self> {
        Arc::new(Self { population, ..self })
    }

    pub async fn open(&self) -> anyhow::Result<()> {
        self.connections.open().await
    }

    pub async fn run(&self) -> anyhow::Result<String> {
        let body = format!(
            "{{\"imageIdentifier\":\"{}\",\"maximumDurationInSeconds\":{LIFE_SECONDS},\"clientToken\":\"{}\"}}",
            self.image_arn,
            uuid::Uuid::new_v4().hyphenated(),
        );
        let answer = self.rest("POST", PATH, "", body).await?;
        Ok(serde_json::from_slice::<Detail>(&answer)?.microvm_id)
    }

    /// GetMicrovm of the next of the population.
    pub async fn get(&self) -> anyhow::Result<()> {
        let id = self.next();
        let answer = self.rest("GET", &format!("{PATH}/{id}"), "", String::new()).await?;
        let found: Detail = serde_json::from_slice(&answer)?;
        ensure!(found.microvm_id == id, "asked for {id}, got {}", found.microvm_id);
        Ok(())
    }

    /// The same over gRPC, asked of the scheduler, which is who answers REST's.
    pub async fn get_grpc(&self) -> anyhow::Result<()> {
        let id = self.next();
        let request = GetMicrovmRequest { microvm_id: id.to_owned(), with_idleness: false };
        let found = self.grpc.clone().get_microvm(request).await?.into_inner().microvm;
        let found = found.context("an answer without a microVM")?;
        ensure!(found.microvm_id == id, "asked for {id}, got {}", found.microvm_id);
        Ok(())
    }

    /// ListMicrovms of the run's image: its first page, full.
    pub async fn list(&self) -> anyhow::Result<()> {
        let answer = self.rest("GET", PATH, &self.list_query, String::new()).await?;
        let page: Page = serde_json::from_slice(&answer)?;
        ensure!(page.items.len() == PAGE_SIZE, "a page of {}", page.items.len());
        Ok(())
    }

    fn next(&self) -> &str {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.population[turn % self.population.len()]
    }

    async fn rest(&self, method: &str, path: &str, query: &str, body: String) -> anyhow::Result<Bytes> {
        let invocation_id = uuid::Uuid::new_v4().hyphenated().to_string();
        let content_type = Some(JSON).filter(|_| !body.is_empty());
        let unsigned = Unsigned {
            method,
            path,
            query,
            content_type,
            body: body.as_bytes(),
            invocation_id: &invocation_id,
        };
        let signed = self.signer.sign(&unsigned, SystemTime::now());
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{path}{mark}{query}"))
            .header(http::header::HOST, self.connections.authority())
            .header(INVOCATION_ID, invocation_id)
            .header(DATE, signed.date)
            .header(http::header::AUTHORIZATION, signed.authorization);
        if let Some(kind) = content_type {
            request = request.header(http::header::CONTENT_TYPE, kind);
        }
        let (status, answer) = self.connections.send(request.body(Full::from(body))?).await?;
        match status {
            StatusCode::OK => Ok(answer),
            StatusCode::TOO_MANY_REQUESTS => Err(Throttled.into()),
            _ => bail!("the API answered {status}: {}", String::from_utf8_lossy(&answer)),
        }
    }
}
