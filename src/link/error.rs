//! Why a link could not be established, with the decision that goes with it: try again, or stay StandAlone.
//!
//! Source: wire.md 1.2, 4.2, 4.3 (what the kernel does).

use std::io;
use std::net::SocketAddr;

use crate::wire::error::{Reaction, WireError};

/// DRBD's `ERR_LOCAL_ADDR`: the local address is in use.
pub const ERR_LOCAL_ADDR: u16 = 102;

/// An attempt to reach the peer ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Another socket listens on the local address.
    #[error("local address {addr} is in use")]
    AddressInUse {
        /// The configured local address.
        addr: SocketAddr,
    },
    /// The local address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The configured local address.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A socket failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was going on.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The peer closed a socket.
    #[error("{doing}: the peer closed the connection")]
    Closed {
        /// What was going on.
        doing: &'static str,
    },
    /// The peer did not answer in time.
    #[error("{doing}: no answer in time")]
    TimedOut {
        /// What was going on.
        doing: &'static str,
    },
    /// The peer sent something illegal, offered no common version, or failed to authenticate.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

impl LinkError {
    /// Whether trying again is pointless: the node stays StandAlone.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::AddressInUse { .. } => true,
            Self::Listen { source, .. } => {
                matches!(source.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::PermissionDenied)
            }
            Self::Wire(e) => e.reaction() == Reaction::StandAlone,
            Self::Io { .. } | Self::Closed { .. } | Self::TimedOut { .. } | Self::Random(_) => false,
        }
    }

    /// DRBD's error number, where it has one.
    #[must_use]
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::AddressInUse { .. } => Some(ERR_LOCAL_ADDR),
            _ => None,
        }
    }

    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed { doing },
            _ => Self::Io { doing, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_retry_cannot_mend_is_fatal() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7788));
        let listen = |kind: io::ErrorKind| LinkError::Listen { addr, source: kind.into() };
        assert!(LinkError::AddressInUse { addr }.is_fatal());
        assert!(listen(io::ErrorKind::AddrNotAvailable).is_fatal());
        assert!(!listen(io::ErrorKind::OutOfMemory).is_fatal());
        assert!(!LinkError::io("features")(io::ErrorKind::ConnectionReset.into()).is_fatal());
        assert_eq!(LinkError::AddressInUse { addr }.code(), Some(102));
        assert_eq!(LinkError::TimedOut { doing: "features" }.code(), None);
    }

    #[test]
    fn the_end_of_a_stream_reads_as_such() {
        let e = LinkError::io("features")(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(e.to_string(), "features: the peer closed the connection");
    }
}
