//! One request of the API from its head to its answer, in AWS's order of refusals: who you are, what you may do, how often,
//! and only then whether the request makes sense.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use aws_model::{
    Draft, ErrorClass, Limits, Operation, PageTokens, PathParameters, Rejection, Routed, Service,
    no_such_method, no_such_path, route, sts,
};
use bytes::Bytes;
use clock::Clock;
use futures::FutureExt as _;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Map, Value};
use sigv4::Verifier;
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use uuid::Uuid;

use super::admission::{Admission, Arrived};
use super::answer::Answer;
use super::audit::{Audit, Record, timestamp};
use super::body::{Bodies, Held};
use super::throttle::Buckets;
use crate::aws::access_keys::{AccessKey, AccessKeys};
use crate::aws::account::{Account, clip};
use crate::aws::metrics::{self, Metrics};
use crate::aws::operations::{Call, Row, row};
use crate::aws::rejections;
use crate::aws::rights::aliases::{self, Aliases};
use crate::aws::rights::{self, Asked};
use crate::aws::services::Services;
use crate::metrics::ConnectionMetrics;
use crate::server::listener::{Client, Handler};

/// Longest resource in an audit record, in bytes.
const AUDIT_RESOURCE_MAX: usize = 2048;

#[derive(Debug)]
pub(crate) struct Api {
    pub clock: Clock,
    pub account: Account,
    pub services: Services,
    pub tokens: PageTokens,
    pub verifier: Verifier,
    /// The same for signatures whose scope is STS.
    pub sts_verifier: Verifier,
    pub access_keys: AccessKeys,
    pub bodies: Bodies,
    pub buckets: Buckets,
    pub audit: Audit,
    /// Signed requests that may be worked on.
    pub in_flight: Arc<Semaphore>,
    /// Other requests that may be answered and recorded.
    pub refusals: Arc<Semaphore>,
    pub limits: Limits,
    /// See [`crate::config::AwsSettings`].
    pub arm_64_is_own: bool,
    pub metrics: Metrics,
}

/// A request whose signature is good.
#[derive(Clone, Copy)]
struct Signed<'a> {
    operation: &'static Operation,
    path: &'a PathParameters,
    query: &'a str,
    key: &'a AccessKey,
    request_id: &'a str,
}

/// What came of a request, for its answer and its record.
pub(super) struct Served {
    /// Name of the operation; empty when the path leads nowhere.
    pub name: &'static str,
    /// The action of policies; empty when the path leads nowhere.
    pub action: &'static str,
    pub admission: Admission,
    /// What the request is about, as far as it was read; may be empty.
    pub resource: String,
    /// The right that the key lacks, when that is why.
    pub missing_right: String,
    pub answer: Answer,
}

/// Why a signed request is not carried out.
struct Refused {
    rejection: Rejection,
    missing_right: String,
}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, missing_right: String::new() }
    }
}

impl Handler for Api {
    type Body = Full<Bytes>;

    async fn handle(self: Arc<Self>, client: Client, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let request_id = Uuid::new_v4().to_string();
        let span = tracing::info_span!("api", request_id, method = %request.method());
        let (arrived_at, started) = (self.clock.now(), self.clock.instant());
        let (parts, body) = request.into_parts();
        let target = Target::of(&parts);
        // Until its sender is known, a request takes a place of its own address only: half-sent ones hold nothing that
        // others need.
        let arrived = {
            let _turn = client.share.unverified().await;
            let arriving = self.arrive(&client, &parts, body, target.operation(), arrived_at);
            caught(arriving.instrument(span.clone())).await.unwrap_or_else(Arrived::bug)
        };
        // Taken before there is a task: a client that hangs up while it waits leaves nothing behind, so no number of waiting
        // clients is too many. Strangers wait for strangers.
        let places = if arrived.body.is_ok() { &self.in_flight } else { &self.refusals };
        let Ok(permit) = Arc::clone(places).acquire_owned().await else {
            unreachable!("the semaphores are never closed")
        };
        let closing = !arrived.read && parts.version < Version::HTTP_2;
        // A task of its own: what was begun is finished and recorded also when the client hangs up.
        let call =
            Arriving { target, parts, arrived, source_address: client.address.ip(), arrived_at, started };
        let request = self.answer(call, request_id.clone());
        let answering = async move {
            let response = request.await;
            drop(permit);
            response
        }
        .instrument(span);
        let mut response = match tokio::spawn(answering).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(%error, request_id, "a request has no record");
                let rejection = Rejection::silent(ErrorClass::InternalServer);
                refuse(Service::Microvms, &rejection).response(&request_id)
            }
        };
        if closing {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn connections(&self) -> &ConnectionMetrics {
        &self.metrics.connections
    }
}

