//! The HTTP side of the API: bodies in, signatures, rates, answers and records out.

mod admission;
mod answer;
pub(super) mod audit;
pub(super) mod body;
pub(super) mod handler;
mod identity;
pub(super) mod throttle;
