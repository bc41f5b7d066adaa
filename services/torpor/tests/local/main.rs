//! What needs no fleet: the command line, its calls against scripted services, the
//! supervisor with two components, and the rule of who may depend on whom.

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

mod cli;
mod domains;
mod keys;
mod layout;
mod scripted;
mod supervisor;
