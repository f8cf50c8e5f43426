//! Protocol versions, feature bits and their negotiation: `P_CONNECTION_FEATURES` (wire.md 4.2, 12).

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::limits::{
    DISCARD_BYTES_MAX, DISCARD_BYTES_MAX_WSAME, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, REQUEST_BYTES_MAX_V86,
    REQUEST_BYTES_MAX_V95, REQUEST_BYTES_MAX_V100,
};

use super::cursor::Reader;
use super::error::Fault;
use super::flags::flags;

/// An agreed protocol version, 86 to 101.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u32);

impl Version {
    /// The oldest version of this node.
    pub const MIN: Self = Self(PROTOCOL_VERSION_MIN);
    /// The newest version of this node.
    pub const MAX: Self = Self(PROTOCOL_VERSION_MAX);

    /// The version with this number, if this node speaks it.
    #[must_use]
    pub const fn new(nr: u32) -> Option<Self> {
        if nr >= PROTOCOL_VERSION_MIN && nr <= PROTOCOL_VERSION_MAX { Some(Self(nr)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn nr(self) -> u32 {
        self.0
    }

    /// All versions of this node.
    pub fn all() -> impl Iterator<Item = Self> {
        (PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION_MAX).map(Self)
    }

    /// Largest read or write request in bytes.
    #[must_use]
    pub const fn request_bytes_max(self) -> u32 {
        match self.0 {
            100.. => REQUEST_BYTES_MAX_V100,
            95..=99 => REQUEST_BYTES_MAX_V95,
            _ => REQUEST_BYTES_MAX_V86,
        }
    }

    /// From here on flags of each write say which acknowledgement is due; below, the receiver's own protocol does.
    #[must_use]
    pub const fn has_ack_flags(self) -> bool {
        self.0 >= 100
    }

    /// From here on headers name a volume; below, the only volume is 0.
    #[must_use]
    pub const fn has_volumes(self) -> bool {
        self.0 >= 100
    }

    /// Whether a run of online verify may have a stop sector, and ends with the initiator's `P_STATE`.
    #[must_use]
    pub const fn has_verify_stop(self) -> bool {
        (self.0 >= 97 && self.0 < 100) || self.0 >= 101
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

flags!(
    /// Feature bits. The agreed set is the AND of what both nodes announce, independent of the version.
    FeatureFlags(u32) {
        /// `P_TRIM` is allowed.
        TRIM = 1;
        /// `P_RS_THIN_REQ` and `P_RS_DEALLOCATED` are allowed.
        THIN_RESYNC = 2;
        /// Queue limits in `P_SIZES`, discards up to 128 MiB, `P_WSAME`.
        WSAME = 4;
        /// `P_ZEROES` is allowed.
        WZEROES = 8;
    }
);

impl FeatureFlags {
    /// Our own bit, not one of DRBD's: this node's client flush waits for the barrier acknowledgement, so the peer may start
    /// writes of the next epoch before the one before is flushed. Announced apart from the others and never part of an
    /// agreed set; no kernel announces it.
    pub const RELAXED_EPOCHS: Self = Self(0x4000_0000);

    /// Largest discard or write-zeroes in bytes under this agreed set.
    #[must_use]
    pub const fn discard_bytes_max(self) -> u32 {
        if self.has(Self::WSAME) { DISCARD_BYTES_MAX_WSAME } else { DISCARD_BYTES_MAX }
    }
}

const _: () = assert!(!FeatureFlags::KNOWN.has_any(FeatureFlags::RELAXED_EPOCHS), "never agreed with a kernel");

/// `P_CONNECTION_FEATURES`: what one node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Oldest version of the sender.
    pub protocol_min: u32,
    /// Newest version of the sender; 0 means the same as `protocol_min`.
    pub protocol_max: u32,
    /// Features of the sender.
    pub flags: FeatureFlags,
}

impl Features {
    /// What this node offers by default: 86 to 101 with all features.
    #[must_use]
    pub const fn own() -> Self {
        Self { protocol_min: PROTOCOL_VERSION_MIN, protocol_max: PROTOCOL_VERSION_MAX, flags: FeatureFlags::KNOWN }
    }

    /// Length on the wire in bytes.
    pub const LEN: usize = 72;

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        // Behind these: pad and reserved fields of newer peers.
        Ok(Self { protocol_min: r.u32()?, flags: FeatureFlags(r.u32()?), protocol_max: r.u32()? })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u32(self.protocol_min);
        out.put_u32(self.flags.0);
        out.put_u32(self.protocol_max);
        out.put_bytes(0, Self::LEN - 12);
    }
}
