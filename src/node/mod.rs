//! A node at run time: wires each resource's engine to its disks, its link and its clients, and answers the operator.
//!
//! * One thread a resource: `shard` (the loop), `shard_thread` (its tasks and its end), `volume` (devices), `client` (NBD
//!   requests), `timers`, `buffers` (memory), `trace` (the last events, for a post-mortem).
//! * The control side: `daemon` (all resources, the operator's commands), `exports` (what NBD clients find), `attach`
//!   (opening disks), `options` (from drbd.conf's types to the engine's), `startup` (`--up`), `helper` (programs of
//!   the section `handlers`), `supervisor` (panics).
//!
//! Takes in: the configuration, commands, clients. Invariant: nothing but a message crosses from one side to the other; no
//! lock and no hand-over between threads lies on the way of a request.

mod attach;
mod buffers;
mod client;
mod shard;
mod shard_thread;
mod supervisor;
#[cfg(test)]
mod tests;
mod timers;
mod trace;
mod view;
mod volume;

pub mod daemon;
pub mod exports;
pub mod helper;
pub mod keeper;
pub mod options;
pub mod run;
pub mod startup;

pub use attach::{AttachSpec, MetaPlace};
pub use shard_thread::{CommandFailure, HelperCaller, HelperEnd, Shard, ShardEnd, ShardOptions};
pub use supervisor::install_panic_hook;
pub use view::{View, VolumeView};
