//! Backing devices.

pub mod meta_file;
