//! What a launch, suspend, wake or bake was made of, how long each part took, and why it was begun.

use std::time::Duration;

use api::microvm::v1::TransitionCause;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    /// Start, counted from the start of the transition.
    pub start: Duration,
    pub duration: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    pub kind: String,
    /// Its phases in the order they ended.
    pub phases: Vec<Phase>,
    /// Why it was begun; journals of earlier agents do not say.
    #[serde(default)]
    pub cause: Cause,
}

/// Why a transition was begun: a code for programs, words for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// Number of a `TransitionCause`.
    pub code: i32,
    pub reason: String,
}

impl Cause {
    /// A caller of the API asked for it.
    pub fn requested() -> Self {
        Self::of(TransitionCause::Requested, "asked for by a caller")
    }

    pub fn drain() -> Self {
        Self::of(TransitionCause::Drain, "its host was drained")
    }

    /// Something came in for a microVM that slept.
    pub fn traffic() -> Self {
        Self::of(TransitionCause::Traffic, "a request came, or bytes on an open connection")
    }

    /// Its idle time had passed; `reason` says since when.
    pub fn idle(reason: String) -> Self {
        Self::of(TransitionCause::Idle, reason)
    }

    fn of(code: TransitionCause, reason: impl Into<String>) -> Self {
        Self { code: code.into(), reason: reason.into() }
    }
}
