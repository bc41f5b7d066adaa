//! The shapes of requests: what a member may hold and within which bounds.

use regex::Regex;

/// What a member holds.
pub(crate) enum Shape {
    Text(Text),
    Integer(Integer),
    Flag,
    List(List),
    Map(Entries),
    Structure(Structure),
    /// Exactly one of the members is present.
    Union(Structure),
}

/// Inclusive bounds of a value, a length or a number of entries.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub min: Option<i64>,
    pub max: Option<i64>,
}

pub(crate) struct Text {
    /// Bounds of the length, in characters, or bytes if `in_bytes`.
    pub bounds: Bounds,
    pub in_bytes: bool,
    /// The setting that replaces the upper bound.
    pub movable: Option<Movable>,
    pub pattern: Option<Pattern>,
    /// The only texts allowed; empty when any is.
    pub values: Vec<String>,
    pub sensitive: bool,
    pub example: String,
    /// The text to start from when a longer one is needed, if not the example.
    pub stretch: Option<String>,
    pub refused: Option<String>,
}

/// A bound that the caller of the parser sets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Movable {
    RunHookPayload,
}

impl Movable {
    pub fn from_name(name: &str) -> Self {
        assert_eq!(name, "run-hook-payload", "no such limit");
        Self::RunHookPayload
    }
}

pub(crate) struct Integer {
    /// Bounds of the value.
    pub bounds: Bounds,
    pub example: i64,
}

pub(crate) struct List {
    pub of: &'static Shape,
    /// Bounds of the number of elements.
    pub bounds: Bounds,
}

pub(crate) struct Entries {
    pub key: &'static Text,
    pub value: &'static Shape,
    /// Bounds of the number of entries.
    pub bounds: Bounds,
}

pub(crate) struct Structure {
    /// In the order in which their violations are listed.
    pub members: Vec<Member>,
}

pub(crate) struct Member {
    pub name: &'static str,
    pub shape: &'static Shape,
    pub required: bool,
    pub place: Located,
}

/// Where a member travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Located {
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
pub(crate) struct Pattern {
    /// As the service prints it.
    pub text: String,
    regex: Regex,
}

impl Pattern {
    /// The patterns are written for a matcher whose `\d` and `\s` know ASCII only.
    pub fn compile(text: &str) -> Self {
        let ascii = text.replace(r"\d", "[0-9]").replace(r"\s", r"[ \t\n\x0B\x0C\r]");
        let regex = Regex::new(&format!(r"\A(?:{ascii})\z")).expect("the patterns are under test");
        Self { text: text.to_owned(), regex }
    }

    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}
