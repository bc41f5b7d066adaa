//! The image-builder: turns artifacts into versions of images.
//!
//! A build goes from an S3 zip over BuildKit and an ext4 disk to a bake on a host, whose snapshot becomes a
//! version. See [`pipeline`] for the steps, [`queue`] for the choice of a builder, [`adapters::sandbox`] for
//! the place where a user's build steps run.
//!
//! A library so that its tests can run a whole image-builder in their process.

pub mod adapters;
pub mod app;
pub mod bases;
pub mod config;
pub mod deletion;
pub mod domain;
pub mod images;
pub mod log;
pub mod metrics;
pub mod paging;
pub mod pipeline;
pub mod queue;
pub mod refusal;
pub mod server;
