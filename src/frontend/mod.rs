//! What applications see: the NBD server, and what every frontend shares.
//!
//! [`request`] is the seam between a frontend and the resource behind it: typed requests, completions, buffers. The frontends
//! know neither the disks nor the peer link.

pub mod nbd;
pub mod request;
