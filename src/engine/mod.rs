//! The decisions (pure).

pub mod al;
pub mod dirty;
pub mod lru;
