//! Numbers with a unit. A sector is 512 bytes, always; a bitmap bit covers 4 KiB; an activity-log (AL) extent 4 MiB.
//!
//! Types keep sectors, bytes, bits and extents apart; conversions say which way they round.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{AL_EXTENT_SECTORS, BM_BLOCK_SECTORS, SECTOR_SIZE};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit!(
    /// A position on a device, in sectors of 512 bytes.
    Sector(u64)
);
unit!(
    /// A length or device size, in sectors of 512 bytes.
    Sectors(u64)
);
unit!(
    /// Number of a bitmap bit: bit `n` covers the 4 KiB at sector `8 * n`. Set means out of sync.
    BmBit(u64)
);
unit!(
    /// Number of an activity-log extent: extent `n` covers the 4 MiB at sector `8192 * n`.
    AlExtent(u32)
);
unit!(
    /// Number of a slot of the activity log, from 0.
    AlSlot(u16)
);
unit!(
    /// DRBD's volume number inside a resource, 0..=65535.
    VolumeNr(u16)
);
unit!(
    /// DRBD's device minor number.
    Minor(u32)
);
unit!(
    /// The opaque 64-bit identifier of a request on the wire. All ones means "resync or verify".
    BlockId(u64)
);
unit!(
    /// Packet sequence number of one volume (dual primary); wraps around.
    SeqNr(u32)
);

impl BlockId {
    /// The identifier of resync and verify packets ("ID_SYNCER").
    pub const SYNCER: Self = Self(u64::MAX);
}

impl Sectors {
    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 * SECTOR_SIZE
    }

    /// Whole sectors in `bytes`; a partial sector is dropped.
    #[must_use]
    pub const fn from_bytes_floor(bytes: u64) -> Self {
        Self(bytes / SECTOR_SIZE)
    }

    /// Number of bitmap bits for a device of this size (the last one may cover less than 4 KiB).
    #[must_use]
    pub const fn bm_bits(self) -> u64 {
        self.0.div_ceil(BM_BLOCK_SECTORS)
    }
}

impl Sector {
    /// Offset in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 * SECTOR_SIZE
    }

    /// The bitmap bit that covers this sector.
    #[must_use]
    pub const fn bm_bit(self) -> BmBit {
        BmBit(self.0 / BM_BLOCK_SECTORS)
    }
}

impl BmBit {
    /// First sector that this bit covers.
    #[must_use]
    pub const fn sector(self) -> Sector {
        Sector(self.0 * BM_BLOCK_SECTORS)
    }
}

/// A non-overflowing run of sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorRange {
    /// First sector.
    pub start: Sector,
    /// Number of sectors; may be 0.
    pub count: Sectors,
}

impl SectorRange {
    /// A range of `count` sectors from `start`; `None` when its end overflows 64 bits of sectors.
    #[must_use]
    pub const fn checked(start: Sector, count: Sectors) -> Option<Self> {
        match start.0.checked_add(count.0) {
            Some(_) => Some(Self { start, count }),
            None => None,
        }
    }

