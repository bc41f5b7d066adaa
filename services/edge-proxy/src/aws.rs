//! The AWS-compatible REST API: a thin translation onto the fleet's gRPC
//! services, under AWS's signatures, errors and forms.
//!
//! ```text
//! request -> route -> claim, key -> body -> signature -> policy -> throttle -> constraints
//!         -> operation: translate, one gRPC call, translate back -> response, audit record
//! ```
//!
//! The order of refusals is AWS's: who you are comes before what you may do, and
//! that before whether the request makes sense. Rules of the resources themselves
//! are not here; the services that own them have them, and `failures` gives their
//! refusals AWS's names.

pub mod access;
mod admission;
pub mod aliases;
pub mod answer;
pub mod app;
pub mod arn;
pub mod audit;
pub mod body;
pub mod failures;
pub mod handler;
pub mod key_file;
pub mod keys;
pub mod members;
pub mod operations;
pub mod policy;
pub mod services;
pub mod throttle;
