//! What the scheduler decides, without doing any of it: no clock, no network,
//! no store. Times are passed in. Parts of a record that the scheduler only
//! hands on (hooks, snapshot references, metering) stay in their wire form.

pub mod catalog;
pub mod connector;
pub mod connectors;
pub mod egress;
pub mod hosts;
pub mod idempotency;
pub mod microvm;
pub mod observation;
pub mod paging;
pub mod placement;
pub mod store_room;
pub mod timers;
pub mod usage;
