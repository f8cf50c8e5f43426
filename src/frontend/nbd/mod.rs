//! The NBD server: fixed newstyle negotiation, simple and structured replies.
//!
//! * Pure: [`proto`] (numbers), [`export`] (what the node provides), [`handshake`] (negotiation), [`transmission`] (requests),
//!   [`receive`] (bytes to requests), [`in_flight`] (completions to replies), [`reply`] (replies to bytes).
//! * Drivers: `server` (listens, negotiates, hands over), `access` (who may come over TCP), `stream` (sockets), `session` (one
//!   connection inside its resource's thread).
//!
//! A connection is negotiated in the control runtime and then moves, as a socket with the bytes read so far, into the
//! resource's thread; no request ever crosses a thread.

#[cfg(feature = "drivers")]
pub mod access;
pub mod export;
pub mod handshake;
pub mod in_flight;
mod options;
pub mod proto;
pub mod receive;
pub mod reply;
#[cfg(feature = "drivers")]
pub mod server;
#[cfg(feature = "drivers")]
pub mod session;
#[cfg(feature = "drivers")]
pub mod stream;
pub mod transmission;
