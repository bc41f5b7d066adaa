//! The members of a request, or of a structure in it, read one by one. Their types were checked before.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Members by the model's names. Absent and null members are not there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Members<'a>(Option<&'a Map<String, Value>>);

impl<'a> From<&'a Map<String, Value>> for Members<'a> {
    fn from(members: &'a Map<String, Value>) -> Self {
        Self(Some(members))
    }
}

impl<'a> Members<'a> {
    pub fn get(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name)
    }

    pub fn iter(self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.0.into_iter().flatten()
    }

    pub fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    /// A text of one's own; empty when absent.
    pub fn string(self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    /// An integer. One of a request fits 32 bits.
    pub fn integer(self, name: &str) -> Option<i64> {
        self.get(name)?.as_i64()
    }

    /// An integer as a number that is never negative: one that does not fit becomes the largest, which no rule takes.
    pub fn number(self, name: &str) -> Option<u32> {
        Some(u32::try_from(self.integer(name)?).unwrap_or(u32::MAX))
    }

    /// A flag; false when absent.
    pub fn flag(self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    pub fn structure(self, name: &str) -> Option<Self> {
        self.get(name)?.as_object().map(Self::from)
    }

    pub fn texts(self, name: &str) -> impl Iterator<Item = &'a str> {
        self.list(name).filter_map(Value::as_str)
    }

    pub fn strings(self, name: &str) -> Vec<String> {
        self.texts(name).map(str::to_owned).collect()
    }

    pub fn structures(self, name: &str) -> impl Iterator<Item = Self> {
        self.list(name).filter_map(Value::as_object).map(Self::from)
    }

    /// Texts by name.
    pub fn map(self, name: &str) -> HashMap<String, String> {
        let entries = self.structure(name).unwrap_or_default().iter();
        entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    fn list(self, name: &str) -> impl Iterator<Item = &'a Value> {
        self.get(name).and_then(Value::as_array).into_iter().flatten()
    }
}
