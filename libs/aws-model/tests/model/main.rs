//! The model as a server uses it: routes, forms, constraints, answers, page tokens.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod answers;
mod boundary;
mod hostile;
mod pages;
mod refusals;
mod routes;
