//! The app's environment variables. Values are secrets and in no message.

use std::collections::HashMap;

use model::{Violations, limits};

/// All environment variables together, in bytes: they live in one record.
const ENVIRONMENT_BYTES_MAX: usize = 64 * 1024;
/// Keys that the platform sets itself, or that would pass for its credentials.
const RESERVED: [&str; 9] = [
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_EXECUTION_ENV",
];
/// What all other reserved keys begin with.
const RESERVED_PREFIX: &str = "AWS_LAMBDA_";

fn is_reserved(key: &str) -> bool {
    RESERVED.contains(&key) || key.starts_with(RESERVED_PREFIX)
}

pub(super) fn check(variables: &HashMap<String, String>, violations: &mut Violations) {
    let path = "environmentVariables";
    violations.check(variables.len() <= limits::ENVIRONMENT_ENTRIES_MAX, path, "must be at most 100");
    let total: usize = variables.iter().map(|(key, value)| key.len() + value.len()).sum();
    violations.check(total <= ENVIRONMENT_BYTES_MAX, path, "must be at most 65536 bytes in all");
    // Values are secrets: messages name keys only.
    let mut keys: Vec<&String> = variables.keys().collect();
    keys.sort();
    for key in keys {
        let at: String = format!("{path}.{}", key.chars().take(64).collect::<String>());
        let length = key.chars().count();
        let good_key = !key.trim().is_empty()
            && length <= limits::ENVIRONMENT_KEY_MAX
            && !key.contains(['=', '\0'])
            && !key.chars().any(char::is_control);
        violations.check(good_key, at.clone(), "the key must have 1 to 256 characters, without '='");
        let value = &variables[key];
        let good_value = value.chars().count() <= limits::ENVIRONMENT_VALUE_MAX && !value.contains('\0');
        violations.check(good_value, at.clone(), "the value must have at most 4096 characters");
        if is_reserved(key) {
            violations.add(at, format!("Environment variable key '{key}' is reserved"));
        }
    }
}
