//! The NBD server: fixed newstyle negotiation, simple and structured replies.
//!
//! * Pure: [`proto`] (numbers), [`export`] (what the node provides), [`handshake`] (negotiation), [`transmission`] (requests),
//!   [`receive`] (bytes to requests), [`reply`] (replies to bytes).
//! * Drivers: [`server`] (listens, negotiates, hands over), [`session`] (one connection inside its resource's thread).
//!
//! A connection is negotiated in the control runtime and then moves, as a socket with the bytes read so far, into the
//! resource's thread; no request ever crosses a thread.

pub mod export;
