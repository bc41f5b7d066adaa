//! What people are told of a microVM that went back to its recovery point, whoever decides it: the host that lost its engine,
//! or the scheduler that lost its host.

use std::time::Duration;

/// Why it is what it was `age` ago; `lost` is a sentence of what was lost.
#[must_use]
pub fn went_back(lost: &str, age: Duration) -> String {
    format!("{lost} It goes back to its recovery point of {} s before.", age.as_secs())
}
