//! `P_UUIDS`: a node's generation identifiers (wire.md 4.8).

use crate::units::GenId;

use super::flags::flags;

flags!(
    /// Flags of `P_UUIDS`.
    UuidFlags(u64) {
        /// `discard-my-data` is pending on the sender.
        DISCARD_MY_DATA = 1;
        /// The sender was Primary when it crashed.
        CRASHED_PRIMARY = 2;
        /// The sender's disk is Negotiating and really Inconsistent (else Consistent).
        INCONSISTENT = 4;
        /// Skip the initial sync: both are to be UpToDate.
        SKIP_INITIAL_SYNC = 8;
    }
);

/// `P_UUIDS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uuids {
    /// Current identifier.
    pub current: GenId,
    /// Bitmap identifier, unset if none.
    pub bitmap: GenId,
    /// Younger and older history identifier.
    pub history: [GenId; 2],
    /// Number of bits set in the sender's bitmap.
    pub bits_set: u64,
    /// Flags; unknown bits are kept.
    pub flags: UuidFlags,
}
