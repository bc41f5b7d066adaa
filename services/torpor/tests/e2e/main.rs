//! The whole fleet, as its users meet it: real services, real etcd, a real S3 API and real microVMs.
//! `deploy/test` starts a fleet of two hosts and names its data directory in `TORPOR_E2E_DATA_DIR`; these
//! tests share it, one after the other (`.config/nextest.toml` puts them in a group of one).

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

mod app;
mod bad_input;
mod crashes;
mod domains;
mod endings;
mod isolation;
mod lifecycle;
mod shell;
mod storage;
mod world;
