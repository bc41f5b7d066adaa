//! Reads a body into the members of a shape, strictly and in one pass: bounded depth, no duplicate key, valid UTF-8, the JSON
//! type that the shape asks for. Members that the shape does not know are checked the same way and dropped without being
//! kept. Messages never repeat a value.

use std::cell::Cell;
use std::collections::HashSet;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::shape::{Located, Shape, Structure};

/// Deepest nesting of a body; the body itself is level 1.
pub const DEPTH_MAX: u32 = 32;

/// Reads `body` as the members of `root`. An empty body, and null, hold no member.
///
/// # Errors
/// What is wrong with the form, in a sentence.
pub(crate) fn read(root: &'static Structure, body: &[u8]) -> Result<Map<String, Value>, String> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    let fault = Cell::new(None);
    let seed = Seed { wants: Wants::Members(root), depth: 1, fault: &fault };
    let mut json = serde_json::Deserializer::from_slice(body);
    match seed.deserialize(&mut json).and_then(|value| json.end().map(|()| value)) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(fault.take().map_or_else(|| syntax(&error), |fault| fault.sentence())),
    }
}

fn syntax(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        Category::Eof => "Unexpected end-of-input",
        Category::Syntax | Category::Data | Category::Io => "Unexpected character",
    };
    let (line, column) = (error.line(), error.column());
    format!("Could not parse request body into json: {what} at line {line}, column {column}")
}

/// What is wrong with the form of a value.
#[derive(Debug, Clone, Copy)]
enum Fault {
    TooDeep,
    DuplicateKey,
    /// A scalar where members are wanted.
    NotMembers,
    /// A scalar where a list is wanted.
    NotList,
    UnexpectedList,
    UnexpectedMembers,
    /// A scalar of another kind: what came, what is wanted.
    NotThatScalar(&'static str, &'static str),
    OutOfRange,
}

impl Fault {
    fn sentence(self) -> String {
        match self {
            Self::TooDeep => format!("The request body is nested deeper than {DEPTH_MAX} levels"),
            Self::DuplicateKey => "Duplicate key in the request body".to_owned(),
            Self::NotMembers => "Expected null".to_owned(),
            Self::NotList => "Expected list or null".to_owned(),
            Self::UnexpectedList => "Start of list found where not expected".to_owned(),
            Self::UnexpectedMembers => "Start of structure or map found where not expected.".to_owned(),
            Self::NotThatScalar(came, wanted) => format!("{came} cannot be converted to {wanted}"),
            Self::OutOfRange => "NUMBER_VALUE is out of the range of Integer".to_owned(),
        }
    }
}

/// What the value at hand should be.
#[derive(Clone, Copy)]
enum Wants {
    /// Anything; it is dropped.
    Nothing,
    Members(&'static Structure),
    Shape(&'static Shape),
}

impl Wants {
    fn takes_members(self) -> bool {
        match self {
            Self::Nothing | Self::Members(_) => true,
            Self::Shape(shape) => matches!(shape, Shape::Structure(_) | Shape::Union(_) | Shape::Map(_)),
        }
    }

    /// What the value under a key should be.
    fn of(self, key: &str) -> Self {
        match self {
            Self::Members(members) | Self::Shape(Shape::Structure(members) | Shape::Union(members)) => {
                // A body cannot set what travels elsewhere.
                let member = members.member(key).filter(|member| member.place == Located::Body);
                member.map_or(Self::Nothing, |member| Self::Shape(member.shape))
            }
            Self::Shape(Shape::Map(entries)) => Self::Shape(entries.value),
            Self::Nothing | Self::Shape(_) => Self::Nothing,
        }
    }
}

struct Seed<'a> {
    wants: Wants,
    depth: u32,
    fault: &'a Cell<Option<Fault>>,
}

impl Seed<'_> {
    fn fail<T, E: Error>(&self, fault: Fault) -> Result<T, E> {
        self.fault.set(Some(fault));
        Err(E::custom("refused"))
    }

    /// A scalar came that is not what is wanted.
    fn mismatch<T, E: Error>(&self, came: &'static str) -> Result<T, E> {
        self.fail(match self.wants {
            Wants::Nothing => unreachable!("anything fits"),
            Wants::Members(_) => Fault::NotMembers,
            Wants::Shape(Shape::Structure(_) | Shape::Union(_) | Shape::Map(_)) => Fault::NotMembers,
            Wants::Shape(Shape::List(_)) => Fault::NotList,
            Wants::Shape(Shape::Text(_)) => Fault::NotThatScalar(came, "String"),
            Wants::Shape(Shape::Integer(_)) => Fault::NotThatScalar(came, "Integer"),
            Wants::Shape(Shape::Flag) => Fault::NotThatScalar(came, "Boolean"),
        })
    }

    fn inner(&self, wants: Wants) -> Self {
        Self { wants, depth: self.depth + 1, fault: self.fault }
    }

    fn integer<E: Error>(&self, value: Option<i64>) -> Result<Value, E> {
        match (self.wants, value) {
            (Wants::Nothing, _) => Ok(Value::Null),
            (Wants::Shape(Shape::Integer(_)), Some(value)) if i32::try_from(value).is_ok() => {
                Ok(value.into())
            }
            (Wants::Shape(Shape::Integer(_)), _) => self.fail(Fault::OutOfRange),
            _ => self.mismatch("NUMBER_VALUE"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        match self.wants {
            Wants::Nothing => Ok(Value::Null),
            Wants::Shape(Shape::Flag) => Ok(value.into()),
            _ => self.mismatch(if value { "TRUE_VALUE" } else { "FALSE_VALUE" }),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.integer(Some(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.integer(i64::try_from(value).ok())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        match self.wants {
            Wants::Nothing => Ok(Value::Null),
            // "-0" is read as a fraction.
            Wants::Shape(Shape::Integer(_)) if value == 0.0 => Ok(0.into()),
            // An integer too long for 64 bits is read as a fraction as well.
            Wants::Shape(Shape::Integer(_)) if value.abs() >= 1e18 => self.fail(Fault::OutOfRange),
            _ => self.mismatch("DECIMAL_VALUE"),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        match self.wants {
            Wants::Nothing => Ok(Value::Null),
            Wants::Shape(Shape::Text(_)) => Ok(text.into()),
            _ => self.mismatch("STRING_VALUE"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        if self.depth > DEPTH_MAX {
            return self.fail(Fault::TooDeep);
        }
        let wants = match self.wants {
            Wants::Nothing => Wants::Nothing,
            Wants::Shape(Shape::List(list)) => Wants::Shape(list.of),
            _ => return self.fail(Fault::UnexpectedList),
        };
        let mut elements = Vec::new();
        while let Some(element) = access.next_element_seed(self.inner(wants))? {
            if !matches!(wants, Wants::Nothing) {
                elements.push(element);
            }
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        if self.depth > DEPTH_MAX {
            return self.fail(Fault::TooDeep);
        }
        if !self.wants.takes_members() {
            return self.fail(Fault::UnexpectedMembers);
        }
        let keeps_nulls = matches!(self.wants, Wants::Shape(Shape::Map(_)));
        let mut members = Map::new();
        let mut seen = HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            let wanted = self.wants.of(&key);
            let value = access.next_value_seed(self.inner(wanted))?;
            if !seen.insert(key.clone()) {
                return self.fail(Fault::DuplicateKey);
            }
            if matches!(wanted, Wants::Shape(_)) && (keeps_nulls || !value.is_null()) {
                members.insert(key, value);
            }
        }
        Ok(Value::Object(members))
    }
}
