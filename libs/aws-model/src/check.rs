//! Checks members against their constraints and lists every violation in the service's words.

use serde_json::{Map, Value};

use crate::error::{ErrorClass, Rejection};
use crate::input::Limits;
use crate::operation::Demand;
use crate::sentence::{self, Path, Violations};
use crate::shape::{Bounds, Entries, List, Shape, Structure, Text};

/// Checks all members.
///
/// # Errors
/// `Validation` with all violations in one message.
pub(crate) fn constraints(
    input: &Structure,
    members: &Map<String, Value>,
    limits: &Limits,
) -> Result<(), Rejection> {
    let mut checker = Checker { limits, violations: Violations::default() };
    checker.members(input, members, None);
    match checker.violations.into_message() {
        None => Ok(()),
        Some(message) => Err(Rejection::new(ErrorClass::Validation, message)),
    }
}

/// Checks what the live service asks for beyond its shapes: the first that is missing.
pub(crate) fn demands(demands: &[Demand], members: &Map<String, Value>) -> Result<(), Rejection> {
    let present = |demand: &&Demand| {
        let mut names = demand.member.iter();
        let first = names.next().and_then(|name| members.get(name));
        names.fold(first, |value, name| value.and_then(|value| value.get(name))).is_some()
    };
    match demands.iter().find(|demand| !present(demand)) {
        None => Ok(()),
        Some(demand) => Err(Rejection::new(ErrorClass::InvalidParameterValue, &demand.sentence)),
    }
}

struct Checker<'a> {
    limits: &'a Limits,
    violations: Violations,
}

impl Checker<'_> {
    fn members(&mut self, structure: &Structure, members: &Map<String, Value>, parent: Option<&Path<'_>>) {
        for member in &structure.members {
            let path = Path::member(parent, member.name);
            match members.get(member.name) {
                Some(value) => self.value(member.shape, value, &path),
                None if member.required => self.violations.add_null(&path),
                None => {}
            }
        }
    }

    fn value(&mut self, shape: &Shape, value: &Value, path: &Path<'_>) {
        match (shape, value) {
            (Shape::Text(text), Value::String(given)) => {
                for constraint in broken_by(text, given, self.limits) {
                    self.violations.add(shape, value, path, &constraint);
                }
            }
            (Shape::Integer(integer), _) => {
                if let Some(constraint) = value.as_i64().and_then(|given| out_of_range(integer.bounds, given))
                {
                    self.violations.add(shape, value, path, &constraint);
                }
            }
            (Shape::List(list), Value::Array(elements)) => self.list(shape, list, value, elements, path),
            (Shape::Map(entries), Value::Object(values)) => self.map(shape, entries, value, values, path),
            (Shape::Structure(inner), Value::Object(members)) => self.members(inner, members, Some(path)),
            (Shape::Union(inner), Value::Object(members)) => {
                if members.len() != 1 {
                    self.violations.add_without_value(path, &sentence::one_of(inner));
                }
                self.members(inner, members, Some(path));
            }
            // The reader lets nothing else through, but for a null in a list or map, which its container reports.
            _ => {}
        }
    }

    fn list(&mut self, shape: &Shape, list: &List, value: &Value, elements: &[Value], path: &Path<'_>) {
        if let Some(constraint) = wrong_length(list.bounds, elements.len()) {
            self.violations.add(shape, value, path, &constraint);
        }
        if list.of.is_scalar() {
            if elements.iter().any(|element| breaks(list.of, element, self.limits)) {
                let constraint =
                    format!("Member must satisfy constraint: {}", sentence::all_of(list.of, self.limits));
                self.violations.add(shape, value, path, &constraint);
            }
            return;
        }
        for (index, element) in elements.iter().enumerate() {
            let path = Path::element(path, index);
            match element {
                Value::Null => self.violations.add_null(&path),
                _ => self.value(list.of, element, &path),
            }
        }
    }

    fn map(
        &mut self,
        shape: &Shape,
        entries: &Entries,
        value: &Value,
        values: &Map<String, Value>,
        path: &Path<'_>,
    ) {
        if let Some(constraint) = wrong_length(entries.bounds, values.len()) {
            self.violations.add(shape, value, path, &constraint);
        }
        if values.keys().any(|key| broken_by(entries.key, key, self.limits).next().is_some()) {
            let bounds = sentence::all_of_text(entries.key, self.limits);
            self.violations.add(shape, value, path, &format!("Map keys must satisfy constraint: {bounds}"));
        }
        if values.values().any(|value| breaks(entries.value, value, self.limits)) {
            let bounds = sentence::all_of(entries.value, self.limits);
            self.violations.add(shape, value, path, &format!("Map value must satisfy constraint: {bounds}"));
        }
    }
}

/// True when a scalar of a list or map breaks its constraints.
fn breaks(shape: &Shape, value: &Value, limits: &Limits) -> bool {
    match (shape, value) {
        (_, Value::Null) => true,
        (Shape::Text(text), Value::String(given)) => broken_by(text, given, limits).next().is_some(),
        (Shape::Integer(integer), _) => {
            value.as_i64().is_some_and(|given| out_of_range(integer.bounds, given).is_some())
        }
        _ => false,
    }
}

fn out_of_range(bounds: Bounds, given: i64) -> Option<String> {
    match (bounds.min, bounds.max) {
        (Some(min), _) if given < min => Some(sentence::value_at_least(min)),
        (_, Some(max)) if given > max => Some(sentence::value_at_most(max)),
        _ => None,
    }
}

fn wrong_length(bounds: Bounds, length: usize) -> Option<String> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    match (bounds.min, bounds.max) {
        (Some(min), _) if length < min => Some(sentence::length_at_least(min)),
        (_, Some(max)) if length > max => Some(sentence::length_at_most(max)),
        _ => None,
    }
}

/// The constraints that a text breaks, in words.
fn broken_by(text: &Text, given: &str, limits: &Limits) -> impl Iterator<Item = String> {
    let bounds = text.bounds_under(limits);
    let length = match (bounds.min, bounds.max) {
        (None, None) => None,
        _ if text.in_bytes => wrong_length(bounds, given.len()),
        _ => wrong_length(bounds, given.chars().count()),
    };
    let pattern = text.pattern.as_ref().filter(|pattern| !pattern.matches(given));
    let value = !text.values.is_empty() && !text.values.iter().any(|value| value == given);
    length
        .into_iter()
        .chain(pattern.map(|pattern| sentence::matches(&pattern.text)))
        .chain(value.then(|| sentence::one_of_values(&text.values)))
}
