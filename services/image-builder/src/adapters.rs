//! What an image-builder touches: the kernel, files, BuildKit, etcd, S3 and its neighbours.

pub mod buildkit;
pub mod catalog;
pub mod debootstrap;
pub mod groups;
pub mod layout;
pub mod network;
pub mod output;
pub mod peers;
pub mod sandbox;
pub mod unpack;
