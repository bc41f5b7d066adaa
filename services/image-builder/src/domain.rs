//! What an image-builder decides, without touching anything: std and our pure
//! libs only (and wire messages, which are also what its records hold).

pub mod app;
pub mod archive;
pub mod bake;
pub mod base_images;
pub mod build_error;
pub mod configuration;
pub mod dockerfile;
pub mod lifecycle;
pub mod object_keys;
pub mod progress;
pub mod reference;
pub mod transcript;
