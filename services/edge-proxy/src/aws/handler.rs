//! One request of the API from its head to its answer, in AWS's order of
//! refusals.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use aws_model::{
    ErrorClass, Limits, Operation, PageTokens, PathParameters, Rejection, Routed, Service, no_such_method,
    no_such_path, route,
};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Map, Value};
use sigv4::Verifier;
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::aws::access;
use crate::aws::aliases::{self, Aliases};
use crate::aws::answer::Answer;
use crate::aws::arn::{Fleet, clip};
use crate::aws::audit::{Audit, Record, timestamp};
use crate::aws::body::{Bodies, Held};
use crate::aws::failures;
use crate::aws::keys::{AccessKey, Keys};
use crate::aws::operations::{self, Call};
use crate::aws::services::Services;
use crate::aws::throttle::Buckets;
use crate::metrics::{ApiOperation, ApiRequest, Metrics};
use crate::server::listener::{Client, Handler};

/// Longest resource in an audit record, in bytes.
const AUDIT_RESOURCE_MAX: usize = 2048;

/// Serves the API.
#[derive(Debug)]
pub struct Api {
    /// Whose ARNs these are.
    pub fleet: Fleet,
    /// The services behind it.
    pub services: Services,
    /// Seals and opens page tokens.
    pub tokens: PageTokens,
    /// Checks signatures.
    pub verifier: Verifier,
    /// Who may sign.
    pub keys: Arc<Keys>,
    /// Reads bodies.
    pub bodies: Bodies,
    /// How fast calls may come.
    pub buckets: Buckets,
    /// Takes the records.
    pub audit: Audit,
    /// Requests that may be worked on.
    pub in_flight: Arc<Semaphore>,
    /// Bounds of requests.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What is known of a request, for its record.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) operation: Option<&'static Operation>,
    pub(super) access_key_id: String,
    /// The key, once its holder is known to have signed.
    pub(super) key: Option<Arc<AccessKey>>,
    resource: String,
    missing_right: String,
}

impl Seen {
    /// Notes what the request is about, as far as is known by now.
    fn about(&mut self, resource: &str) {
        clip(resource, AUDIT_RESOURCE_MAX).clone_into(&mut self.resource);
    }
}

/// A request whose signature is good.
struct Signed<'a> {
    operation: &'static Operation,
    path: &'a PathParameters,
    query: &'a str,
    body: Held<'a>,
    key: &'a AccessKey,
    request_id: &'a str,
}

impl Handler for Api {
    type Body = Full<Bytes>;

    async fn handle(self: Arc<Self>, client: Client, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let request_id = Uuid::new_v4().to_string();
        let span = tracing::info_span!("api", request_id, method = %request.method());
        // Taken before there is a task: a client that hangs up while it waits leaves
        // nothing behind, so no number of them is too many.
        let Ok(permit) = Arc::clone(&self.in_flight).acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        // A task of its own: what was begun is finished and recorded also when the
        // client hangs up.
        let request = self.answer(client.address.ip(), request, request_id.clone());
        let answering = async move {
            let response = request.await;
            drop(permit);
            response
        }
        .instrument(span);
        match tokio::spawn(answering).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(%error, request_id, "a request has no record");
                let rejection = Rejection::silent(ErrorClass::InternalServer);
                refuse(Service::Microvms, &rejection).response(&request_id)
            }
        }
    }

    fn open(&self) -> &Gauge {
        &self.metrics.api_connections
    }
}

