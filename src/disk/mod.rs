//! Backing devices.
