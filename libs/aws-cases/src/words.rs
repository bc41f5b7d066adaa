//! The live service's words for a broken constraint, written down here a second time, so that a slip in the server's does
//! not pass for an expectation.

use aws_model::Limits;
use aws_model::shape::{Bounds, Shape, Structure, Text};

pub(crate) const NOT_NULL: &str = "Member must not be null";

pub(crate) fn length_at_least(min: i64) -> String {
    format!("Member must have length greater than or equal to {min}")
}

pub(crate) fn length_at_most(max: i64) -> String {
    format!("Member must have length less than or equal to {max}")
}

pub(crate) fn value_at_least(min: i64) -> String {
    format!("Member must have value greater than or equal to {min}")
}

pub(crate) fn value_at_most(max: i64) -> String {
    format!("Member must have value less than or equal to {max}")
}

pub(crate) fn pattern(pattern: &str) -> String {
    format!("Member must satisfy regular expression pattern: {pattern}")
}

pub(crate) fn values(values: &[String]) -> String {
    format!("Member must satisfy enum value set: [{}]", values.join(", "))
}

pub(crate) fn one_of(union: &Structure) -> String {
    let names: Vec<&str> = union.members.iter().map(|member| member.name).collect();
    format!("Member must have exactly one of the following members set: [{}]", names.join(", "))
}

/// Everything that an element of a list, a key or a value of a map must keep.
pub(crate) fn all_of_text(text: &Text, limits: &Limits) -> String {
    let Bounds { min, max } = text.bounds_under(limits);
    let values = (!text.values.is_empty()).then(|| values(&text.values));
    let pattern = text.pattern.as_ref().map(|given| pattern(&given.text));
    list([max.map(length_at_most), min.map(length_at_least), pattern, values])
}

pub(crate) fn all_of(shape: &Shape, limits: &Limits) -> String {
    match shape {
        Shape::Text(text) => all_of_text(text, limits),
        Shape::Integer(integer) => {
            list([integer.bounds.max.map(value_at_most), integer.bounds.min.map(value_at_least), None, None])
        }
        _ => list([None, None, None, None]),
    }
}

fn list(constraints: [Option<String>; 4]) -> String {
    let constraints: Vec<String> = constraints.into_iter().flatten().chain([NOT_NULL.to_owned()]).collect();
    format!("[{}]", constraints.join(", "))
}
