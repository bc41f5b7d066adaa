//! Reads the two description files under `model/` into [`Shape`]s and [`Operation`]s, once. A fault in a file is a fault of
//! the program, found by the first test that touches the table.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::error::ErrorClass;
use crate::operation::{Demand, Operation, OperationName, ReplyForm, ReplyMember, Service};
use crate::shape::{self, Bounds, Located, Member, Shape, Structure};

const FILES: [(Service, &str); 2] = [
    (Service::Microvms, include_str!("../model/microvms.toml")),
    (Service::Core, include_str!("../model/core.toml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    service: String,
    common_errors: Vec<String>,
    types: BTreeMap<String, Type>,
    replies: BTreeMap<String, Vec<String>>,
    operations: Vec<OperationEntry>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Type {
    Text {
        min: Option<i64>,
        max: Option<i64>,
        unit: Option<String>,
        limit: Option<String>,
        pattern: Option<String>,
        #[serde(default)]
        values: Vec<String>,
        #[serde(default)]
        sensitive: bool,
        example: Option<String>,
        stretch: Option<String>,
        refused: Option<String>,
    },
    Integer {
        min: Option<i64>,
        max: Option<i64>,
        example: Option<i64>,
    },
    Flag {},
    List {
        of: String,
        min: Option<i64>,
        max: Option<i64>,
    },
    Map {
        key: String,
        value: String,
        min: Option<i64>,
        max: Option<i64>,
    },
    Structure {
        members: Vec<MemberEntry>,
    },
    Union {
        members: Vec<MemberEntry>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberEntry {
    name: String,
    r#type: String,
    #[serde(default)]
    r#in: Place,
    key: Option<String>,
    #[serde(default)]
    required: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum Place {
    Path,
    Query,
    #[default]
    Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationEntry {
    name: OperationName,
    method: String,
    path: String,
    success: u16,
    #[serde(default)]
    errors: Vec<String>,
    reply: String,
    items: Option<ItemsEntry>,
    input: Vec<MemberEntry>,
    #[serde(default)]
    demands: Vec<DemandEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemsEntry {
    r#in: String,
    of: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DemandEntry {
    member: Vec<String>,
    sentence: String,
}

/// Every operation of both services.
pub(crate) fn table() -> &'static [Operation] {
    static TABLE: OnceLock<Vec<Operation>> = OnceLock::new();
    TABLE.get_or_init(|| FILES.into_iter().flat_map(|(service, text)| load(service, text)).collect())
}

fn load(service: Service, text: &str) -> Vec<Operation> {
    let file: File = toml::from_str(text).expect("the description is part of the program and under test");
    assert_eq!(file.service, service.name(), "the description of another service");
    let mut resolver = Resolver { types: file.types, done: BTreeMap::new() };
    let common: Vec<ErrorClass> = file.common_errors.iter().map(|name| class(name)).collect();
    let operations = file.operations.into_iter().map(|entry| {
        let input = resolver.members(entry.input);
        let errors = common.iter().copied().chain(entry.errors.iter().map(|name| class(name))).collect();
        let members = reply_members(&file.replies, &entry.reply);
        let items = entry.items.map(|items| (keep(items.r#in), reply_members(&file.replies, &items.of)));
        let demands = entry
            .demands
            .into_iter()
            .map(|demand| Demand { member: demand.member, sentence: demand.sentence });
        Operation {
            service,
            action: keep(format!("lambda:{}", entry.name.as_str())),
            name: entry.name,
            method: keep(entry.method),
            path: keep(entry.path),
            success: entry.success,
            errors,
            input,
            demands: demands.collect(),
            reply: ReplyForm { members, items },
        }
    });
    operations.collect()
}

/// Names live as long as the program; there is one table.
fn keep(text: String) -> &'static str {
    text.leak()
}

fn class(name: &str) -> ErrorClass {
    ErrorClass::from_stem(name).unwrap_or_else(|| panic!("no error class {name}"))
}

fn reply_members(replies: &BTreeMap<String, Vec<String>>, name: &str) -> Vec<ReplyMember> {
    let members = replies.get(name).unwrap_or_else(|| panic!("no reply {name}"));
    let member = |text: &String| match text.strip_suffix('?') {
        Some(name) => ReplyMember { name: keep(name.to_owned()), always: false },
        None => ReplyMember { name: keep(text.clone()), always: true },
    };
    members.iter().map(member).collect()
}

struct Resolver {
    types: BTreeMap<String, Type>,
    done: BTreeMap<String, &'static Shape>,
}

impl Resolver {
    fn shape(&mut self, name: &str) -> &'static Shape {
        if let Some(shape) = self.done.get(name) {
            return shape;
        }
        // Taken out while it is resolved: a type that contains itself is reported, not followed.
        let entry =
            self.types.remove(name).unwrap_or_else(|| panic!("no type {name}, or it contains itself"));
        let shape: &'static Shape = Box::leak(Box::new(self.resolve(entry)));
        self.done.insert(name.to_owned(), shape);
        shape
    }

    fn resolve(&mut self, entry: Type) -> Shape {
        match entry {
            Type::Text { min, max, unit, limit, pattern, values, sensitive, example, stretch, refused } => {
                let example = example.or_else(|| values.first().cloned()).unwrap_or_default();
                Shape::Text(shape::Text {
                    bounds: Bounds { min, max },
                    in_bytes: match unit.as_deref() {
                        None => false,
                        Some("bytes") => true,
                        Some(other) => panic!("no unit {other}"),
                    },
                    movable: limit.map(|name| shape::Movable::from_name(&name)),
                    pattern: pattern.map(|text| shape::Pattern::compile(&text)),
                    values,
                    sensitive,
                    example,
                    stretch,
                    refused,
                })
            }
            Type::Integer { min, max, example } => Shape::Integer(shape::Integer {
                bounds: Bounds { min, max },
                example: example.or(min).or(max).unwrap_or(1),
            }),
            Type::Flag {} => Shape::Flag,
            Type::List { of, min, max } => {
                Shape::List(shape::List { of: self.shape(&of), bounds: Bounds { min, max } })
            }
            Type::Map { key, value, min, max } => {
                let Shape::Text(key) = self.shape(&key) else {
                    panic!("keys of a map are texts");
                };
                Shape::Map(shape::Entries { key, value: self.shape(&value), bounds: Bounds { min, max } })
            }
            Type::Structure { members } => Shape::Structure(self.members(members)),
            Type::Union { members } => Shape::Union(self.members(members)),
        }
    }

    fn members(&mut self, entries: Vec<MemberEntry>) -> Structure {
        let members = entries.into_iter().map(|entry| {
            let name = keep(entry.name);
            Member {
                name,
                shape: self.shape(&entry.r#type),
                required: entry.required,
                place: match (entry.r#in, entry.key) {
                    (Place::Path, None) => Located::Path,
                    (Place::Query, key) => Located::Query(key.map_or(name, keep)),
                    (Place::Body, None) => Located::Body,
                    (_, Some(_)) => panic!("only a member of the query has a key of its own"),
                },
            }
        });
        Structure { members: members.collect() }
    }
}
