//! The shapes of requests: what a member may hold and within which bounds.

use regex::Regex;

use crate::input::Limits;

/// What a member holds.
pub enum Shape {
    Text(Text),
    /// An integer of 32 bits.
    Integer(Integer),
    Flag,
    List(List),
    /// Values by text.
    Map(Entries),
    /// Members by name.
    Structure(Structure),
    /// Exactly one of the members is present.
    Union(Structure),
}

/// Inclusive bounds of a value, a length or a number of entries.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub min: Option<i64>,
    pub max: Option<i64>,
}

pub struct Text {
    /// Bounds of the length, in characters, or bytes if `in_bytes`.
    pub bounds: Bounds,
    /// What the bounds count.
    pub in_bytes: bool,
    /// The setting that replaces the upper bound.
    pub movable: Option<Movable>,
    /// What the whole text must match.
    pub pattern: Option<Pattern>,
    /// The only texts allowed; empty when any is.
    pub values: Vec<String>,
    /// Never repeated in an answer or a log.
    pub sensitive: bool,
    /// A text that fits, also with its last character repeated.
    pub example: String,
    /// The text to start from when a longer one is needed, if not the example.
    pub stretch: Option<String>,
    /// A text of allowed length that does not match the pattern.
    pub refused: Option<String>,
}

/// A bound that the caller of the parser sets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Movable {
    /// [`Limits::run_hook_payload_bytes_max`].
    RunHookPayload,
}

impl Movable {
    pub(crate) fn from_name(name: &str) -> Self {
        assert_eq!(name, "run-hook-payload", "no such limit");
        Self::RunHookPayload
    }
}

impl Text {
    /// The bounds of the length under the caller's limits.
    pub fn bounds_under(&self, limits: &Limits) -> Bounds {
        match self.movable {
            None => self.bounds,
            Some(Movable::RunHookPayload) => {
                Bounds { max: i64::try_from(limits.run_hook_payload_bytes_max).ok(), ..self.bounds }
            }
        }
    }
}

pub struct Integer {
    pub bounds: Bounds,
    /// A value that fits.
    pub example: i64,
}

pub struct List {
    /// The shape of an element.
    pub of: &'static Shape,
    /// Bounds of the number of elements.
    pub bounds: Bounds,
}

/// A map's constraints.
pub struct Entries {
    pub key: &'static Text,
    pub value: &'static Shape,
    /// Bounds of the number of entries.
    pub bounds: Bounds,
}

/// The members of a structure or a union.
pub struct Structure {
    /// In the order in which their violations are listed.
    pub members: Vec<Member>,
}

pub struct Member {
    /// As it is on the wire.
    pub name: &'static str,
    pub shape: &'static Shape,
    pub required: bool,
    pub place: Located,
}

/// Where a member travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Located {
    Path,
    /// Under this key of the query.
    Query(&'static str),
    Body,
}

impl Structure {
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }
}

impl Shape {
    /// True when a value of this shape holds something that must not be repeated.
    pub fn is_sensitive(&self) -> bool {
        match self {
            Self::Text(text) => text.sensitive,
            Self::Integer(_) | Self::Flag => false,
            Self::List(list) => list.of.is_sensitive(),
            Self::Map(entries) => entries.key.sensitive || entries.value.is_sensitive(),
            Self::Structure(inner) | Self::Union(inner) => {
                inner.members.iter().any(|member| member.shape.is_sensitive())
            }
        }
    }

    /// True for what is one JSON scalar.
    pub fn is_scalar(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Integer(_) | Self::Flag)
    }
}

/// A pattern that a whole text must match.
pub struct Pattern {
    /// As the service prints it.
    pub text: String,
    regex: Regex,
}

impl Pattern {
    /// The patterns are written for a matcher whose `\d` and `\s` know ASCII only.
    pub(crate) fn compile(text: &str) -> Self {
        let ascii = text.replace(r"\d", "[0-9]").replace(r"\s", r"[ \t\n\x0B\x0C\r]");
        let regex = Regex::new(&format!(r"\A(?:{ascii})\z")).expect("the patterns are under test");
        Self { text: text.to_owned(), regex }
    }

    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}
