//! The quick-sync bitmap: one bit per 4 KiB of device, set means out of sync; on disk a little-endian bit stream in
//! pages of 4096 bytes.
//!
//! Takes in and gives out pages; keeps words. Invariants: bits at or behind the device's end are never set in memory,
//! ignored when read and written as zero, whatever the kernel left there. Spec: metadata.md 6.

use std::ops::Range;

use super::layout::BLOCK_BYTES;
use super::superblock::Block;
use crate::limits::AL_EXTENT_SECTORS;
use crate::units::{AlExtent, BmBit, Sectors};

/// Bits of one page: 128 MiB of device.
pub const PAGE_BITS: u64 = 32_768;
/// 64-bit words of one page.
pub const PAGE_WORDS: u64 = 512;
/// Bits of one activity-log extent.
pub const AL_EXTENT_BITS: u64 = AL_EXTENT_SECTORS / 8;
/// Activity-log extents of one page.
pub const PAGE_AL_EXTENTS: u64 = PAGE_BITS / AL_EXTENT_BITS;

const _: () = assert!(PAGE_WORDS * 64 == PAGE_BITS && BLOCK_BYTES as u64 * 8 == PAGE_BITS);

/// 64-bit words for `bits` bits.
#[must_use]
pub const fn words_for(bits: u64) -> u64 {
    bits.div_ceil(64)
}

/// Pages for `bits` bits.
#[must_use]
pub const fn pages_for(bits: u64) -> u64 {
    bits.div_ceil(PAGE_BITS)
}

/// Bytes on disk, whole pages, for a device of `size` ("bm-bytes"); 0 for no size.
#[must_use]
pub const fn bytes_for(size: Sectors) -> u64 {
    pages_for(size.bm_bits()) * BLOCK_BYTES as u64
}

/// The bits of activity-log extent `extent`, beyond the device's end too.
#[must_use]
pub fn bits_of_extent(extent: AlExtent) -> Range<u64> {
    let first = u64::from(extent.0) * AL_EXTENT_BITS;
    first..first + AL_EXTENT_BITS
}

/// The page that holds the bits of `extent`.
#[must_use]
pub fn page_of_extent(extent: AlExtent) -> u64 {
    u64::from(extent.0) / PAGE_AL_EXTENTS
}

/// Number of set bits in a page as it lies on the disk, garbage behind the device's end included.
#[must_use]
pub fn count_page(page: &Block) -> u64 {
    page.iter().map(|byte| u64::from(byte.count_ones())).sum()
}

/// A bitmap in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    bits: u64,
    words: Vec<u64>,
}

/// Positions in memory: word index and the mask of the bits of `range` in it.
fn spans(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if range.is_empty() { 0..0 } else { range.start / 64..words_for(range.end) };
    words.filter_map(move |word| {
        let low = range.start.saturating_sub(word * 64).min(64);
        let high = (range.end - word * 64).min(64);
        let mask = ones(high) & !ones(low);
        usize::try_from(word).ok().map(|index| (index, mask))
    })
}

/// The lowest `n` bits of a word set.
const fn ones(n: u64) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

impl Bitmap {
    /// A clear bitmap of `bits` bits. Takes `bits / 8` bytes of memory.
    #[must_use]
    pub fn new(bits: u64) -> Self {
        let words = usize::try_from(words_for(bits)).unwrap_or(usize::MAX);
        Self { bits, words: vec![0; words] }
    }

