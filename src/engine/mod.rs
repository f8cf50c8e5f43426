//! The decisions (pure).

pub mod gi;
pub mod handler;
pub mod state;
