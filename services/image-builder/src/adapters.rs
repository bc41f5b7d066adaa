//! What an image-builder touches: the kernel, files, buildah, etcd, S3 and its
//! neighbours.

pub mod base;
pub mod buildah;
pub mod catalog;
pub mod groups;
pub mod hosts;
pub mod layout;
pub mod network;
pub mod output;
pub mod sandbox;
pub mod unpack;
