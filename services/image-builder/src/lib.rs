//! The image-builder: turns artifacts into versions of images.
//!
//! A build goes from an S3 zip over buildah and an ext4 disk to a bake on a
//! host, whose snapshot becomes a version. See [`pipeline`] for the steps,
//! [`queue`] for who does them, [`adapters::sandbox`] for where a user's build
//! steps run.
//!
//! A library so that its tests can run a whole image-builder in their process.

pub mod adapters;
pub mod app;
pub mod config;
pub mod deletion;
pub mod domain;
pub mod images;
pub mod log;
pub mod metrics;
pub mod pipeline;
pub mod queue;
pub mod server;
