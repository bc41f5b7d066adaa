//! The service's words for violated constraints.

use std::fmt::Write;

use serde_json::Value;

use crate::input::Limits;
use crate::shape::{Shape, Structure, Text};

/// Most violations that one message lists; the number at its head counts all.
const LISTED_MAX: usize = 100;

/// Longest value that a message repeats, characters. Above every bound of the models.
const VALUE_CHARACTERS_MAX: usize = 16_384;

/// Where a value is, from the root.
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Member(&'a str),
    /// Position in a list, from 0.
    Element(usize),
}

impl<'a> Path<'a> {
    pub fn member(parent: Option<&'a Path<'a>>, name: &'a str) -> Self {
        Self { parent, step: Step::Member(name) }
    }

    pub fn element(list: &'a Path<'a>, index: usize) -> Self {
        Self { parent: Some(list), step: Step::Element(index) }
    }

    fn write(&self, into: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(into);
            into.push('.');
        }
        match self.step {
            Step::Element(index) => {
                let _ = write!(into, "{}.member", index + 1);
            }
            Step::Member(name) => {
                let mut characters = name.chars();
                into.extend(characters.next().map(|first| first.to_ascii_lowercase()));
                into.push_str(characters.as_str());
            }
        }
    }
}

/// Violations found so far.
#[derive(Default)]
pub(crate) struct Violations {
    count: usize,
    listed: String,
}

impl Violations {
    /// A value breaks a constraint. A sensitive value is not repeated.
    pub fn add(&mut self, shape: &Shape, value: &Value, path: &Path<'_>, constraint: &str) {
        self.push(path, constraint, |into| {
            if shape.is_sensitive() {
                into.push_str("Value");
            } else {
                let mut shown = String::new();
                show(value, &mut shown);
                if let Some((end, _)) = shown.char_indices().nth(VALUE_CHARACTERS_MAX) {
                    shown.truncate(end);
                    shown.push('…');
                }
                let _ = write!(into, "Value '{shown}'");
            }
        });
    }

    /// A required member is missing.
    pub fn add_null(&mut self, path: &Path<'_>) {
        self.push(path, NOT_NULL, |into| into.push_str("Value null"));
    }

    /// A constraint on what is there at all.
    pub fn add_without_value(&mut self, path: &Path<'_>, constraint: &str) {
        self.push(path, constraint, |into| into.push_str("Value"));
    }

    fn push(&mut self, path: &Path<'_>, constraint: &str, value: impl FnOnce(&mut String)) {
        self.count += 1;
        if self.count > LISTED_MAX {
            return;
        }
        if self.count > 1 {
            self.listed.push_str("; ");
        }
        value(&mut self.listed);
        self.listed.push_str(" at '");
        path.write(&mut self.listed);
        self.listed.push_str("' failed to satisfy constraint: ");
        self.listed.push_str(constraint);
    }

    /// The whole message, if there is a violation.
    pub fn into_message(self) -> Option<String> {
        let noun = match self.count {
            0 => return None,
            1 => "error",
            _ => "errors",
        };
        Some(format!("{} validation {noun} detected: {}", self.count, self.listed))
    }
}

/// Lists and maps are shown the way the service's own language shows them.
fn show(value: &Value, into: &mut String) {
    let mut separator = "";
    match value {
        Value::Null => into.push_str("null"),
        Value::String(text) => into.push_str(text),
        Value::Bool(_) | Value::Number(_) => {
            let _ = write!(into, "{value}");
        }
        Value::Array(elements) => {
            into.push('[');
            for element in elements {
                into.push_str(separator);
                show(element, into);
                separator = ", ";
            }
            into.push(']');
        }
        Value::Object(members) => {
            into.push('{');
            for (name, value) in members {
                let _ = write!(into, "{separator}{name}=");
                show(value, into);
                separator = ", ";
            }
            into.push('}');
        }
    }
}

pub(crate) const NOT_NULL: &str = "Member must not be null";

pub(crate) fn length_at_most(max: i64) -> String {
    format!("Member must have length less than or equal to {max}")
}

pub(crate) fn length_at_least(min: i64) -> String {
    format!("Member must have length greater than or equal to {min}")
}

pub(crate) fn value_at_most(max: i64) -> String {
    format!("Member must have value less than or equal to {max}")
}

pub(crate) fn value_at_least(min: i64) -> String {
    format!("Member must have value greater than or equal to {min}")
}

pub(crate) fn matches(pattern: &str) -> String {
    format!("Member must satisfy regular expression pattern: {pattern}")
}

pub(crate) fn one_of_values(values: &[String]) -> String {
    format!("Member must satisfy enum value set: [{}]", values.join(", "))
}

pub(crate) fn one_of(union: &Structure) -> String {
    let names: Vec<&str> = union.members.iter().map(|member| member.name).collect();
    format!("Member must have exactly one of the following members set: [{}]", names.join(", "))
}

/// Every constraint on an element of a list or a value of a map, as the service lists them when one is broken.
pub(crate) fn all_of(shape: &Shape, limits: &Limits) -> String {
    match shape {
        Shape::Text(text) => all_of_text(text, limits),
        Shape::Integer(integer) => {
            let max = integer.bounds.max.map(value_at_most);
            let min = integer.bounds.min.map(value_at_least);
            bracketed(max.into_iter().chain(min))
        }
        _ => bracketed(std::iter::empty()),
    }
}

/// The same for a text.
pub(crate) fn all_of_text(text: &Text, limits: &Limits) -> String {
    let bounds = text.bounds_under(limits);
    let max = bounds.max.map(length_at_most);
    let min = bounds.min.map(length_at_least);
    let pattern = text.pattern.as_ref().map(|pattern| matches(&pattern.text));
    let values = (!text.values.is_empty()).then(|| one_of_values(&text.values));
    bracketed(max.into_iter().chain(min).chain(pattern).chain(values))
}

fn bracketed(constraints: impl Iterator<Item = String>) -> String {
    let constraints: Vec<String> = constraints.chain([NOT_NULL.to_owned()]).collect();
    format!("[{}]", constraints.join(", "))
}
