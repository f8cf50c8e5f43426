//! Metadata of disks that are not attached, without the daemon: what drbdmeta does, in its words and with its exit codes.
//!
//! Invariant: a device that anybody uses is never written to, whatever `--force` says. Source: config-and-commands.md
//! 13, metadata.md 10 and 11.

pub mod create;
pub mod device;
pub mod dump;
pub mod edit;
pub mod gi;
pub mod resize;
pub mod undo;
