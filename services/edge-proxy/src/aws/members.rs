//! The members of a request, taken out one by one. Their types were checked
//! before: what is absent here was absent there.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Members of a request or of a structure in it.
#[derive(Debug, Default)]
pub struct Members(Map<String, Value>);

impl From<Map<String, Value>> for Members {
    fn from(map: Map<String, Value>) -> Self {
        Self(map)
    }
}

impl Members {
    /// A text; empty when absent.
    pub fn text(&mut self, name: &str) -> String {
        self.optional_text(name).unwrap_or_default()
    }

    /// A text, if there is one.
    pub fn optional_text(&mut self, name: &str) -> Option<String> {
        text(self.0.remove(name)?)
    }

    /// An integer, if there is one.
    pub fn integer(&mut self, name: &str) -> Option<i64> {
        self.0.remove(name).as_ref().and_then(Value::as_i64)
    }

    /// A small number: what does not fit becomes the largest, which no rule takes.
    pub fn small(&mut self, name: &str) -> Option<u32> {
        let value = self.integer(name)?;
        Some(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// A flag; false when absent.
    pub fn flag(&mut self, name: &str) -> bool {
        self.0.remove(name).as_ref().and_then(Value::as_bool).unwrap_or_default()
    }

    /// A structure, if there is one.
    pub fn structure(&mut self, name: &str) -> Option<Self> {
        structure(self.0.remove(name)?)
    }

    /// Texts of a list.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        self.list(name).filter_map(text).collect()
    }

    /// Structures of a list.
    pub fn structures(&mut self, name: &str) -> Vec<Self> {
        self.list(name).filter_map(structure).collect()
    }

    /// Texts by name.
    pub fn map(&mut self, name: &str) -> HashMap<String, String> {
        match self.0.remove(name) {
            Some(Value::Object(map)) => {
                map.into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect()
            }
            _ => HashMap::new(),
        }
    }

    fn list(&mut self, name: &str) -> impl Iterator<Item = Value> {
        match self.0.remove(name) {
            Some(Value::Array(list)) => list.into_iter(),
            _ => Vec::new().into_iter(),
        }
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn structure(value: Value) -> Option<Members> {
    match value {
        Value::Object(map) => Some(Members(map)),
        _ => None,
    }
}
