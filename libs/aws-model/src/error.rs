//! Error classes, and how each service words an error answer.

use serde_json::{Map, Value};

use crate::operation::Service;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// 403, the key may not do this.
    AccessDenied,
    /// 409, the resource is in another state, or a client token was used for something else.
    Conflict,
    /// 404.
    ResourceNotFound,
    /// 400, a constraint or a rule of the service.
    Validation,
    /// 429 of `lambda-microvms`.
    Throttling,
    /// 402.
    ServiceQuotaExceeded,
    /// 500 of `lambda-microvms`.
    InternalServer,
    /// 500, no host has room.
    InsufficientCapacity,
    /// 500 of `lambda-core` and the tag calls.
    Service,
    /// 429 of `lambda-core`.
    TooManyRequests,
    /// 400 of `lambda-core`.
    InvalidParameterValue,
    /// 409 of `lambda-core` and the tag calls.
    ResourceConflict,
    /// 400, too many connectors.
    NetworkConnectorLimitExceeded,
    /// 400, the body or a parameter is not of the form that the operation reads.
    Serialization,
    /// 413, the body is longer than the limit.
    RequestTooLarge,
    /// 404, no operation has this path, or not with this method.
    UnknownOperation,
    /// 403, no signature at all.
    MissingAuthenticationToken,
    /// 403, a signature with parts missing.
    IncompleteSignature,
    /// 403, an unknown access key.
    UnrecognizedClient,
    /// 403, a signature that does not match, is too old, or is for another scope.
    InvalidSignature,
    /// 403, a session token that has ended.
    ExpiredToken,
}

use ErrorClass as C;

/// Class, name without "Exception" as the descriptions write it, wire name, status.
const CLASSES: [(ErrorClass, &str, &str, u16); 21] = [
    (C::AccessDenied, "AccessDenied", "AccessDeniedException", 403),
    (C::Conflict, "Conflict", "ConflictException", 409),
    (C::ResourceNotFound, "ResourceNotFound", "ResourceNotFoundException", 404),
    (C::Validation, "Validation", "ValidationException", 400),
    (C::Throttling, "Throttling", "ThrottlingException", 429),
    (C::ServiceQuotaExceeded, "ServiceQuotaExceeded", "ServiceQuotaExceededException", 402),
    (C::InternalServer, "InternalServer", "InternalServerException", 500),
    (C::InsufficientCapacity, "InsufficientCapacity", "InsufficientCapacityException", 500),
    (C::Service, "Service", "ServiceException", 500),
    (C::TooManyRequests, "TooManyRequests", "TooManyRequestsException", 429),
    (C::InvalidParameterValue, "InvalidParameterValue", "InvalidParameterValueException", 400),
    (C::ResourceConflict, "ResourceConflict", "ResourceConflictException", 409),
    (
        C::NetworkConnectorLimitExceeded,
        "NetworkConnectorLimitExceeded",
        "NetworkConnectorLimitExceededException",
        400,
    ),
    (C::Serialization, "Serialization", "SerializationException", 400),
    (C::RequestTooLarge, "RequestTooLarge", "RequestEntityTooLargeException", 413),
    (C::UnknownOperation, "UnknownOperation", "UnknownOperationException", 404),
    (C::MissingAuthenticationToken, "MissingAuthenticationToken", "MissingAuthenticationTokenException", 403),
    (C::IncompleteSignature, "IncompleteSignature", "IncompleteSignatureException", 403),
    (C::UnrecognizedClient, "UnrecognizedClient", "UnrecognizedClientException", 403),
    (C::InvalidSignature, "InvalidSignature", "InvalidSignatureException", 403),
    (C::ExpiredToken, "ExpiredToken", "ExpiredTokenException", 403),
];

