//! The operations: the table has a row for each, with everything that the edge knows of it. A row's translation decodes the
//! request, makes one call, and encodes the answer; the files below are named for the resources and hold these functions in
//! pairs. The model says which members an answer has and which of them are sent as null: here is only what there is to say.

use std::collections::HashMap;

use aws_model::{ErrorClass, Input, Members, Operation, OperationName, PageTokens, Rejection, Service};
use futures::future::BoxFuture;
use prost_types::Timestamp;
use serde_json::{Map, Value};
use tonic::Status;
use uuid::Uuid;

use crate::aws::account::Account;
use crate::aws::rejections;
use crate::aws::rights::{Needs, Pass, Subject};
use crate::aws::services::{Services, ask};
use crate::config::Throttles;

/// A translation of one call: how its message is decoded from the request, and how the answer, or one field of it that must
/// be there, is encoded.
macro_rules! unary {
    ($service:ident.$method:ident, $decode:path => $encode:path) => {
        |call| {
            Box::pin(async move {
                let message = $decode(call)?;
                let answered = ask!(call.services, call.request_id, $service.$method, message).await;
                $encode(call, call.answered(answered)?)
            })
        }
    };
    ($service:ident.$method:ident, $decode:path => $encode:path, $field:ident) => {
        |call| {
            Box::pin(async move {
                let message = $decode(call)?;
                let answered = ask!(call.services, call.request_id, $service.$method, message).await;
                let field = call.answered(answered)?.$field.ok_or_else(|| call.lacks(stringify!($field)))?;
                $encode(call, field)
            })
        }
    };
}

/// A translation that is more than one call and back.
macro_rules! special {
    ($run:path) => {
        |call| Box::pin($run(call))
    };
}

mod builds;
mod configuration;
mod connectors;
mod images;
mod managed;
mod microvms;
mod tags;
mod tokens;
mod versions;

/// Everything that the edge knows of an operation besides its model.
pub(crate) struct Row {
    /// What a request is about and hands on, for policies and for the audit.
    pub needs: Needs,
    /// Its calls per second among the settings.
    pub rate: fn(&Throttles) -> u32,
    pub run: for<'a> fn(&'a Call<'a>) -> BoxFuture<'a, Answer>,
}

macro_rules! table {
    ($($name:ident: $subject:ident, [$($pass:ident)*], $rate:ident, $run:expr;)*) => {
        pub(crate) fn row(name: OperationName) -> Row {
            match name {
                $(OperationName::$name => Row {
                    needs: Needs { subject: Subject::$subject, passes: &[$(Pass::$pass),*] },
                    rate: |rates| rates.$rate,
                    run: $run,
                },)*
            }
        }
    };
}

// Operation: what it is about, [what it hands on], rate, translation.
table! {
    CreateMicrovmImage: NewImage, [BuildRole Artifact Egress], changes, unary!(images.create_image, images::create => images::created);
    GetMicrovmImage: Image, [], other, unary!(images.get_image, images::get => images::found, image);
    ListMicrovmImages: Everything, [], other, unary!(images.list_images, images::list => images::listed);
    UpdateMicrovmImage: Image, [BuildRole Artifact Egress], changes, unary!(images.update_image, images::update => images::updated);
    DeleteMicrovmImage: Image, [], changes, unary!(images.delete_image, images::delete => images::deleted, image);
    GetMicrovmImageVersion: Image, [], other, unary!(images.get_image_version, versions::get => versions::found, version);
    ListMicrovmImageVersions: Image, [], other, unary!(images.list_image_versions, versions::list => versions::listed);
    UpdateMicrovmImageVersion: Image, [], changes, unary!(images.update_image_version, versions::update => versions::found, version);
    DeleteMicrovmImageVersion: Image, [], changes, unary!(images.delete_image_version, versions::delete => versions::deleted, version);
    ListMicrovmImageBuilds: Image, [], other, unary!(images.list_image_builds, builds::list => builds::listed);
    GetMicrovmImageBuild: Image, [], other, unary!(images.get_image_build, builds::get => builds::found, build);
    ListManagedMicrovmImages: Everything, [], other, unary!(images.list_base_images, managed::list => managed::listed);
    ListManagedMicrovmImageVersions: ManagedImage, [], other, unary!(images.list_base_image_versions, managed::versions => managed::listed_versions);

    RunMicrovm: Image, [ExecutionRole Ingress Egress], run_microvm, unary!(microvms.run_microvm, microvms::run => microvms::detail, microvm);
    GetMicrovm: Microvm, [], get_microvm, unary!(microvms.get_microvm, microvms::get => microvms::detail, microvm);
    ListMicrovms: Image, [], other, unary!(microvms.list_microvms, microvms::list => microvms::listed);
    SuspendMicrovm: Microvm, [], suspend_microvm, special!(microvms::suspend);
    ResumeMicrovm: Microvm, [], resume_microvm, special!(microvms::resume);
    TerminateMicrovm: Microvm, [], terminate_microvm, unary!(microvms.terminate_microvm, microvms::terminate => microvms::terminated);
    CreateMicrovmAuthToken: Microvm, [], create_microvm_auth_token,
        unary!(microvms.create_microvm_auth_token, tokens::endpoint => tokens::endpoint_made);
    CreateMicrovmShellAuthToken: Microvm, [], create_microvm_shell_auth_token,
        unary!(microvms.create_microvm_shell_auth_token, tokens::shell => tokens::shell_made);

    ListTags: Tagged, [], other, special!(tags::list);
    TagResource: Tagged, [RuleTags], changes, special!(tags::tag);
    UntagResource: Tagged, [RuleTags], changes, special!(tags::untag);

    CreateNetworkConnector: NewConnector, [OperatorRole RuleTags], changes,
        unary!(connectors.create_network_connector, connectors::create => connectors::changed, connector);
    GetNetworkConnector: Connector, [], other, unary!(connectors.get_network_connector, connectors::get => connectors::found);
    ListNetworkConnectors: Everything, [], other, unary!(connectors.list_network_connectors, connectors::list => connectors::listed);
    UpdateNetworkConnector: Connector, [OperatorRole], changes,
        unary!(connectors.update_network_connector, connectors::update => connectors::updated, connector);
    DeleteNetworkConnector: Connector, [], changes,
        unary!(connectors.delete_network_connector, connectors::delete => connectors::changed, connector);
    ListNetworkConnectorVersions: Connector, [], other,
        unary!(connectors.list_network_connector_versions, connectors::versions => connectors::listed_versions);
}

