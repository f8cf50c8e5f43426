//! Developer tooling of udrbd, shared between `cargo xtask` and the tests.
//!
//! * [`lab`]: boots real kernels to test against.
//! * [`tidy`]: what a compiler does not check: which room may know which, file lengths, words, reasons for dependencies.
//! * [`harness`]: a test binary's `main` for cases that share something expensive.

pub mod harness;
pub mod lab;
pub mod tidy;
