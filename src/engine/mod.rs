//! The decisions (pure).

pub mod al;
pub mod dirty;
pub mod extent_lock;
pub mod lru;
pub mod progress;
pub mod rate;
