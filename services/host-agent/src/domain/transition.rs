//! How long each phase of a launch, suspend or wake took.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    /// Start, counted from the start of the transition.
    pub start: Duration,
    pub duration: Duration,
}

/// A finished transition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    pub kind: String,
    /// Its phases in the order they ended.
    pub phases: Vec<Phase>,
}