    /// Number of bits.
    #[must_use]
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// Number of pages on disk.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        pages_for(self.bits)
    }

    /// The words, lowest bits first; bits behind the end are 0.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Changes the size. New bits are set if `set_new`, clear otherwise; bits behind a new end are forgotten.
    pub fn resize(&mut self, bits: u64, set_new: bool) {
        let old = self.bits;
        self.words.resize(usize::try_from(words_for(bits)).unwrap_or(usize::MAX), 0);
        self.bits = bits;
        self.mask_tail();
        if set_new {
            self.set(old..bits);
        }
    }

    fn mask_tail(&mut self) {
        if !self.bits.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= ones(self.bits % 64);
        }
    }

    /// Whether a bit is set; false behind the end.
    #[must_use]
    pub fn get(&self, bit: BmBit) -> bool {
        let word = usize::try_from(bit.0 / 64).ok().and_then(|index| self.words.get(index)).copied().unwrap_or(0);
        word >> (bit.0 % 64) & 1 == 1
    }

    /// Number of set bits.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Number of set bits in `range`; bits behind the end count as clear.
    #[must_use]
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        spans(range.start..range.end.min(self.bits))
            .filter_map(|(index, mask)| self.words.get(index).map(|word| u64::from((word & mask).count_ones())))
            .sum()
    }

    /// Sets `range`, as far as it lies inside; says how many bits were clear before.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        let mut changed = 0;
        for (index, mask) in spans(range.start..range.end.min(self.bits)) {
            if let Some(word) = self.words.get_mut(index) {
                changed += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
        }
        changed
    }

    /// Clears `range`, as far as it lies inside; says how many bits were set before.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        let mut changed = 0;
        for (index, mask) in spans(range.start..range.end.min(self.bits)) {
            if let Some(word) = self.words.get_mut(index) {
                changed += u64::from((mask & *word).count_ones());
                *word &= !mask;
            }
        }
        changed
    }

    fn page_words(page: u64) -> Option<Range<usize>> {
        let first = usize::try_from(page.checked_mul(PAGE_WORDS)?).ok()?;
        Some(first..first.checked_add(usize::try_from(PAGE_WORDS).ok()?)?)
    }

    /// Takes over page `page` from disk; what lies behind the device's end is dropped, as is a page behind it.
    pub fn load_page(&mut self, page: u64, bytes: &Block) {
        let Some(range) = Self::page_words(page) else { return };
        let words = self.words.iter_mut().take(range.end).skip(range.start);
        let (chunks, _) = bytes.as_chunks::<8>();
        for (word, chunk) in words.zip(chunks) {
            *word = u64::from_le_bytes(*chunk);
        }
        self.mask_tail();
    }

    /// Page `page` for the disk, filled with zeros behind the device's end.
    #[must_use]
    pub fn store_page(&self, page: u64) -> Block {
        let mut bytes = [0; BLOCK_BYTES];
        if let Some(range) = Self::page_words(page) {
            let words = self.words.iter().take(range.end).skip(range.start);
            let (chunks, _) = bytes.as_chunks_mut::<8>();
            for (word, chunk) in words.zip(chunks) {
                *chunk = word.to_le_bytes();
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_disk_has_little_endian_words() {
        let mut page = [0; BLOCK_BYTES];
        page[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut bitmap = Bitmap::new(100);
        bitmap.load_page(0, &page);
        assert_eq!(bitmap.words()[0], 0x0807_0605_0403_0201);
        assert_eq!(bitmap.count(), 13);
        assert_eq!(bitmap.store_page(0), page);
    }

    #[test]
    fn garbage_behind_the_end_is_dropped_and_the_last_word_is_kept() {
        let mut bitmap = Bitmap::new(16_384);
        bitmap.load_page(0, &[0xff; BLOCK_BYTES]);
        assert_eq!(bitmap.count(), 16_384);
        let mut odd = Bitmap::new(PAGE_BITS + 3);
        odd.load_page(1, &[0xff; BLOCK_BYTES]);
        odd.load_page(2, &[0xff; BLOCK_BYTES]);
        odd.load_page(u64::MAX, &[0xff; BLOCK_BYTES]);
        assert_eq!(odd.count(), 3);
        assert_eq!(odd.store_page(1)[..2], [7, 0]);
        assert_eq!(odd.store_page(u64::MAX), [0; BLOCK_BYTES]);
    }

    #[test]
    fn sizes_are_those_of_the_dump() {
        assert_eq!(bytes_for(Sectors(0)), 0);
        assert_eq!(bytes_for(Sectors(1)), 4096);
        assert_eq!(bytes_for(Sectors(262_144)), 4096);
        assert_eq!(bytes_for(Sectors(262_145)), 8192);
        assert_eq!(bytes_for(Sectors(1_048_440)), 16_384);
        assert_eq!(bits_of_extent(AlExtent(5)), 5120..6144);
        assert_eq!((page_of_extent(AlExtent(31)), page_of_extent(AlExtent(32))), (0, 1));
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(
            bits in 1_u64..5000,
            steps in prop::collection::vec((any::<bool>(), 0_u64..5200, 0_u64..400), 0..30),
            new_bits in 1_u64..5000, set_new in any::<bool>(),
        ) {
            let mut plain = vec![false; usize::try_from(bits).expect("small")];
            let mut bitmap = Bitmap::new(bits);
            for (on, start, len) in steps {
                let range = start..start + len;
                let mut changed = 0;
                for (i, bit) in plain.iter_mut().enumerate() {
                    if range.contains(&(i as u64)) && *bit != on {
                        *bit = on;
                        changed += 1;
                    }
                }
                let got = if on { bitmap.set(range.clone()) } else { bitmap.clear(range.clone()) };
                prop_assert_eq!(got, changed);
                prop_assert_eq!(bitmap.count_in(range.clone()), if on { changed_total(&plain, &range) } else { 0 });
            }
            plain.resize(usize::try_from(new_bits).expect("small"), set_new);
            bitmap.resize(new_bits, set_new);
            for (i, &bit) in plain.iter().enumerate() {
                prop_assert_eq!(bitmap.get(BmBit(i as u64)), bit);
            }
            prop_assert_eq!(bitmap.count(), plain.iter().filter(|&&b| b).count() as u64);
            let mut copy = Bitmap::new(new_bits);
            for page in 0..bitmap.pages() {
                copy.load_page(page, &bitmap.store_page(page));
            }
            prop_assert_eq!(copy, bitmap);
        }
    }

    fn changed_total(plain: &[bool], range: &Range<u64>) -> u64 {
        plain.iter().enumerate().filter(|&(i, &bit)| bit && range.contains(&(i as u64))).count() as u64
    }
}
