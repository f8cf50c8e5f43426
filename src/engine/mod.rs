//! The decisions (pure).

pub mod fence;
pub mod gi;
pub mod handler;
pub mod handshake;
pub mod split_brain;
pub mod state;
