//! The two TCP connections to the peer.
