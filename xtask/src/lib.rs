//! Developer tooling of udrbd, shared between `cargo xtask` and the tests.
//!
//! * [`lab`]: boots real kernels to test against.

pub mod lab;
