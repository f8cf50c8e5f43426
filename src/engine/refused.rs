//! Why the last attempt to connect came to nothing, as data: `status` says it in words until a connection is there.
//!
//! Owns one reason per resource. Invariants: whoever drops a new connection for a reason that retrying does not mend says
//! which; a handshake that succeeds forgets it, and so does the end of the resource.

use crate::engine::Engine;
use crate::engine::handshake::RefuseReason;
use crate::units::VolumeNr;
use crate::wire::state::StateResult;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The comparison of the data of a volume.
    Handshake {
        /// Which volume.
        volume: VolumeNr,
        /// Its outcome.
        reason: RefuseReason,
    },
    /// A setting must be the same on both nodes, and is not.
    Settings {
        /// Its name.
        what: &'static str,
    },
    /// A device is too small for the data in use.
    TooSmall {
        /// Which volume.
        volume: VolumeNr,
    },
    /// The peer does not have the data that applications of this node have seen.
    OtherGeneration {
        /// Which volume.
        volume: VolumeNr,
    },
    /// The state that both nodes would have together is not allowed.
    State {
        /// Which volume.
        volume: VolumeNr,
        /// Which rule.
        result: StateResult,
    },
    /// The link came to nothing before the nodes spoke of data: authentication, versions.
    Link {
        /// For people.
        reason: String,
    },
}

impl Engine {
    /// Keeps the reason.
    pub(crate) fn refuse(&mut self, refused: Refused) {
        self.conn.refused = Some(refused);
    }
}
