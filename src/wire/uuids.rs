//! `P_UUIDS`: a node's generation identifiers (wire.md 4.8).

use bytes::{BufMut, BytesMut};

use crate::units::GenId;

use super::cursor::Reader;
use super::error::Fault;
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

impl Uuids {
    /// Length on the wire in bytes.
    pub const LEN: usize = 48;

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            current: GenId(r.u64()?),
            bitmap: GenId(r.u64()?),
            history: [GenId(r.u64()?), GenId(r.u64()?)],
            bits_set: r.u64()?,
            flags: UuidFlags(r.u64()?),
        })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let [h0, h1] = self.history;
        for id in [self.current, self.bitmap, h0, h1] {
            out.put_u64(id.0);
        }
        out.put_u64(self.bits_set);
        out.put_u64(self.flags.0);
    }
}
