//! From the descriptions of `aws-model`: for every constraint of every operation, a request on each side of its bound and what
//! the answer to the wrong one must say. For tests of whatever serves these operations, never for what ships; the `boundary`
//! example prints them as JSON lines.

mod case;
pub mod fuzz;
mod samples;
mod words;

pub use case::Case;

use aws_model::shape::{Located, Member, Shape, Structure};
use aws_model::{ErrorClass, Limits, Operation, operations};
use serde_json::{Map, Value, json};

use case::text_of;
use samples::{Expected, Sample, minimal};
use words::NOT_NULL;

/// Every case of every operation under these limits.
pub fn cases(limits: &Limits) -> Vec<Case> {
    operations().iter().flat_map(|operation| of(operation, limits)).collect()
}

/// A request that passes, with the members that the operation cannot do without.
pub fn minimal_case(operation: &'static Operation) -> Case {
    Case::new(operation, "the least".to_owned(), &least(operation), None)
}

fn of(operation: &'static Operation, limits: &Limits) -> Vec<Case> {
    let least = least(operation);
    let mut walk = Walk { operation, limits, cases: Vec::new() };
    walk.add("the least", &least, Expected::Passes);
    for member in &operation.input.members {
        let with = |value: Value| {
            let mut members = least.clone();
            members.insert(member.name.to_owned(), value);
            members
        };
        let present = least.get(member.name).unwrap_or(&Value::Null);
        walk.member(member, &with, &lower_first(member.name), present);
        if member.required && member.place != Located::Path {
            let mut without = least.clone();
            without.remove(member.name);
            walk.add(&format!("{} is missing", member.name), &without, missing(&lower_first(member.name)));
        }
    }
    for demand in &operation.demands {
        let without = Value::Object(least.clone());
        let without = remove(without, &demand.member);
        let what = format!("{} is missing", demand.member.join("."));
        let expected = Expected::Refused(ErrorClass::InvalidParameterValue, demand.sentence.clone());
        walk.add(&what, without.as_object().expect("an object as it was"), expected);
    }
    if operation.input.members.iter().any(|member| member.place == Located::Body) {
        let mut more = least.clone();
        more.insert("memberOfTheFuture".to_owned(), json!({"a": [1, null]}));
        walk.add("a member that nobody knows", &more, Expected::Passes);
    }
    walk.cases
}

fn remove(mut value: Value, names: &[String]) -> Value {
    let (last, parents) = names.split_last().expect("a demand names a member");
    let parent = parents.iter().try_fold(&mut value, |value, name| value.get_mut(name));
    parent.and_then(Value::as_object_mut).expect("the least has what is demanded").remove(last);
    value
}

/// The members without which the operation is refused.
fn least(operation: &Operation) -> Map<String, Value> {
    let mut members = samples::required(&operation.input);
    for demand in &operation.demands {
        let mut structure = &operation.input;
        let mut level = &mut members;
        let (last, parents) = demand.member.split_last().expect("a demand names a member");
        for name in parents {
            let shape = structure.member(name).expect("a demand names members of the input").shape;
            let (Shape::Structure(inner) | Shape::Union(inner)) = shape else {
                panic!("a demand goes through structures");
            };
            structure = inner;
            let entry = level.entry(name.as_str()).or_insert_with(|| Value::Object(Map::new()));
            level = entry.as_object_mut().expect("the minimal form of a structure");
        }
        let shape = structure.member(last).expect("a demand names members of the input").shape;
        level.insert(last.clone(), minimal(shape));
    }
    members
}

fn lower_first(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    first.to_ascii_lowercase() + rest
}

fn missing(path: &str) -> Expected {
    Expected::broken("Value null", path, NOT_NULL)
}

struct Walk<'a> {
    operation: &'static Operation,
    limits: &'a Limits,
    cases: Vec<Case>,
}

/// Puts a value where the walk stands and gives the whole request.
type Build<'a> = &'a dyn Fn(Value) -> Map<String, Value>;