impl ErrorClass {
    fn row(self) -> &'static (ErrorClass, &'static str, &'static str, u16) {
        CLASSES.iter().find(|row| row.0 == self).expect("every class has a row")
    }

    /// The class that a description calls so, "ResourceNotFound".
    pub(crate) fn from_stem(stem: &str) -> Option<Self> {
        CLASSES.iter().find(|row| row.1 == stem).map(|row| row.0)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        CLASSES.iter().map(|row| row.0)
    }

    /// The value of `X-Amzn-Errortype`, "ValidationException".
    pub fn name(self) -> &'static str {
        self.row().2
    }

    pub fn status(self) -> u16 {
        self.row().3
    }

    /// The member that carries the message.
    fn message_key(self, service: Service) -> &'static str {
        match (service, self) {
            (_, C::AccessDenied | C::Serialization) | (Service::Core, C::ResourceNotFound | C::Service) => {
                "Message"
            }
            _ => "message",
        }
    }

    /// Members besides the message, with the value they have when nobody gives one.
    fn details(self, service: Service) -> &'static [(&'static str, Option<&'static str>)] {
        match (service, self) {
            (Service::Microvms, C::ResourceNotFound | C::Conflict) => {
                &[("resourceId", None), ("resourceType", None)]
            }
            (_, C::ServiceQuotaExceeded) => {
                &[("quotaCode", None), ("resourceId", None), ("resourceType", None), ("serviceCode", None)]
            }
            (_, C::Throttling) => &[("quotaCode", None), ("serviceCode", None)],
            (Service::Core, C::TooManyRequests) => {
                &[("Reason", Some("CallerRateLimitExceeded")), ("Type", Some("User"))]
            }
            (
                _,
                C::TooManyRequests
                | C::InvalidParameterValue
                | C::ResourceConflict
                | C::NetworkConnectorLimitExceeded,
            ) => &[("Type", Some("User"))],
            (_, C::Service) => &[("Type", Some("Service"))],
            _ => &[],
        }
    }
}

impl std::fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A request that is refused, before it is worded for its service.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    pub class: ErrorClass,
    /// What is wrong; null on the wire when absent.
    pub message: Option<String>,
    /// Further members of the body; they replace the nulls that the class sends by itself.
    pub details: Vec<(&'static str, Value)>,
    /// The header `Retry-After`, seconds.
    pub retry_after_seconds: Option<u64>,
}

impl Rejection {
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: Some(message.into()), details: Vec::new(), retry_after_seconds: None }
    }

    /// A rejection whose message is null on the wire.
    pub fn silent(class: ErrorClass) -> Self {
        Self { class, message: None, details: Vec::new(), retry_after_seconds: None }
    }

    /// Adds a member to the body.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The answer in the service's manner.
    pub fn reply(&self, service: Service) -> ErrorReply {
        let mut body = Map::new();
        for (name, value) in self.class.details(service) {
            body.insert((*name).to_owned(), value.map_or(Value::Null, Value::from));
        }
        for (name, value) in &self.details {
            body.insert((*name).to_owned(), value.clone());
        }
        body.insert(
            self.class.message_key(service).to_owned(),
            self.message.clone().map_or(Value::Null, Value::from),
        );
        let mut headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-amzn-errortype", self.class.name().to_owned()),
        ];
        if let Some(seconds) = self.retry_after_seconds {
            headers.push(("retry-after", seconds.to_string()));
        }
        ErrorReply {
            status: self.class.status(),
            headers,
            body: Value::Object(body).to_string().into_bytes(),
        }
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.class)?;
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

impl std::error::Error for Rejection {}

/// An error answer, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    pub status: u16,
    /// Header names in lower case, and their values.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// What the path of an image has when its ARN is spelt with a slash instead of the last colon.
const SLASHED_IMAGE: &str = "microvm-image/";

/// The answer to a path that no operation has. To the ARN of an image that is spelt with a slash the service's gateway gives
/// it, and so it is a page and not JSON.
pub fn no_such_path(raw_path: &str) -> ErrorReply {
    if !raw_path.contains(SLASHED_IMAGE) {
        return Rejection::silent(ErrorClass::UnknownOperation).reply(Service::Microvms);
    }
    ErrorReply {
        status: 404,
        headers: vec![("content-type", "text/html".to_owned())],
        body: b"<html><head><title>404 Not Found</title></head><body><h1>404 Not Found</h1></body></html>\n"
            .to_vec(),
    }
}

/// The answer to a known path with a method that it does not have.
pub fn no_such_method(service: Service) -> ErrorReply {
    Rejection::silent(ErrorClass::UnknownOperation).reply(service)
}
