//! Ranges as whole blocks, and which blocks a write changes. Pure.

use crate::limits::BM_BLOCK_BYTES;
use crate::units::{BmBit, SectorRange, Sectors};

/// A range widened to whole blocks, as far as the device goes.
pub(super) fn whole_blocks(range: SectorRange, size: Sectors) -> SectorRange {
    let bits = range.bits_touched();
    of_blocks(&bits, size)
}

pub(super) fn of_blocks(bits: &std::ops::Range<u64>, size: Sectors) -> SectorRange {
    let (start, end) = (BmBit(bits.start).sector(), (bits.end * 8).min(size.0));
    SectorRange { start, count: Sectors(end.saturating_sub(start.0)) }
}

/// The blocks of `old` that a write changes. `new` is its payload (`None`: zeroes) from `at`, both in bytes of the device.
pub(super) fn changed_blocks(first: u64, old: &[u8], at: u64, len: u64, new: Option<&[u8]>) -> Vec<u64> {
    let differs = |n: usize, block: &[u8]| {
        let block_at = (first + n as u64) * BM_BLOCK_BYTES;
        let (from, to) = (at.max(block_at), (at + len).min(block_at + block.len() as u64));
        if from >= to {
            return false;
        }
        let inside = |byte: u64, base: u64| usize::try_from(byte - base).unwrap_or(usize::MAX);
        let before = &block[inside(from, block_at)..inside(to, block_at)];
        match new {
            Some(new) => new.get(inside(from, at)..inside(to, at)) != Some(before),
            None => before.iter().any(|byte| *byte != 0),
        }
    };
    let step = usize::try_from(BM_BLOCK_BYTES).unwrap_or(4096);
    old.chunks(step).enumerate().filter(|(n, block)| differs(*n, block)).map(|(n, _)| first + n as u64).collect()
}

/// Block numbers in order as runs.
pub(super) fn runs_of(blocks: &[u64]) -> Vec<std::ops::Range<u64>> {
    let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.end == *block => run.end += 1,
            _ => runs.push(*block..*block + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_a_write_changes_count() {
        let mut old = vec![1u8; 3 * 4096];
        old[4096..8192].fill(0);
        // Sectors 7 to 16: the end of block 10, all of block 11, the beginning of block 12.
        let at = 10 * 4096 + 7 * 512;
        assert_eq!(changed_blocks(10, &old, at, 10 * 512, None), [10, 12]);
        assert_eq!(changed_blocks(10, &old, at, 10 * 512, Some(&vec![1; 5120])), [11]);
        let mut new = old[7 * 512..17 * 512].to_vec();
        assert_eq!(changed_blocks(10, &old, at, 10 * 512, Some(&new)), [0u64; 0]);
        new[5119] = 7;
        assert_eq!(changed_blocks(10, &old, at, 10 * 512, Some(&new)), [12]);
        assert_eq!(runs_of(&[1, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
    }
}
