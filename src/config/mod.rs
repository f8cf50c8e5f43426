//! The drbd.conf language (pure).

pub mod model;
pub mod options;
pub mod spec;
pub mod values;
