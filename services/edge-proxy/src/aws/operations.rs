//! The operations: each translates its request, makes one call, and translates
//! the answer. The model says which members an answer has and which of them are
//! sent as null; here is only what there is to say.

mod builds;
mod configuration;
mod connectors;
mod images;
mod managed;
mod microvms;
mod tags;
mod tokens;
mod versions;

use std::collections::HashMap;

use aws_model::{ErrorClass, Input, Operation, PageTokens, Rejection, Service};
use prost_types::Timestamp;
use serde_json::{Map, Value};
use tonic::Status;
use uuid::Uuid;

use crate::aws::arn::{self, Fleet};
use crate::aws::failures;
use crate::aws::services::Services;

/// What an operation has to work with.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The services of the fleet.
    pub services: &'a Services,
    /// Whose ARNs these are.
    pub fleet: &'a Fleet,
    /// Seals and opens page tokens.
    pub tokens: &'a PageTokens,
    /// The operation.
    pub operation: &'static Operation,
    /// Id of the request.
    pub request_id: &'a str,
}

/// Why an operation has no answer.
#[derive(Debug)]
pub enum Failure {
    /// Refused here.
    Rejected(Box<Rejection>),
    /// Refused by the service.
    Service(Box<Status>),
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(Box::new(rejection))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Service(Box::new(status))
    }
}

/// Members of an answer.
type Answer = Result<Map<String, Value>, Failure>;

/// Runs an operation.
///
/// # Errors
/// What the client is told instead.
pub async fn run(call: Call<'_>, input: Input) -> Result<Map<String, Value>, Rejection> {
    let operation = call.operation;
    let answer = dispatch(call, input).await;
    answer.map_err(|failure| match failure {
        Failure::Rejected(rejection) => *rejection,
        Failure::Service(status) => {
            let rejection = failures::rejection(operation, &status);
            if rejection.class.status() >= 500 {
                let (code, message) = (status.code(), status.message());
                tracing::warn!(operation = operation.name, ?code, message, "a service failed");
            }
            rejection
        }
    })
}

async fn dispatch(call: Call<'_>, input: Input) -> Answer {
    match call.operation.name {
        "CreateMicrovmImage" => images::create(call, input).await,
        "GetMicrovmImage" => images::get(call, input).await,
        "ListMicrovmImages" => images::list(call, input).await,
        "UpdateMicrovmImage" => images::update(call, input).await,
        "DeleteMicrovmImage" => images::delete(call, input).await,
        "GetMicrovmImageVersion" => versions::get(call, input).await,
        "ListMicrovmImageVersions" => versions::list(call, input).await,
        "UpdateMicrovmImageVersion" => versions::update(call, input).await,
        "DeleteMicrovmImageVersion" => versions::delete(call, input).await,
        "ListMicrovmImageBuilds" => builds::list(call, input).await,
        "GetMicrovmImageBuild" => builds::get(call, input).await,
        "ListManagedMicrovmImages" => managed::list(call, input).await,
        "ListManagedMicrovmImageVersions" => managed::versions(call, input).await,
        "RunMicrovm" => microvms::run(call, input).await,
        "GetMicrovm" => microvms::get(call, input).await,
        "ListMicrovms" => microvms::list(call, input).await,
        "SuspendMicrovm" => microvms::suspend(call, input).await,
        "ResumeMicrovm" => microvms::resume(call, input).await,
        "TerminateMicrovm" => microvms::terminate(call, input).await,
        "CreateMicrovmAuthToken" => tokens::endpoint(call, input).await,
        "CreateMicrovmShellAuthToken" => tokens::shell(call, input).await,
        "ListTags" => tags::list(call, input).await,
        "TagResource" => tags::tag(call, input).await,
        "UntagResource" => tags::untag(call, input).await,
        "CreateNetworkConnector" => connectors::create(call, input).await,
        "GetNetworkConnector" => connectors::get(call, input).await,
        "ListNetworkConnectors" => connectors::list(call, input).await,
        "UpdateNetworkConnector" => connectors::update(call, input).await,
        "DeleteNetworkConnector" => connectors::delete(call, input).await,
        "ListNetworkConnectorVersions" => connectors::versions(call, input).await,
        unknown => Err(Status::internal(format!("{unknown} has no translation")).into()),
    }
}

impl Call<'_> {
    /// The image that a request names, by ARN.
    fn image(&self, input: &Input) -> Result<String, Rejection> {
        let identifier = input.text("imageIdentifier").unwrap_or_default();
        let launch = matches!(self.operation.name, "RunMicrovm" | "ListMicrovms");
        match arn::bare(identifier, launch) {
            Some(message) => Err(Rejection::new(ErrorClass::Validation, message)),
            None => Ok(identifier.to_owned()),
        }
    }

    /// Number of items and the backend's token of a listing's page.
    fn page(&self, input: &Input) -> Result<(u32, String), Rejection> {
        let size = match self.operation.service {
            Service::Microvms => input.integer("maxResults"),
            Service::Core => input.integer("MaxItems"),
        };
        let size = size.and_then(|size| u32::try_from(size).ok()).unwrap_or(0);
        Ok((size, self.tokens.open(input)?))
    }

    /// The token of the next page; null at the end.
    fn next(&self, input: &Input, token: &str) -> Value {
        if token.is_empty() { Value::Null } else { self.tokens.seal(input, token).into() }
    }

    /// A page of `lambda-microvms`.
    fn items(
        &self,
        input: &Input,
        items: impl Iterator<Item = Map<String, Value>>,
        next_token: &str,
    ) -> Map<String, Value> {
        members([("items", items.map(Value::Object).collect()), ("nextToken", self.next(input, next_token))])
    }

    /// A time in the service's form; null when it was never set.
    fn time(&self, time: Option<Timestamp>) -> Value {
        time.map_or(Value::Null, |time| {
            let nanos = u32::try_from(time.nanos).unwrap_or(0);
            self.operation.service.timestamp(time.seconds, nanos)
        })
    }
}

/// Members of an answer.
fn members<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Those of some members that are not null, as a structure inside an answer.
fn given<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    let given = pairs.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(given.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A text; null when empty.
fn text(text: String) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

/// Texts; null when there are none.
fn texts(texts: Vec<String>) -> Value {
    if texts.is_empty() { Value::Null } else { texts.into() }
}

/// Texts by name, in order.
fn map(map: HashMap<String, String>) -> Value {
    Value::Object(map.into_iter().map(|(key, value)| (key, value.into())).collect())
}

/// The part of an enumeration's name that is on the wire.
fn word(name: &'static str, prefix: &str) -> Value {
    match name.strip_prefix(prefix) {
        None | Some("UNSPECIFIED") => Value::Null,
        Some(word) => word.into(),
    }
}

/// The client's token, or one of our own: a call may be made twice.
fn client_token(given: Option<String>) -> String {
    given.unwrap_or_else(|| Uuid::new_v4().to_string())
}

/// The answer of a service that left out what it must answer.
fn missing(what: &str) -> Failure {
    Status::internal(format!("an answer without {what}")).into()
}