impl Walk<'_> {
    fn add(&mut self, what: &str, members: &Map<String, Value>, expected: Expected) {
        let refused = match expected {
            Expected::Passes => None,
            Expected::Refused(class, message) => Some((class, message)),
        };
        let case = Case::new(self.operation, what.to_owned(), members, refused);
        self.cases.push(case);
    }

    fn member(&mut self, member: &Member, build: Build<'_>, path: &str, present: &Value) {
        match (member.shape, member.place) {
            // An empty list is no parameter at all.
            (Shape::List(list), Located::Query(_)) => self.elements(member.shape, list.of, build, path),
            _ => self.shape(member.shape, build, path, present),
        }
        match member.place {
            Located::Body => self.wrong_types(member.shape, build, path),
            Located::Query(_) if matches!(member.shape, Shape::Integer(_)) => {
                let message = "STRING_VALUE cannot be converted to Integer".to_owned();
                let expected = Expected::Refused(ErrorClass::Serialization, message);
                self.add(&format!("{path}: a word"), &build("one".into()), expected);
            }
            Located::Query(_) | Located::Path => {}
        }
    }

    /// `present` is what the request without which nothing passes has in this place, or null.
    fn shape(&mut self, shape: &'static Shape, build: Build<'_>, path: &str, present: &Value) {
        match shape {
            Shape::Text(_) | Shape::Integer(_) | Shape::Flag => {
                for Sample { what, value, broken } in samples::scalars(shape, self.limits) {
                    let subject = samples::subject(shape, &value);
                    let expected =
                        broken.map_or(Expected::Passes, |rule| Expected::broken(&subject, path, &rule));
                    self.add(&format!("{path}: {what}"), &build(value), expected);
                }
            }
            Shape::List(list) => {
                self.sizes(shape, build, path);
                self.elements(shape, list.of, build, path);
            }
            Shape::Map(_) => {
                self.sizes(shape, build, path);
                self.entries(shape, build, path);
            }
            Shape::Structure(inner) => {
                let around = present.as_object().cloned().unwrap_or_else(|| samples::required(inner));
                let alone = build(Value::Object(around.clone()));
                self.add(&format!("{path}: the least"), &alone, Expected::Passes);
                self.members(inner, &around, build, path, present);
            }
            Shape::Union(inner) => {
                self.members(inner, &Map::new(), build, path, present);
                self.union(inner, build, path);
            }
        }
    }

    fn members(
        &mut self,
        inner: &'static Structure,
        around: &Map<String, Value>,
        build: Build<'_>,
        path: &str,
        present: &Value,
    ) {
        for member in &inner.members {
            let with = |value: Value| {
                let mut members = around.clone();
                members.insert(member.name.to_owned(), value);
                build(Value::Object(members))
            };
            let path = format!("{path}.{}", lower_first(member.name));
            self.shape(member.shape, &with, &path, present.get(member.name).unwrap_or(&Value::Null));
            self.wrong_types(member.shape, &with, &path);
            if member.required {
                let mut without = around.clone();
                without.remove(member.name);
                self.add(&format!("{path} is missing"), &build(Value::Object(without)), missing(&path));
                self.add(&format!("{path} is null"), &with(Value::Null), missing(&path));
            }
        }
    }

    fn union(&mut self, inner: &'static Structure, build: Build<'_>, path: &str) {
        let rule = words::one_of(inner);
        let all = inner.members.iter().map(|member| (member.name.to_owned(), minimal(member.shape)));
        let refused = || Expected::broken("Value", path, &rule);
        self.add(&format!("{path}: none of the union"), &build(json!({})), refused());
        let unknown = json!({"memberOfTheFuture": {}});
        self.add(&format!("{path}: only an unknown one of the union"), &build(unknown), refused());
        if inner.members.len() > 1 {
            let all: Map<String, Value> = all.collect();
            self.add(&format!("{path}: several of the union"), &build(Value::Object(all)), refused());
        }
    }

    /// Lists and maps with too few and too many entries.
    fn sizes(&mut self, shape: &'static Shape, build: Build<'_>, path: &str) {
        for Sample { what, value, broken } in samples::sizes(shape) {
            let subject = samples::subject(shape, &value);
            let expected = broken.map_or(Expected::Passes, |rule| Expected::broken(&subject, path, &rule));
            self.add(&format!("{path}: {what}"), &build(value), expected);
        }
    }

    fn elements(&mut self, list: &'static Shape, of: &'static Shape, build: Build<'_>, path: &str) {
        if !of.is_scalar() {
            let with = |value: Value| build(json!([value]));
            let path = format!("{path}.1.member");
            self.shape(of, &with, &path, &Value::Null);
            self.wrong_types(of, &with, &path);
            self.add(&format!("{path} is null"), &with(Value::Null), missing(&path));
            return;
        }
        let rule = format!("Member must satisfy constraint: {}", words::all_of(of, self.limits));
        for Sample { what, value, broken } in samples::scalars(of, self.limits) {
            let value = json!([value]);
            let subject = samples::subject(list, &value);
            let expected = broken.map_or(Expected::Passes, |_| Expected::broken(&subject, path, &rule));
            self.add(&format!("{path}: an element with {what}"), &build(value), expected);
        }
    }

    fn entries(&mut self, shape: &'static Shape, build: Build<'_>, path: &str) {
        let Shape::Map(entries) = shape else { return };
        let mut each = |kind: &str, rule: String, samples: Vec<Sample>, make: &dyn Fn(&Value) -> Value| {
            for Sample { what, value, broken } in samples {
                let value = make(&value);
                let rule = format!("Map {kind} must satisfy constraint: {rule}");
                let subject = samples::subject(shape, &value);
                let expected = broken.map_or(Expected::Passes, |_| Expected::broken(&subject, path, &rule));
                self.add(&format!("{path}: a {kind} with {what}"), &build(value), expected);
            }
        };
        let limits = &Limits::default();
        let keys = samples::texts(entries.key, limits);
        let least = minimal(entries.value);
        each("keys", words::all_of_text(entries.key, limits), keys, &|key| json!({ text_of(key): least }));
        let values = samples::scalars(entries.value, limits);
        each(
            "value",
            words::all_of(entries.value, limits),
            values,
            &|value| json!({ entries.key.example.clone(): value }),
        );
    }

    fn wrong_types(&mut self, shape: &'static Shape, build: Build<'_>, path: &str) {
        for (value, message) in samples::wrong_types(shape) {
            let expected = Expected::Refused(ErrorClass::Serialization, message);
            self.add(&format!("{path}: {value} in place of its type"), &build(value), expected);
        }
    }
}
