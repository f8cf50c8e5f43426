//! Zeroing and discarding: which system calls it takes until a range reads as zeroes, or is given back.
//!
//! Owns the way that zeroing goes at present and which part of the range may be discarded. Invariant: a block device is
//! asked to discard whole granules only, and what lies beside them is zeroed; what a device does with a part of a granule is
//! its own affair, and two replicas would differ. A regular file punches holes, which is exact.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;
use smallvec::SmallVec;

use super::op::Step;
use super::open::{Abilities, BackingDevice};
use super::pool::{BUF_LEN_MAX, Pool, PoolBuf};
use super::probe::DiscardLimits;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO_RANGE: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Zeroes to write, aligned for every device.
static ZEROES: LazyLock<io::Result<PoolBuf>> = LazyLock::new(|| {
    // Fresh pool memory is all zeroes, and nothing ever writes to this block.
    Pool::new(BUF_LEN_MAX)?.try_alloc(BUF_LEN_MAX).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
});

/// How zeroes get onto the device, best way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Punch,
    ZeroRange,
    Transfer,
}

/// The zeroing or discarding of one range.
#[derive(Debug)]
pub(super) struct Erase {
    way: Way,
    /// What is discarded, bytes of the device; the rest is zeroed.
    discard: Range<u64>,
    /// The range is to be discarded as far as that goes.
    pub(super) is_discard: bool,
}

impl Erase {
    /// All of it is zeroed.
    pub(super) const fn zero(may_unmap: bool) -> Self {
        let way = if may_unmap { Way::Punch } else { Way::ZeroRange };
        Self { way, discard: 0..0, is_discard: false }
    }

    /// `range` is discarded: a file's all of it, a block device's whole granules. `block`: the device's logical block
    /// size, for granules that its calls could not name.
    pub(super) fn discard(block_device: bool, block: u32, limits: &DiscardLimits, range: Range<u64>) -> Self {
        let block = u64::from(block.max(1));
        let inner = if block_device { whole_granules(limits, &range) } else { range };
        let named = inner.start.is_multiple_of(block) && inner.end.is_multiple_of(block);
        let discard = if named { inner } else { 0..0 };
        // Beside the granules there is nothing to give back.
        Self { way: Way::ZeroRange, discard, is_discard: true }
    }

    /// Whether there is a step that only a thread can do.
    pub(super) const fn needs_thread(&self, block_device: bool) -> bool {
        block_device && self.discard.start < self.discard.end
    }

    /// The next call when everything before `at` is done and the range ends at `end`.
    pub(super) fn step<'a>(&mut self, dev: &BackingDevice, at: u64, end: u64) -> io::Result<Step<'a>> {
        let (offset, len) = (at, self.stop(at, end) - at);
        if self.discard.contains(&at) {
            let block_device = dev.geometry_at_open().block_device;
            let punch = Step::Fallocate { mode: PUNCH, offset, len };
            return Ok(if block_device { Step::BlkDiscard { offset, len } } else { punch });
        }
        let abilities = dev.abilities();
        if self.way == Way::Punch && abilities.no_punch.load(Ordering::Relaxed) {
            self.way = Way::ZeroRange;
        }
        if self.way == Way::ZeroRange && abilities.no_zero_range.load(Ordering::Relaxed) {
            self.way = Way::Transfer;
        }
        match self.way {
            Way::Punch => Ok(Step::Fallocate { mode: PUNCH, offset, len }),
            Way::ZeroRange => Ok(Step::Fallocate { mode: ZERO_RANGE, offset, len }),
            Way::Transfer => {
                let zeroes = ZEROES.as_ref().map_err(|error| io::Error::from(error.kind()))?;
                let take = usize::try_from(len).unwrap_or(usize::MAX).min(zeroes.len());
                let from = SmallVec::from_iter([IoSlice::new(&zeroes[..take])]);
                Ok(Step::Write { from, offset, dsync: false })
            }
        }
    }

    /// How far it is done after the call at `at`, which transferred `moved` bytes if it transferred any.
    pub(super) fn reached(&self, at: u64, end: u64, moved: u64) -> u64 {
        let stop = self.stop(at, end);
        if self.way == Way::Transfer && !self.discard.contains(&at) { stop.min(at + moved) } else { stop }
    }

