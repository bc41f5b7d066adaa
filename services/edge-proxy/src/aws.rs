//! The AWS-compatible REST API: a thin translation onto the fleet's gRPC services, under AWS's signatures, errors and forms.
//!
//! ```text
//! request -> route -> claim, key -> body -> signature -> policy -> throttle -> constraints
//!         -> operation: translate, one gRPC call, translate back -> response, audit record
//! ```
//!
//! The order of refusals is AWS's: who you are comes before what you may do, and that before whether the request makes
//! sense. Rules of the resources themselves are not here; the services that own them have them, and `rejections` gives their
//! refusals AWS's names.
//!
//! | room | what |
//! | --- | --- |
//! | `server` | HTTP: bodies, signatures, rates, answers, audit records; `handler` puts the steps in order |
//! | `rights` | what a request needs, policies, the other names of a resource |
//! | `operations` | the table of operations, and their translations |
//! | `access_keys`, `services` | etcd and gRPC |

pub mod app;

mod access_keys;
mod account;
mod metrics;
mod operations;
mod rejections;
mod rights;
mod server;
mod services;
