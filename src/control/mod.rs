//! The admin protocol: what `drbdctl` and the daemon say to each other over the control socket.
//!
//! * [`proto`]: requests, replies and their lines; [`handlers`]: a resource's helper programs; [`error`]: DRBD's numbers,
//!   texts and exit codes; [`status`]: the model of what there is to see; [`problem`]: why two nodes do not connect, in
//!   words; [`split_brain`]: what is remembered of split brains. Pure, all of them serde types.
//! * [`render`]: that model as the texts of `drbdsetup status`, `/proc/drbd` and `events2`. Pure.
//! * `server` (driver): the unix socket of the daemon; hands requests to a `Handler`. `client` (driver): the other end,
//!   blocking.
//!
//! Invariants: one JSON object a line, bounded in length; a line carries the protocol version; a number, once it has a
//! meaning, keeps it. Source: config-and-commands.md 9 to 17, behaviour.md 13 and 14.

#[cfg(feature = "drivers")]
pub mod client;
pub mod error;
pub mod handlers;
pub mod problem;
pub mod proto;
pub mod render;
#[cfg(feature = "drivers")]
pub mod server;
pub mod split_brain;
pub mod status;
#[cfg(all(test, feature = "drivers"))]
mod tests;

pub use error::{ErrorKind, ErrorReply};
pub use proto::{Reply, Request};
