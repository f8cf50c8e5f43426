//! The numbers of the activity log: which extents a request touches, how many slots there are, which block of the ring on
//! disk a transaction goes to. Source: metadata.md 4.1 to 4.3.

use crate::engine::lru::FREE_LABEL;
use crate::units::{AlExtent, SectorRange};

/// Fewest slots ("al-extents"). DRBD 8.4.
pub const AL_EXTENTS_MIN: u16 = 67;
/// Most slots. DRBD 8.4.
pub const AL_EXTENTS_MAX: u16 = 65534;
/// Slot updates in one transaction. v08 metadata.
pub const AL_UPDATES_MAX: usize = 64;
/// Context entries in one transaction. v08 metadata.
pub const AL_CONTEXT_ENTRIES: u16 = 919;
/// Content of a context entry without an extent. v08 metadata.
pub const AL_FREE: u32 = FREE_LABEL;

const _: () = assert!(AL_EXTENTS_MIN as usize > AL_UPDATES_MAX, "the largest request must fit into the smallest log");

/// The AL extents that one request touches: at least 1, at most 64 (all of them go into one transaction).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentSpan {
    first: u32,
    last: u32,
}

impl ExtentSpan {
    /// The span of a range of sectors. `None` for an empty range (touches nothing) and for one of more than 64 extents
    /// or beyond the largest extent number (the caller splits or refuses such requests before).
    #[must_use]
    pub fn of(range: SectorRange) -> Option<Self> {
        let (first, last) = range.al_extents()?;
        Self::new(first, last)
    }

    /// The span from `first` to `last`, both included.
    #[must_use]
    pub fn new(first: AlExtent, last: AlExtent) -> Option<Self> {
        let count = usize::try_from(last.0.checked_sub(first.0)?).ok()?.checked_add(1)?;
        (count <= AL_UPDATES_MAX && last.0 != AL_FREE).then_some(Self { first: first.0, last: last.0 })
    }

    /// First extent.
    #[must_use]
    pub const fn first(self) -> AlExtent {
        AlExtent(self.first)
    }

    /// Last extent.
    #[must_use]
    pub const fn last(self) -> AlExtent {
        AlExtent(self.last)
    }

    /// Every extent, ascending.
    pub fn iter(self) -> impl Iterator<Item = AlExtent> {
        (self.first..=self.last).map(AlExtent)
    }
}

/// Size of the log in memory and shape of its ring on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlLayout {
    slots: u16,
    blocks: u32,
}

impl AlLayout {
    /// A layout for the `al-extents` setting, clamped to what a ring of so many 4 KiB blocks can rebuild.
    /// `None` when the ring is no valid one (fewer than 8 or more than 4194304 blocks).
    #[must_use]
    pub fn new(al_extents: u32, blocks: u32) -> Option<Self> {
        if !(8..=4_194_304).contains(&blocks) {
            return None;
        }
        let max = if blocks > 72 {
            AL_EXTENTS_MAX
        } else {
            u16::try_from((blocks - 1) * u32::from(AL_CONTEXT_ENTRIES)).unwrap_or(AL_EXTENTS_MAX).min(AL_EXTENTS_MAX)
        };
        let slots = u16::try_from(al_extents).unwrap_or(u16::MAX).clamp(AL_EXTENTS_MIN, max);
        Some(Self { slots, blocks })
    }

    /// The same slots in a ring of another size, which must have room for them.
    #[must_use]
    pub const fn with_blocks(self, blocks: u32) -> Self {
        Self { slots: self.slots, blocks }
    }

    /// Slots in effect.
    #[must_use]
    pub const fn slots(self) -> u16 {
        self.slots
    }

    /// 4 KiB blocks of the ring.
    #[must_use]
    pub const fn blocks(self) -> u32 {
        self.blocks
    }
}
