//! From method and path to an operation.
//!
//! An ARN in a path comes percent-encoded from SDKs and with raw colons from people; both mean the same. A raw slash always
//! separates, so an ARN spelt with a slash leads nowhere when raw and reaches the operation when encoded.

use std::sync::OnceLock;

use crate::error::{ErrorClass, Rejection};
use crate::operation::{Operation, Service, operations};

/// Where a request leads.
#[derive(Debug, Clone, PartialEq)]
pub enum Routed {
    /// To an operation, with the decoded parameters of its path.
    Operation(&'static Operation, PathParameters),
    /// No operation has this path; [`crate::error::no_such_path`] is the answer.
    NoSuchPath,
    /// The path exists, but not with this method; [`crate::error::no_such_method`] is the answer.
    NoSuchMethod(Service),
    /// A parameter cannot be decoded.
    Refused(Service, Rejection),
}

/// The decoded parameters of a path, by member name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathParameters(Vec<(&'static str, String)>);

impl PathParameters {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Names and values in the order of the path.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

enum Segment {
    Literal(&'static str),
    Parameter(&'static str),
}

struct Route {
    segments: Vec<Segment>,
    operations: Vec<&'static Operation>,
}

fn routes() -> &'static [Route] {
    static ROUTES: OnceLock<Vec<Route>> = OnceLock::new();
    ROUTES.get_or_init(|| {
        let mut routes: Vec<(&'static str, Route)> = Vec::new();
        for operation in operations() {
            if let Some((_, route)) = routes.iter_mut().find(|(path, _)| *path == operation.path) {
                route.operations.push(operation);
                continue;
            }
            let segments = operation.path[1..].split('/').map(|segment| {
                let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
                name.map_or(Segment::Literal(segment), Segment::Parameter)
            });
            let route = Route { segments: segments.collect(), operations: vec![operation] };
            routes.push((operation.path, route));
        }
        routes.into_iter().map(|(_, route)| route).collect()
    })
}

/// Most segments of a path in the table.
const SEGMENTS_MAX: usize = 7;

/// Finds the operation of a request. `raw_path` is the path as it was sent, without the query.
pub fn route(method: &str, raw_path: &str) -> Routed {
    let Some(rest) = raw_path.strip_prefix('/') else {
        return Routed::NoSuchPath;
    };
    let mut segments = [""; SEGMENTS_MAX];
    let mut count = 0;
    for segment in rest.split('/') {
        if count == SEGMENTS_MAX {
            return Routed::NoSuchPath;
        }
        segments[count] = segment;
        count += 1;
    }
    let segments = &segments[..count];
    let Some(route) = routes().iter().find(|route| route.fits(segments)) else {
        return Routed::NoSuchPath;
    };
    let Some(operation) = route.operations.iter().find(|operation| operation.method == method) else {
        return Routed::NoSuchMethod(route.operations[0].service);
    };
    let parameters = route.segments.iter().zip(segments).filter_map(|(segment, text)| match segment {
        Segment::Literal(_) => None,
        Segment::Parameter(name) => Some(decode(text, false).map(|value| (*name, value))),
    });
    match parameters.collect() {
        Some(parameters) => Routed::Operation(operation, PathParameters(parameters)),
        None => {
            let rejection =
                Rejection::new(ErrorClass::Serialization, "The path is not percent-encoded UTF-8");
            Routed::Refused(operation.service, rejection)
        }
    }
}

impl Route {
    fn fits(&self, segments: &[&str]) -> bool {
        let same = |(segment, text): (&Segment, &&str)| match segment {
            Segment::Literal(literal) => literal == text,
            Segment::Parameter(_) => true,
        };
        self.segments.len() == segments.len() && self.segments.iter().zip(segments).all(same)
    }
}

/// Decodes percent-encoding once. `None` when it is malformed or not UTF-8.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let is_encoded = text.contains('%') || (plus_is_space && text.contains('+'));
    if !is_encoded {
        return Some(text.to_owned());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Encodes a text as one segment of a path or one part of a query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