/// What a request asks for.
enum Target {
    Identity,
    Api(Routed),
}

impl Target {
    fn of(parts: &Parts) -> Self {
        let identity = sts::is_asked(parts.method.as_str(), parts.uri.path());
        if identity { Self::Identity } else { Self::Api(routed(parts)) }
    }

    fn operation(&self) -> Option<&'static Operation> {
        match self {
            Self::Api(Routed::Operation(operation, _)) => Some(operation),
            Self::Identity | Self::Api(_) => None,
        }
    }
}

/// A request that has arrived, as far as it will.
struct Arriving {
    target: Target,
    parts: Parts,
    arrived: Arrived,
    source_address: IpAddr,
    arrived_at: SystemTime,
    started: Instant,
}

impl Api {
    /// Answers a request, counts it and records it.
    async fn answer(self: Arc<Self>, call: Arriving, request_id: String) -> Response<Full<Bytes>> {
        let Arriving { target, parts, arrived, source_address, arrived_at, started } = call;
        let served = match target {
            Target::Identity => Self::identify(arrived, &request_id),
            Target::Api(routed) => self.serve(&parts, routed, arrived, &request_id).await,
        };
        let Served { name, action, admission, resource, missing_right, answer } = served;
        let (took, status) = (self.clock.instant() - started, answer.status());
        self.metrics.requests.get_or_create(&metrics::Request { operation: name, code: status }).inc();
        self.metrics
            .seconds
            .get_or_create(&metrics::Operation { operation: name })
            .observe(took.as_secs_f64());
        let record = Record {
            time: timestamp(arrived_at),
            request_id,
            access_key_id: admission.access_key_id,
            authenticated: admission.signer.is_some(),
            account_id: admission.signer.map_or_else(String::new, |key| key.account.clone()),
            source_address,
            action,
            resource: clip(&resource, AUDIT_RESOURCE_MAX).to_owned(),
            missing_right,
            result: answer.result,
            status,
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        self.audit.record(&record).await;
        answer.response(&record.request_id)
    }

    async fn serve(&self, parts: &Parts, routed: Routed, arrived: Arrived, request_id: &str) -> Served {
        // Where the request leads comes first: every refusal that follows is worded in the manner of that service.
        let (service, operation) = match &routed {
            Routed::Operation(operation, _) => (operation.service, Some(*operation)),
            Routed::NoSuchMethod(service) | Routed::Refused(service, _) => (*service, None),
            Routed::NoSuchPath => (Service::Microvms, None),
        };
        let Arrived { admission, body, .. } = arrived;
        let key = admission.signer.clone();
        let mut served = Served {
            name: operation.map_or("", |operation| operation.name.as_str()),
            action: operation.map_or("", |operation| operation.action),
            admission,
            resource: self.resource_in_path(&routed),
            missing_right: String::new(),
            answer: refuse(service, &Rejection::silent(ErrorClass::InternalServer)),
        };
        // Who asks comes before anything that an answer could tell a stranger, even that a method does not exist.
        let (operation, path, body, key) = match (routed, body, key) {
            (Routed::Operation(operation, path), Ok(body), Some(key)) => (operation, path, body, key),
            (Routed::NoSuchPath, ..) => {
                served.admission = Admission::default();
                served.answer = Answer::error("NoSuchPath", no_such_path(parts.uri.path()));
                return served;
            }
            (Routed::NoSuchMethod(_), Ok(_), _) => {
                served.answer = Answer::error("NoSuchMethod", no_such_method(service));
                return served;
            }
            (_, Err(rejection), _) | (Routed::Refused(_, rejection), ..) => {
                served.answer = refuse(service, &rejection);
                return served;
            }
            (Routed::Operation(..), Ok(_), None) => return served,
        };

        // The rest is between the caller and the service: what they may do, how fast, and what comes of it.
        let query = parts.uri.query().unwrap_or_default();
        let signed = Signed { operation, path: &path, query, key: &key, request_id };
        let Some((resource, performed)) = caught(self.perform(signed, body)).await else { return served };
        served.resource = resource.unwrap_or(served.resource);
        match performed {
            Ok(members) => served.answer = Answer::success(operation.reply(members)),
            Err(refused) => {
                served.answer = refuse(service, &refused.rejection);
                served.missing_right = refused.missing_right;
            }
        }
        served
    }

    fn resource_in_path(&self, routed: &Routed) -> String {
        match routed {
            Routed::Operation(operation, path) => {
                row(operation.name).needs.subject.resource(|name| path.get(name), &self.account)
            }
            _ => String::new(),
        }
    }

    /// Reads a request and carries it out; also says what it is about, once that is read.
    async fn perform(
        &self,
        signed: Signed<'_>,
        body: Held,
    ) -> (Option<String>, Result<Map<String, Value>, Refused>) {
        // Reading comes before permission: what the request is about may be in its body. Its constraints come last.
        let read = aws_model::read(signed.operation, signed.path, signed.query, &body.bytes, &self.limits);
        // The body's share of the memory goes to the next request.
        drop(body);
        let draft = match read {
            Ok(draft) => draft,
            Err(rejection) => return (None, Err(rejection.into())),
        };
        let row = row(signed.operation.name);
        let resource = row.needs.subject.resource(|name| draft.members().text(name), &self.account);
        let performed = self.carry_out(signed, &row, draft, &resource).await;
        (Some(resource), performed)
    }

    async fn carry_out(
        &self,
        signed: Signed<'_>,
        row: &Row,
        draft: Draft,
        resource: &str,
    ) -> Result<Map<String, Value>, Refused> {
        let Signed { operation, request_id, .. } = signed;
        // Permission before everything that tells of the account's use: a key that may not call an operation does not learn
        // how busy it is, and does not use up its rate.
        let asked = Asked { operation, needs: &row.needs, members: draft.members(), resource };
        self.authorize(signed, asked).await?;
        // The rate before constraints, as on AWS: a flood of malformed requests is a flood.
        let taken = self.buckets.take(operation.name, self.clock.instant());
        taken.map_err(|after| rejections::throttled(operation, after))?;
        // Constraints of the model before the call: the services behind it see well-formed requests only.
        let input = draft.check(&self.limits)?;
        let (services, account, tokens) = (&self.services, &self.account, &self.tokens);
        let arm_64_is_own = self.arm_64_is_own;
        let call = Call { services, account, tokens, arm_64_is_own, operation, request_id, input };
        Ok((row.run)(&call).await?)
    }

    async fn authorize(&self, signed: Signed<'_>, asked: Asked<'_>) -> Result<(), Refused> {
        let Signed { operation, key, request_id, .. } = signed;
        let aliases = match key.policy {
            None => Aliases::default(),
            // Only a policy makes a difference between names.
            Some(_) => aliases::find(&self.services, &self.account, request_id, asked)
                .await
                .map_err(|status| rejections::of(operation, &status))?,
        };
        rights::check(asked, key, &self.account, &aliases).map_err(|missing| Refused {
            rejection: missing.rejection(key),
            missing_right: missing.to_string(),
        })
    }
}

/// Where a request leads. A signature covers the path without dots and empty segments, so that no other path is one.
fn routed(parts: &Parts) -> Routed {
    let path = parts.uri.path();
    if sigv4::normal_path(path) == path { route(parts.method.as_str(), path) } else { Routed::NoSuchPath }
}

/// What a part of the work gives; `None` when a bug ended it. What is known by then is recorded all the same.
pub(super) async fn caught<T>(work: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.inspect_err(|_| tracing::error!("a bug ended a request")).ok()
}

fn refuse(service: Service, rejection: &Rejection) -> Answer {
    Answer::error(rejection.class.name(), rejection.reply(service))
}
