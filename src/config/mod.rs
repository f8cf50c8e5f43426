//! The drbd.conf language (pure).