/// The members of an answer, or what the client is told instead.
pub(crate) type Answer = Result<Map<String, Value>, Rejection>;

/// A request that may be carried out, and what it takes to do so.
pub(crate) struct Call<'a> {
    pub services: &'a Services,
    pub account: &'a Account,
    pub tokens: &'a PageTokens,
    pub arm_64_is_own: bool,
    pub operation: &'static Operation,
    pub request_id: &'a str,
    pub input: Input,
}

impl Call<'_> {
    fn members(&self) -> Members<'_> {
        self.input.members()
    }

    /// The image that a request names, by ARN: names are for the gRPC API.
    fn image(&self) -> Result<String, Rejection> {
        self.image_or(|identifier| format!("Invalid ARN format: {identifier}"))
    }

    /// The ARN of the image that a request names; `malformed` is said of anything else.
    fn image_or(&self, malformed: impl FnOnce(&str) -> String) -> Result<String, Rejection> {
        let identifier = self.members().string("imageIdentifier");
        if identifier.starts_with("arn:") {
            return Ok(identifier);
        }
        Err(Rejection::new(ErrorClass::Validation, malformed(&identifier)))
    }

    /// Number of items and the backend's token of a listing's page.
    fn page(&self) -> Result<(u32, String), Rejection> {
        let size = match self.operation.service {
            Service::Microvms => self.members().number("maxResults"),
            Service::Core => self.members().number("MaxItems"),
        };
        Ok((size.unwrap_or(0), self.tokens.open(&self.input)?))
    }

    /// The token of the next page; null at the end.
    fn next(&self, token: &str) -> Value {
        if token.is_empty() { Value::Null } else { self.tokens.seal(&self.input, token).into() }
    }

    fn items(&self, items: impl Iterator<Item = Map<String, Value>>, next_token: &str) -> Answer {
        Ok(members([("items", items.map(Value::Object).collect()), ("nextToken", self.next(next_token))]))
    }

    /// A time in the service's form; null when it was never set.
    fn time(&self, time: Option<Timestamp>) -> Value {
        time.map_or(Value::Null, |time| {
            let nanos = u32::try_from(time.nanos).unwrap_or(0);
            self.operation.service.timestamp(time.seconds, nanos)
        })
    }

    /// The client's token, or one of our own: a call may be made twice.
    fn client_token(&self) -> String {
        self.members().text("clientToken").map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
    }

    /// A service's answer, or its refusal under AWS's name.
    fn answered<T>(&self, answer: Result<T, Status>) -> Result<T, Rejection> {
        answer.map_err(|status| self.refused(&status))
    }

    fn refused(&self, status: &Status) -> Rejection {
        let rejection = rejections::of(self.operation, status);
        if rejection.class.status() >= 500 {
            let (code, message) = (status.code(), status.message());
            tracing::warn!(operation = %self.operation.name, ?code, message, "a service failed");
        }
        rejection
    }

    /// A service's answer left out what it must have.
    fn lacks(&self, field: &str) -> Rejection {
        self.refused(&Status::internal(format!("an answer without {field}")))
    }
}

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
