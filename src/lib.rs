//! udrbd: a userspace DRBD. A pure engine that decides, surrounded by thin drivers that do, between two formats that
//! the rest of the world already speaks: DRBD's wire protocol and DRBD's disk metadata.
//!
//! The rooms, in dependency order (a room may use those before it, never those after it):
//!
//! * [`units`], [`limits`]: numbers with a unit; every bound and default.
//! * [`wire`]: the network protocol 86-101. [`meta`]: the v08 metadata. [`config`]: the drbd.conf language. All pure.
//! * [`undo`]: undo files of resolved split brains, pure but for its driver for files.
//! * [`engine`]: events in, decisions, actions out. Pure: no I/O, clock, thread or randomness of its own.
//! * [`control`]: the admin protocol's types (pure) and its server.
//! * [`disk`], [`link`], [`frontend`]: the drivers; they do not know each other.
//! * [`node`]: wires one resource's engine to its drivers.
//! * `sim` (feature `sim`): plays disks, network, clients, operators and crashes around two engines, from one seed.

pub mod config;
pub mod control;
#[cfg(feature = "drivers")]
pub mod disk;
pub mod engine;
pub mod frontend;
pub mod limits;
#[cfg(feature = "drivers")]
pub mod link;
pub mod meta;
#[cfg(feature = "drivers")]
pub mod node;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod undo;
pub mod units;
pub mod wire;
