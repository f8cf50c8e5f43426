//! The decisions (pure).
