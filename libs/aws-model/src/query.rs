//! Reads the members that travel in the query.

use serde_json::{Map, Value};

use crate::error::{ErrorClass, Rejection};
use crate::route::decode;
use crate::shape::{Located, Shape, Structure};

/// Most parameters of a query; an untag of a full image stays far below.
const PARAMETERS_MAX: usize = 200;

/// Adds the members found in `raw_query` (without the question mark). Unknown parameters are ignored.
pub(crate) fn read(
    members: &Structure,
    raw_query: &str,
    into: &mut Map<String, Value>,
) -> Result<(), Rejection> {
    let parameters = raw_query.split('&').filter(|part| !part.is_empty());
    for (index, part) in parameters.enumerate() {
        if index == PARAMETERS_MAX {
            return Err(malformed(format!("More than {PARAMETERS_MAX} query parameters")));
        }
        let (raw_key, raw_value) = part.split_once('=').unwrap_or((part, ""));
        // The live service answers an equals sign that is not encoded, as in a padded cursor, without a message.
        if raw_value.contains('=') {
            return Err(Rejection::silent(ErrorClass::Validation));
        }
        let (Some(key), Some(text)) = (decode(raw_key, true), decode(raw_value, true)) else {
            return Err(malformed("The query is not percent-encoded UTF-8"));
        };
        let member =
            members.members.iter().find(|member| matches!(member.place, Located::Query(own) if own == key));
        let Some(member) = member else { continue };
        match member.shape {
            Shape::List(_) => {
                let list = into.entry(member.name).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut().expect("made above").push(text.into());
            }
            shape => {
                if into.insert(member.name.to_owned(), scalar(shape, text)?).is_some() {
                    return Err(malformed(format!("The query parameter {} is given twice", member.name)));
                }
            }
        }
    }
    Ok(())
}

/// The value that a text in a path or query stands for.
pub(crate) fn scalar(shape: &Shape, text: String) -> Result<Value, Rejection> {
    match shape {
        Shape::Integer(_) => {
            let number: Option<i32> = text.parse().ok();
            let number = number.ok_or_else(|| malformed("STRING_VALUE cannot be converted to Integer"))?;
            Ok(number.into())
        }
        Shape::Flag => match text.as_str() {
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            _ => Err(malformed("STRING_VALUE cannot be converted to Boolean")),
        },
        _ => Ok(text.into()),
    }
}

fn malformed(message: impl Into<String>) -> Rejection {
    Rejection::new(ErrorClass::Serialization, message)
}
