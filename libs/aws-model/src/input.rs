//! From the parts of a request to the members of an operation's input.

use std::fmt;

use serde_json::{Map, Value};

use crate::check;
use crate::error::{ErrorClass, Rejection};
use crate::members::Members;
use crate::operation::Operation;
use crate::query;
use crate::route::PathParameters;
use crate::shape::{Located, Shape, Structure};
use crate::strict;

/// Bounds that the caller sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest body, bytes.
    pub body_bytes_max: usize,
    /// Longest `runHookPayload`, bytes.
    pub run_hook_payload_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: 1 << 20, run_hook_payload_bytes_max: 4096 }
    }
}

/// The members of a request by the model's names. Each has the type of its shape and keeps its constraints; absent and null
/// members are not there. `Debug` hides sensitive values.
#[derive(Clone, PartialEq)]
pub struct Input {
    operation: &'static Operation,
    members: Map<String, Value>,
}

impl Input {
    pub fn operation(&self) -> &'static Operation {
        self.operation
    }

    pub fn members(&self) -> Members<'_> {
        Members::from(&self.members)
    }

    /// The members with every sensitive value replaced, for logs and audit records.
    pub fn redacted(&self) -> Value {
        redact_members(&self.operation.input, &self.members)
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation.name, self.redacted())
    }
}

const REDACTED: &str = "[redacted]";

fn redact_members(structure: &Structure, members: &Map<String, Value>) -> Value {
    let redacted = members.iter().map(|(name, value)| {
        let shape = structure.member(name).map(|member| member.shape);
        (name.clone(), shape.map_or_else(|| REDACTED.into(), |shape| redact(shape, value)))
    });
    Value::Object(redacted.collect())
}

fn redact(shape: &Shape, value: &Value) -> Value {
    match (shape, value) {
        _ if !shape.is_sensitive() => value.clone(),
        (Shape::List(list), Value::Array(elements)) => {
            elements.iter().map(|element| redact(list.of, element)).collect()
        }
        (Shape::Map(entries), Value::Object(values)) => {
            let redacted = values.iter().map(|(key, value)| (key.clone(), redact(entries.value, value)));
            Value::Object(redacted.collect())
        }
        (Shape::Structure(inner) | Shape::Union(inner), Value::Object(members)) => {
            redact_members(inner, members)
        }
        _ => REDACTED.into(),
    }
}

/// The members of a request that are of the operation's form; their constraints are not yet checked. For callers with
/// something to do in between, as asking what the caller may do.
#[derive(Clone, PartialEq)]
pub struct Draft(Input);

impl Draft {
    /// The members, each with the type of its shape. Any may be missing, none need keep its constraints.
    pub fn members(&self) -> Members<'_> {
        self.0.members()
    }

    /// Checks the constraints.
    ///
    /// # Errors
    /// `Validation` with every violated constraint; `InvalidParameterValue` for what the service asks for after that.
    pub fn check(self, limits: &Limits) -> Result<Input, Rejection> {
        let Input { operation, members } = &self.0;
        check::constraints(&operation.input, members, limits)?;
        check::demands(&operation.demands, members)?;
        Ok(self.0)
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a request of `operation`. `raw_query` is the query as it was sent, without the question mark.
///
/// # Errors
/// `RequestTooLarge` for a body beyond the limit; `Serialization` for a body or query that is not of the operation's form.
pub fn read(
    operation: &'static Operation,
    path: &PathParameters,
    raw_query: &str,
    body: &[u8],
    limits: &Limits,
) -> Result<Draft, Rejection> {
    if body.len() > limits.body_bytes_max {
        let limit = limits.body_bytes_max;
        let message = format!("The request body must be at most {limit} bytes");
        return Err(Rejection::new(ErrorClass::RequestTooLarge, message));
    }
    let mut members = strict::read(&operation.input, body)
        .map_err(|message| Rejection::new(ErrorClass::Serialization, message))?;
    query::read(&operation.input, raw_query, &mut members)?;
    for (name, text) in path.iter() {
        let member = operation.input.member(name).filter(|member| member.place == Located::Path);
        if let Some(member) = member {
            members.insert(name.to_owned(), query::scalar(member.shape, text.to_owned())?);
        }
    }
    Ok(Draft(Input { operation, members }))
}

/// [`read`], and then [`Draft::check`].
pub fn parse(
    operation: &'static Operation,
    path: &PathParameters,
    raw_query: &str,
    body: &[u8],
    limits: &Limits,
) -> Result<Input, Rejection> {
    read(operation, path, raw_query, body, limits)?.check(limits)
}
