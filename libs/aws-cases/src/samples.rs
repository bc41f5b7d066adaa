//! Values on each side of a bound, and the words for the wrong ones.

use aws_model::shape::{Bounds, Integer, Shape, Structure, Text};
use aws_model::{ErrorClass, Limits};
use serde_json::{Map, Value, json};

use crate::words;

/// What a request must meet.
pub(super) enum Expected {
    Passes,
    Refused(ErrorClass, String),
}

impl Expected {
    /// A violated constraint; `subject` is "Value 'x'", "Value" or "Value null".
    pub fn broken(subject: &str, path: &str, rule: &str) -> Self {
        let message = format!("{subject} at '{path}' failed to satisfy constraint: {rule}");
        Self::Refused(ErrorClass::Validation, message)
    }
}

/// A value, and the constraint it breaks in words, if it does.
pub(super) struct Sample {
    pub what: String,
    pub value: Value,
    pub broken: Option<String>,
}

impl Sample {
    fn good(what: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { what: what.into(), value: value.into(), broken: None }
    }

    fn bad(what: impl Into<String>, value: impl Into<Value>, rule: String) -> Self {
        Self { what: what.into(), value: value.into(), broken: Some(rule) }
    }
}

/// How a violation names the value that broke a constraint.
pub(super) fn subject(shape: &Shape, value: &Value) -> String {
    if shape.is_sensitive() { "Value".to_owned() } else { format!("Value '{}'", shown(value)) }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(elements) => format!("[{}]", elements.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| format!("{name}={}", shown(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The required members of a structure, each in its minimal form.
pub(super) fn required(structure: &Structure) -> Map<String, Value> {
    let members = structure.members.iter().filter(|member| member.required);
    members.map(|member| (member.name.to_owned(), minimal(member.shape))).collect()
}

/// A value that fits.
pub(super) fn minimal(shape: &Shape) -> Value {
    match shape {
        Shape::Text(text) => text.example.clone().into(),
        Shape::Integer(integer) => integer.example.into(),
        Shape::Flag => true.into(),
        Shape::List(list) => json!([minimal(list.of)]),
        Shape::Map(entries) => json!({ entries.key.example.clone(): minimal(entries.value) }),
        Shape::Structure(inner) => Value::Object(required(inner)),
        Shape::Union(inner) => {
            let first = inner.members.first().expect("a union has members");
            json!({ first.name: minimal(first.shape) })
        }
    }
}

pub(super) fn scalars(shape: &Shape, limits: &Limits) -> Vec<Sample> {
    match shape {
        Shape::Text(text) => texts(text, limits),
        Shape::Integer(integer) => integers(integer),
        Shape::Flag => vec![Sample::good("true", true), Sample::good("false", false)],
        _ => Vec::new(),
    }
}

fn integers(integer: &Integer) -> Vec<Sample> {
    let mut samples = vec![Sample::good("an example", integer.example)];
    let Bounds { min, max } = integer.bounds;
    if let Some(min) = min {
        samples.push(Sample::good(format!("value {min}"), min));
        samples.push(Sample::bad(format!("value {}", min - 1), min - 1, words::value_at_least(min)));
    }
    let top = max.unwrap_or(i32::MAX.into());
    samples.push(Sample::good(format!("value {top}"), top));
    if let Some(max) = max {
        samples.push(Sample::bad(format!("value {}", max + 1), max + 1, words::value_at_most(max)));
    }
    samples
}

pub(super) fn texts(text: &Text, limits: &Limits) -> Vec<Sample> {
    let mut samples = vec![Sample::good("an example", text.example.as_str())];
    for value in &text.values {
        samples.push(Sample::good(format!("the value {value}"), value.as_str()));
        let other = value.to_lowercase() + "_";
        samples.push(Sample::bad(format!("the value {other}"), other, words::values(&text.values)));
    }
    if !text.values.is_empty() {
        samples.push(Sample::bad("no characters", "", words::values(&text.values)));
    }
    let Bounds { min, max } = text.bounds_under(limits);
    let fits = |sample: &String| text.pattern.as_ref().is_none_or(|pattern| pattern.matches(sample));
    if let Some(min) = min {
        let least = stretched(text, min);
        if fits(&least) {
            samples.push(Sample::good(format!("length {min}"), least));
        }
        if min > 0 {
            let short = stretched(text, min - 1);
            samples.push(Sample::bad(format!("length {}", min - 1), short, words::length_at_least(min)));
        }
    }
    if let Some(max) = max {
        let most = stretched(text, max);
        assert!(fits(&most), "the example cannot be stretched to {max}");
        samples.push(Sample::good(format!("length {max}"), most));
        let long = stretched(text, max + 1);
        samples.push(Sample::bad(format!("length {}", max + 1), long, words::length_at_most(max)));
        if text.in_bytes {
            let long = "é".repeat(usize::try_from(max / 2).expect("a length")) + "pp";
            samples.push(Sample::bad("too many bytes", long, words::length_at_most(max)));
        }
    }
    if let (Some(pattern), Some(refused)) = (&text.pattern, &text.refused) {
        let rule = words::pattern(&pattern.text);
        samples.push(Sample::bad("another pattern", refused.as_str(), rule.clone()));
        samples.push(Sample::bad("another last line", format!("{}\n{refused}", text.example), rule));
    }
    samples
}

/// A text of that length: a text that fits with its last character repeated, or only that character.
fn stretched(text: &Text, length: i64) -> String {
    let length = usize::try_from(length).expect("a length");
    let example = text.stretch.as_deref().unwrap_or(&text.example);
    let last = example.chars().last().map(String::from).unwrap_or_default();
    let have = example.chars().count();
    if length < have { last.repeat(length) } else { example.to_owned() + &last.repeat(length - have) }
}

/// Lists and maps of sizes on each side of their bounds.
pub(super) fn sizes(shape: &Shape) -> Vec<Sample> {
    let (bounds, of_size): (Bounds, Box<dyn Fn(i64) -> Value>) = match shape {
        Shape::List(list) => {
            let element = minimal(list.of);
            (list.bounds, Box::new(move |size| (0..size).map(|_| element.clone()).collect()))
        }
        Shape::Map(entries) => {
            let value = minimal(entries.value);
            let key = entries.key.example.clone();
            let of_size =
                move |size| (0..size).map(|index| (format!("{key}{index}"), value.clone())).collect();
            (entries.bounds, Box::new(move |size| Value::Object(of_size(size))))
        }
        _ => return Vec::new(),
    };
    let min = bounds.min.unwrap_or(0);
    let mut samples = vec![Sample::good(format!("{min} entries"), of_size(min))];
    if min > 0 {
        samples.push(Sample::bad(
            format!("{} entries", min - 1),
            of_size(min - 1),
            words::length_at_least(min),
        ));
    }
    let most = bounds.max.unwrap_or(min + 1);
    if most > min {
        samples.push(Sample::good(format!("{most} entries"), of_size(most)));
    }
    if let Some(max) = bounds.max {
        let more = max + 1;
        samples.push(Sample::bad(format!("{more} entries"), of_size(more), words::length_at_most(max)));
    }
    samples
}

/// Values of other JSON types, and what the answer says of each.
pub(super) fn wrong_types(shape: &Shape) -> Vec<(Value, String)> {
    let all = [
        (json!(true), "TRUE_VALUE"),
        (json!(false), "FALSE_VALUE"),
        (json!(1), "NUMBER_VALUE"),
        (json!(1.5), "DECIMAL_VALUE"),
        (json!("one"), "STRING_VALUE"),
        (json!([]), "list"),
        (json!({}), "members"),
    ];
    let fits = |value: &Value| match shape {
        Shape::Text(_) => value.is_string(),
        Shape::Integer(_) => value.is_i64(),
        Shape::Flag => value.is_boolean(),
        Shape::List(_) => value.is_array(),
        Shape::Map(_) | Shape::Structure(_) | Shape::Union(_) => value.is_object(),
    };
    let wrong = all.into_iter().filter(|(value, _)| !fits(value)).map(|(value, came)| {
        let message = match (shape, came) {
            (_, "list") => "Start of list found where not expected".to_owned(),
            (_, "members") => "Start of structure or map found where not expected.".to_owned(),
            (Shape::Text(_), _) => format!("{came} cannot be converted to String"),
            (Shape::Integer(_), _) => format!("{came} cannot be converted to Integer"),
            (Shape::Flag, _) => format!("{came} cannot be converted to Boolean"),
            (Shape::List(_), _) => "Expected list or null".to_owned(),
            _ => "Expected null".to_owned(),
        };
        (value, message)
    });
    let beyond = (json!(2_147_483_648_i64), "NUMBER_VALUE is out of the range of Integer".to_owned());
    wrong.chain(matches!(shape, Shape::Integer(_)).then_some(beyond)).collect()
}
