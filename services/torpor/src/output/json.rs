//! Protobuf messages as JSON for scripts: the field names of proto3 JSON (camelCase), with three changes that
//! make it pleasant to use with `jq`. Numbers are numbers, also 64-bit ones; enum values lose the prefix that
//! protobuf style asks for ("RUNNING", null when unspecified); scalar fields are always there, absent
//! messages are null.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value,
};
use serde_json::{Map, Value as Json};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(api::FILE_DESCRIPTOR_SET).expect("the api library embeds a valid descriptor set")
});

/// A message as JSON.
///
/// # Panics
/// When no message of that full name exists: a bug in the caller.
pub fn message<M: Message>(full_name: &str, value: &M) -> Json {
    let descriptor = POOL.get_message_by_name(full_name).expect("the caller names a message of ours");
    let dynamic = DynamicMessage::decode(descriptor, value.encode_to_vec().as_slice())
        .expect("a message decodes as its own type");
    convert(&dynamic)
}

pub fn messages<M: Message>(full_name: &str, values: &[M]) -> Json {
    Json::Array(values.iter().map(|value| message(full_name, value)).collect())
}

fn convert(dynamic: &DynamicMessage) -> Json {
    let descriptor = dynamic.descriptor();
    match descriptor.full_name() {
        "google.protobuf.Timestamp" => {
            let timestamp: Option<prost_types::Timestamp> = dynamic.transcode_to().ok();
            return Json::String(crate::durations::rfc3339(timestamp.as_ref()));
        }
        "google.protobuf.Duration" => {
            let duration: prost_types::Duration = dynamic.transcode_to().unwrap_or_default();
            return Json::String(duration.to_string());
        }
        _ => {}
    }
    let mut members = Map::new();
    for field in descriptor.fields() {
        if !field.supports_presence() || dynamic.has_field(&field) {
            members.insert(field.json_name().to_owned(), scalar(&dynamic.get_field(&field), &field));
        } else if field.containing_oneof().is_none() {
            members.insert(field.json_name().to_owned(), Json::Null);
        }
    }
    Json::Object(members)
}

fn scalar(value: &Value, field: &FieldDescriptor) -> Json {
    match value {
        Value::Bool(value) => Json::from(*value),
        Value::I32(value) => Json::from(*value),
        Value::I64(value) => Json::from(*value),
        Value::U32(value) => Json::from(*value),
        Value::U64(value) => Json::from(*value),
        Value::F32(value) => Json::from(*value),
        Value::F64(value) => Json::from(*value),
        Value::String(value) => Json::from(value.as_str()),
        Value::Bytes(value) => Json::from(value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(descriptor) => enum_name(&descriptor, *number),
            _ => Json::from(*number),
        },
        Value::Message(value) => convert(value),
        Value::List(values) => values.iter().map(|value| scalar(value, field)).collect(),
        Value::Map(entries) => {
            let mut members = Map::new();
            let mut sorted: Vec<_> = entries.iter().map(|(key, value)| (map_key(key), value)).collect();
            sorted.sort_by(|left, right| left.0.cmp(&right.0));
            for (key, value) in sorted {
                members.insert(key, scalar(value, field));
            }
            Json::Object(members)
        }
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => text.clone(),
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
    }
}

fn enum_name(descriptor: &EnumDescriptor, number: i32) -> Json {
    let Some(value) = descriptor.get_value(number) else {
        return Json::from(number);
    };
    let prefix = format!("{}_", upper_snake(descriptor.name()));
    let name = value.name().strip_prefix(&prefix).unwrap_or_else(|| value.name()).to_owned();
    if name == "UNSPECIFIED" { Json::Null } else { Json::String(name) }
}

/// "MicrovmState" to "MICROVM_STATE".
fn upper_snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for (index, character) in name.char_indices() {
        if character.is_ascii_uppercase() && index > 0 {
            out.push('_');
        }
        out.push(character.to_ascii_uppercase());
    }
    out
}

/// An enum value's short name, for tables: "RUNNING"; "-" when unspecified.
pub fn short_name(full: &str, enum_name: &str) -> String {
    let short = full.strip_prefix(&format!("{}_", upper_snake(enum_name))).unwrap_or(full);
    if short == "UNSPECIFIED" { "-".to_owned() } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_microvm_reads_well_in_json() {
        let microvm = api::microvm::v1::Microvm {
            microvm_id: "microvm-1".to_owned(),
            state: api::microvm::v1::MicrovmState::Running.into(),
            generation: 3,
            start_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            maximum_duration: Some(prost_types::Duration { seconds: 90, nanos: 500_000_000 }),
            snapshot: Some(api::microvm::v1::SnapshotCopies { difference_bytes: 5, ..Default::default() }),
            ..Default::default()
        };
        let json = message("torpor.microvm.v1.Microvm", &microvm);
        assert_eq!(json["microvmId"], "microvm-1");
        assert_eq!(json["state"], "RUNNING");
        assert_eq!(json["generation"], 3);
        assert_eq!(json["startTime"], "1970-01-01T00:00:01Z");
        assert_eq!(json["maximumDuration"], "90.500s");
        assert_eq!(json["snapshot"]["differenceBytes"], 5);
        assert_eq!(json["imageName"], "");
        assert!(json["idlePolicy"].is_null() && json["terminateTime"].is_null());
    }

    #[test]
    fn a_token_reads_as_a_map() {
        let response = api::microvm::v1::CreateMicrovmAuthTokenResponse {
            auth_token: [("X-aws-proxy-auth".to_owned(), "secret".to_owned())].into(),
            expire_time: None,
        };
        let json = message("torpor.microvm.v1.CreateMicrovmAuthTokenResponse", &response);
        assert_eq!(json["authToken"]["X-aws-proxy-auth"], "secret");
    }
}
