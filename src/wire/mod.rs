//! DRBD's network protocol, versions 86 to 101 (pure).

pub mod state;
