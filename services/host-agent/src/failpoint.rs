//! Named places where a test can kill this process, to see what a restart makes of it. Compiled always, so
//! that what is tested is what ships, and honoured only when the setting `failpoints` is on.

use std::sync::OnceLock;

/// Environment variable that names the point to die at.
const VARIABLE: &str = "TORPOR_FAILPOINT";

static ARMED: OnceLock<Option<String>> = OnceLock::new();

/// Reads the variable when `enabled`. Called once, at start.
pub fn arm(enabled: bool) {
    let name = if enabled { std::env::var(VARIABLE).ok() } else { None };
    let _ = ARMED.set(name.filter(|name| !name.is_empty()));
}

/// Dies here, as `kill -9` would, when the test named this point.
pub fn hit(name: &str) {
    if ARMED.get().and_then(Option::as_deref) == Some(name) {
        tracing::error!(failpoint = name, "dying as told");
        std::process::abort();
    }
}