    /// The device does not know the call at `at`: whether there is another way. The device remembers.
    pub(super) fn refused(&mut self, abilities: &Abilities, at: u64) -> bool {
        if self.discard.contains(&at) {
            return false;
        }
        let (refused, other) = match self.way {
            Way::Punch => (&abilities.no_punch, Way::ZeroRange),
            Way::ZeroRange => (&abilities.no_zero_range, Way::Transfer),
            Way::Transfer => return false,
        };
        refused.store(true, Ordering::Relaxed);
        self.way = other;
        true
    }

    /// Where the piece that begins at `at` ends.
    fn stop(&self, at: u64, end: u64) -> u64 {
        if at < self.discard.start {
            self.discard.start.min(end)
        } else if at < self.discard.end {
            self.discard.end.min(end)
        } else {
            end
        }
    }
}

/// The whole granules inside `range`.
fn whole_granules(limits: &DiscardLimits, range: &Range<u64>) -> Range<u64> {
    let unit = limits.granularity_bytes.max(1);
    let shift = limits.alignment_bytes % unit;
    let below = |at: u64| at.checked_sub(shift).map(|n| n - n % unit + shift);
    let first = match below(range.start) {
        Some(border) if border == range.start => border,
        Some(border) => border.saturating_add(unit),
        None => shift,
    };
    let last = below(range.end).unwrap_or(0);
    if first < last { first..last } else { 0..0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(granularity_bytes: u64, alignment_bytes: u64) -> DiscardLimits {
        DiscardLimits { granularity_bytes, alignment_bytes, max_bytes: None, reads_zeroes: false }
    }

    #[test]
    fn only_whole_granules_are_discarded() {
        let whole = |granularity, alignment, range: Range<u64>| whole_granules(&limits(granularity, alignment), &range);
        assert_eq!(whole(4096, 0, 0..8192), 0..8192);
        assert_eq!(whole(4096, 0, 512..12288), 4096..12288);
        assert_eq!(whole(4096, 0, 512..12800), 4096..12288);
        assert_eq!(whole(4096, 512, 0..12800), 512..12800);
        assert_eq!(whole(4096, 512, 1024..12800), 4608..12800);
        assert!(whole(4096, 0, 512..8191).is_empty());
        assert!(whole(1 << 20, 0, 4096..1 << 20).is_empty());
        assert!(whole(0, 0, 0..0).is_empty());
        // An alignment beyond the unit is one of its remainder.
        assert_eq!(whole(4096, 8192 + 512, 0..12800), 512..12800);
    }

    #[test]
    fn granules_that_are_no_blocks_are_zeroed() {
        let erase = |block| Erase::discard(true, block, &limits(8192, 512), 0..1 << 20);
        assert!(erase(512).needs_thread(true));
        assert!(!erase(4096).needs_thread(true));
        let file = Erase::discard(false, 512, &limits(4096, 0), 512..1536);
        assert_eq!(file.discard, 512..1536);
        assert!(!file.needs_thread(false));
    }

    /// The pieces of an operation: whether each is a discard, and its bytes.
    fn pieces(erase: &Erase, range: &Range<u64>) -> Vec<(bool, Range<u64>)> {
        let mut at = range.start;
        let mut pieces = Vec::new();
        while at < range.end {
            let stop = erase.stop(at, range.end);
            pieces.push((erase.discard.contains(&at), at..stop));
            assert!(stop > at, "{pieces:?}");
            at = stop;
        }
        pieces
    }

    proptest! {
        #[test]
        fn every_byte_is_discarded_or_zeroed_once(
            unit in prop_oneof![Just(512u64), Just(4096), Just(3 * 512), Just(65536)],
            shift in 0u64..130,
            start in 0u64..400,
            len in 1u64..600,
        ) {
            let limits = limits(unit, shift * 512);
            let range = start * 512..(start + len) * 512;
            let erase = Erase::discard(true, 512, &limits, range.clone());
            let pieces = pieces(&erase, &range);
            let mut at = range.start;
            for (discarded, piece) in &pieces {
                prop_assert_eq!(piece.start, at);
                at = piece.end;
                let granules = (piece.start % unit == shift * 512 % unit) && (piece.end % unit == shift * 512 % unit);
                prop_assert!(!discarded || granules, "{:?}", piece);
                // Nothing that could be given back is zeroed.
                prop_assert!(*discarded || whole_granules(&limits, piece).is_empty(), "{:?}", piece);
            }
            prop_assert_eq!(at, range.end);
            prop_assert!(pieces.len() <= 3);
        }
    }
}
