//! The language by example.
