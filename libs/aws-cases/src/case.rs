//! One request and what becomes of it.

use aws_model::shape::Located;
use aws_model::{ErrorClass, Operation, encode};
use serde::Serialize;
use serde_json::{Map, Value};

/// One request and what parsing it must give.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// "RunMicrovm".
    pub operation: &'static str,
    /// Which member and which bound, "idlePolicy.maxIdleDurationSeconds: value 59".
    pub what: String,
    pub method: &'static str,
    /// Encoded path.
    pub path: String,
    /// False when a segment of the path is empty and not the last: a server that signs paths in their normal form does not know
    /// such a path at all.
    pub plain_path: bool,
    /// Encoded query without the question mark; empty when there is none.
    pub query: String,
    /// JSON body; `None` when nothing is sent.
    pub body: Option<String>,
    /// True when the request passes; what stands behind may still refuse it by its own rules.
    pub valid: bool,
    /// Wire name of the error class, when it does not pass.
    pub class: Option<&'static str>,
    /// HTTP status, when it does not pass.
    pub status: Option<u16>,
    /// A part of the message, when it does not pass.
    pub violation: Option<String>,
}

impl Case {
    /// A request with these members.
    pub(super) fn new(
        operation: &'static Operation,
        what: String,
        members: &Map<String, Value>,
        refused: Option<(ErrorClass, String)>,
    ) -> Self {
        let mut path = operation.path.to_owned();
        let mut query = Vec::new();
        let mut body = Map::new();
        for (name, value) in members {
            match operation.input.member(name).map_or(Located::Body, |member| member.place) {
                Located::Path => path = path.replace(&format!("{{{name}}}"), &encode(&text_of(value))),
                Located::Query(key) => match value {
                    Value::Array(elements) => {
                        query.extend(
                            elements.iter().map(|element| format!("{key}={}", encode(&text_of(element)))),
                        );
                    }
                    _ => query.push(format!("{key}={}", encode(&text_of(value)))),
                },
                Located::Body => {
                    body.insert(name.clone(), value.clone());
                }
            }
        }
        let has_body = operation.input.members.iter().any(|member| member.place == Located::Body);
        Self {
            operation: operation.name.as_str(),
            what,
            method: operation.method,
            plain_path: !path.contains("//"),
            path,
            query: query.join("&"),
            body: has_body.then(|| Value::Object(body).to_string()),
            valid: refused.is_none(),
            class: refused.as_ref().map(|(class, _)| class.name()),
            status: refused.as_ref().map(|(class, _)| class.status()),
            violation: refused.map(|(_, message)| message),
        }
    }
}

/// A value as a path or query carries it.
pub(super) fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
