//! The decisions (pure).

pub mod al;
pub mod dirty;
pub mod extent_lock;
pub mod fence;
pub mod gi;
pub mod handler;
pub mod handshake;
pub mod lru;
pub mod progress;
pub mod rate;
pub mod split_brain;
pub mod state;