    /// A range from a sector and a length in bytes; `None` when the length is no multiple of 512 or the end overflows.
    #[must_use]
    pub const fn from_bytes(start: Sector, bytes: u64) -> Option<Self> {
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return None;
        }
        Self::checked(start, Sectors(bytes / SECTOR_SIZE))
    }

    /// First sector behind the range.
    #[must_use]
    pub const fn end(self) -> Sector {
        Sector(self.start.0 + self.count.0)
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count.bytes()
    }

    /// Whether the range holds no sector.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// Whether both ranges share at least one sector.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start.0 < other.end().0 && other.start.0 < self.end().0
    }

    /// Whether `other` lies wholly inside this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end().0 <= self.end().0
    }

    /// Half-open range of the bitmap bits that the range touches (rule for setting bits). Empty for an empty range.
    #[must_use]
    pub const fn bits_touched(self) -> std::ops::Range<u64> {
        if self.is_empty() {
            return 0..0;
        }
        self.start.0 / BM_BLOCK_SECTORS..self.end().0.div_ceil(BM_BLOCK_SECTORS)
    }

    /// Half-open range of the bits whose whole 4 KiB lies inside the range (rule for clearing bits); the last, partial
    /// block of a device of `device` sectors counts as whole if the range reaches the device end.
    #[must_use]
    pub const fn bits_covered(self, device: Sectors) -> std::ops::Range<u64> {
        let first = self.start.0.div_ceil(BM_BLOCK_SECTORS);
        let last = if self.end().0 >= device.0 {
            device.0.div_ceil(BM_BLOCK_SECTORS)
        } else {
            self.end().0 / BM_BLOCK_SECTORS
        };
        if first >= last { 0..0 } else { first..last }
    }

    /// Inclusive first and last AL extent number that the range touches; `None` for an empty range or one beyond 2^32 extents.
    #[must_use]
    pub fn al_extents(self) -> Option<(AlExtent, AlExtent)> {
        if self.is_empty() {
            return None;
        }
        let first = u32::try_from(self.start.0 / AL_EXTENT_SECTORS).ok()?;
        let last = u32::try_from((self.end().0 - 1) / AL_EXTENT_SECTORS).ok()?;
        Some((AlExtent(first), AlExtent(last)))
    }
}

/// A generation identifier ("UUID"). Bit 0 says that the node was Primary with this generation and is masked out of
/// comparisons; 0 is unset, 4 is "just created".
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct GenId(pub u64);

impl GenId {
    /// Not set.
    pub const UNSET: Self = Self(0);
    /// Fresh metadata, no data generation yet.
    pub const JUST_CREATED: Self = Self(4);
    /// What the start of a resync adds to the bitmap identifier.
    pub const SYNC_STEP: u64 = 0x0001_0000_0000_0000;

    /// The identifier without its Primary bit, for comparisons.
    #[must_use]
    pub const fn masked(self) -> u64 {
        self.0 & !1
    }

    /// Equality without the Primary bit.
    #[must_use]
    pub const fn same(self, other: Self) -> bool {
        self.masked() == other.masked()
    }

    /// Whether the node was Primary with this generation.
    #[must_use]
    pub const fn primary_bit(self) -> bool {
        self.0 & 1 == 1
    }

    /// The same identifier with the Primary bit set or cleared.
    #[must_use]
    pub const fn with_primary_bit(self, primary: bool) -> Self {
        Self(if primary { self.0 | 1 } else { self.0 & !1 })
    }
}

impl fmt::Debug for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Display for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// A point on the monotonic clock that the driver (or the simulator) owns; nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `d` later; saturates.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time passed since `earlier`; zero if that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, count: u64) -> SectorRange {
        SectorRange { start: Sector(start), count: Sectors(count) }
    }

    #[test]
    fn setting_touches_partial_blocks_and_clearing_does_not() {
        assert_eq!(range(7, 2).bits_touched(), 0..2);
        assert_eq!(range(7, 2).bits_covered(Sectors(1000)), 0..0);
        assert_eq!(range(7, 10).bits_covered(Sectors(1000)), 1..2);
        assert_eq!(range(0, 0).bits_touched(), 0..0);
    }

    #[test]
    fn the_last_partial_block_is_whole_at_the_device_end() {
        assert_eq!(range(8, 5).bits_covered(Sectors(13)), 1..2);
        assert_eq!(range(8, 4).bits_covered(Sectors(13)), 0..0);
    }

    #[test]
    fn a_range_that_overflows_is_refused() {
        assert_eq!(SectorRange::checked(Sector(u64::MAX), Sectors(1)), None);
        assert_eq!(SectorRange::from_bytes(Sector(0), 513), None);
    }

    #[test]
    fn extents_are_inclusive() {
        assert_eq!(range(8191, 2).al_extents(), Some((AlExtent(0), AlExtent(1))));
        assert_eq!(range(0, 0).al_extents(), None);
    }
}