impl Api {
    async fn answer(
        self: Arc<Self>,
        source_address: IpAddr,
        request: Request<Incoming>,
        request_id: String,
    ) -> Response<Full<Bytes>> {
        let (arrived, started) = (SystemTime::now(), Instant::now());
        let mut seen = Seen::default();
        let serving = AssertUnwindSafe(self.serve(request, &request_id, arrived, &mut seen));
        let answer = serving.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(request_id, "a bug ended a request");
            let service = seen.operation.map_or(Service::Microvms, |operation| operation.service);
            refuse(service, &Rejection::silent(ErrorClass::InternalServer))
        });
        let (took, status) = (started.elapsed(), answer.status());
        let operation = seen.operation.map_or("", |operation| operation.name);
        self.metrics.api_requests.get_or_create(&ApiRequest { operation, code: status }).inc();
        self.metrics.api_seconds.get_or_create(&ApiOperation { operation }).observe(took.as_secs_f64());
        let record = Record {
            time: timestamp(arrived),
            request_id,
            access_key_id: seen.access_key_id,
            authenticated: seen.key.is_some(),
            account_id: seen.key.map_or_else(String::new, |key| key.account.clone()),
            source_address,
            action: seen.operation.map_or("", |operation| operation.action),
            resource: seen.resource,
            missing_right: seen.missing_right,
            result: answer.result,
            status,
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        self.audit.record(&record).await;
        answer.response(&record.request_id)
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        request_id: &str,
        now: SystemTime,
        seen: &mut Seen,
    ) -> Answer {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        // A signature covers the path without dots and empty segments.
        let routed = if sigv4::normal_path(path) == path {
            route(parts.method.as_str(), path)
        } else {
            Routed::NoSuchPath
        };
        let service = match &routed {
            Routed::Operation(operation, path) => {
                seen.operation = Some(operation);
                let named = path.iter().map(|(name, text)| (name.to_owned(), text.into()));
                seen.about(&access::resource(operation, &named.collect(), &self.fleet));
                operation.service
            }
            Routed::NoSuchMethod(service) | Routed::Refused(service, _) => *service,
            Routed::NoSuchPath => {
                self.discard(&parts, body).await;
                return Answer::error("NoSuchPath", no_such_path());
            }
        };
        let admitted = match self.admit(&parts, body, now, seen).await {
            Ok(admitted) => admitted,
            Err(rejection) => return refuse(service, &rejection),
        };
        let (operation, path) = match routed {
            Routed::Operation(operation, path) => (operation, path),
            Routed::Refused(service, rejection) => return refuse(service, &rejection),
            Routed::NoSuchMethod(_) | Routed::NoSuchPath => {
                return Answer::error("NoSuchMethod", no_such_method(service));
            }
        };
        let signed = Signed {
            operation,
            path: &path,
            query: parts.uri.query().unwrap_or_default(),
            body: admitted.body,
            key: &admitted.key,
            request_id,
        };
        match self.perform(signed, seen).await {
            Ok(members) => Answer::success(operation.reply(members)),
            Err(rejection) => refuse(service, &rejection),
        }
    }

    /// What happens to a request that is signed as it should be.
    async fn perform(&self, signed: Signed<'_>, seen: &mut Seen) -> Result<Map<String, Value>, Rejection> {
        let Signed { operation, path, query, body, key, request_id } = signed;
        let draft = aws_model::read(operation, path, query, &body.bytes, &self.limits)?;
        // Its share of the memory goes to the next request.
        drop(body);
        let members = draft.members();
        let resource = access::resource(operation, members, &self.fleet);
        seen.about(&resource);
        let aliases = if key.policy.is_some() {
            aliases::find(&self.services, &self.fleet, request_id, operation, members, &resource)
                .await
                .map_err(|status| failures::rejection(operation, &status))?
        } else {
            Aliases::default()
        };
        access::check(operation, members, &resource, key, &self.fleet, &aliases).map_err(|missing| {
            seen.missing_right = missing.to_string();
            missing.rejection(key)
        })?;
        self.buckets
            .take(operation.name, Instant::now())
            .map_err(|after| failures::throttled(operation, after))?;
        let input = draft.check(&self.limits)?;
        let call = Call {
            services: &self.services,
            fleet: &self.fleet,
            tokens: &self.tokens,
            operation,
            request_id,
        };
        operations::run(call, input).await
    }
}

fn refuse(service: Service, rejection: &Rejection) -> Answer {
    Answer::error(rejection.class.name(), rejection.reply(service))
}
