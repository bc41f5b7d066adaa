//! The AWS side of the API as data: which operations there are, what they take, how they answer and how they refuse.
//!
//! ```text
//! method, path --route--> Operation, PathParameters --parse(query, body)--> Input | Rejection
//!                         members --Operation::reply--> Reply              Rejection::reply --> ErrorReply
//! ```
//!
//! Two files under `model/` describe `lambda-microvms` and the connector operations of `lambda-core`; everything here follows
//! from them. Pure: no I/O and no clock. It knows no rule of the services beyond the constraints of the shapes.

mod check;
mod description;
mod error;
mod input;
mod members;
mod operation;
mod page;
mod query;
mod reply;
mod route;
mod sentence;
pub mod shape;
mod strict;
pub mod sts;

pub use error::{ErrorClass, ErrorReply, Rejection, no_such_method, no_such_path};
pub use input::{Draft, Input, Limits, parse, read};
pub use members::Members;
pub use operation::{Demand, Operation, OperationName, Service, operation, operations};
pub use page::{PAGE_TOKEN_MAX, PageTokens};
pub use reply::Reply;
pub use route::{PathParameters, Routed, encode, route};
pub use strict::DEPTH_MAX;
