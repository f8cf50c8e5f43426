//! What applications see: the NBD server.
