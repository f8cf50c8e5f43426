//! The bitmap: which 4 KiB blocks may differ from the peer (bit set = out of sync).
//!
//! Owns the bits, their exact count, and per 4 KiB page of the on-disk form what has changed since it was written. Takes
//! in bit ranges, words of the peer and pages from disk; gives out counts, runs, words and pages to write.
//! Invariants: bits at and beyond the device end are 0; the count of a page and of the whole is exact; a page whose bits
//! changed is marked until its write is reported as done. Memory: one bit per 4 KiB plus 3 bytes per 4 KiB page of bitmap.
//! Searching skips empty and full pages by their counts. Operations on long ranges have slice forms, so that the caller
//! can keep each call short (about 10 GiB/s: 16384 words, 128 KiB, are some 10 microseconds).
//! Source: metadata.md 6, behaviour.md 5.4.

use std::ops::Range;

use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;

use crate::limits::{AL_EXTENT_SECTORS, BM_BLOCK_SECTORS, DEVICE_SECTORS_MAX, RESYNC_EXTENT_SECTORS};
use crate::units::BmBit;

mod pages;
#[cfg(test)]
mod tests;

use pages::{CHANGED, CLEARED, SET};
pub use pages::{PageChange, PageFilter, PageNr};

/// Bytes of a page: the unit of bitmap I/O.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words of a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Bits of a page: 128 MiB of device.
pub const PAGE_BITS: u64 = 32768;
/// Bits of an AL extent.
pub const AL_EXTENT_BITS: u64 = AL_EXTENT_SECTORS / BM_BLOCK_SECTORS;
/// Bits of a resync extent.
pub const RESYNC_EXTENT_BITS: u64 = RESYNC_EXTENT_SECTORS / BM_BLOCK_SECTORS;
/// Most bits: those of the largest device.
pub const BITS_MAX: u64 = DEVICE_SECTORS_MAX / BM_BLOCK_SECTORS;

const PAGE_BITS_U16: u16 = 32768;
const _: () = assert!(PAGE_WORDS as u64 * 64 == PAGE_BITS && PAGE_BITS_U16 as u64 == PAGE_BITS);
const _: () = assert!(PAGE_BITS.is_multiple_of(AL_EXTENT_BITS) && RESYNC_EXTENT_BITS.is_multiple_of(64));
const _: () = assert!(usize::BITS >= 64, "bitmaps of large devices are indexed by usize");

/// Why a bitmap cannot have the wanted size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// More bits than the largest device has.
    #[error("bitmap: {0} bits are more than a device of 1 PiB has")]
    TooLarge(u64),
    /// No memory.
    #[error("bitmap: no memory for {0} bits")]
    NoMemory(u64),
}

/// Outcome of one slice of a long operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Slice {
    /// Bits changed or counted in this slice.
    pub bits: u64,
    /// What is left to do; `None` when done.
    pub rest: Option<Range<u64>>,
}

/// See the module.
#[derive(Clone)]
pub struct Bitmap {
    /// A whole number of pages, so that every page has the same length.
    words: Vec<u64>,
    bits: u64,
    count: u64,
    page_counts: Vec<u16>,
    page_flags: Vec<u8>,
    changed_pages: u32,
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bitmap").field("bits", &self.bits).field("count", &self.count).finish_non_exhaustive()
    }
}

/// Narrowing that cannot fail: the value is an index below the length of a vector.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits (asserted above)")]
const fn at(index: u64) -> usize {
    index as usize
}

/// The inverse.
const fn nr(index: usize) -> u64 {
    index as u64
}

/// The bits of word `word` that lie in `range`.
const fn mask(word: u64, range: &Range<u64>) -> u64 {
    let first = word * 64;
    let low = range.start.saturating_sub(first);
    let high = if range.end >= first + 64 { 64 } else { range.end.saturating_sub(first) };
    if low >= 64 || high <= low {
        return 0;
    }
    (u64::MAX << low) & (u64::MAX >> (64 - high))
}

fn popcount(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

impl Bitmap {
    /// A bitmap of `bits` bits, all 0, no page changed.
    ///
    /// # Errors
    /// When the size is beyond DRBD's limit or memory is short.
    pub fn new(bits: u64) -> Result<Self, BitmapError> {
        let pages = Self::pages_for(bits)?;
        let words = pages * PAGE_WORDS;
        // Ask first: a zeroed vector costs no time before it is used, but its allocation cannot fail softly.
        let mut probe: Vec<u64> = Vec::new();
        probe.try_reserve_exact(words).map_err(|_| BitmapError::NoMemory(bits))?;
        drop(probe);
        Ok(Self {
            words: vec![0; words],
            bits,
            count: 0,
            page_counts: vec![0; pages],
            page_flags: vec![0; pages],
            changed_pages: 0,
        })
    }

    fn pages_for(bits: u64) -> Result<usize, BitmapError> {
        if bits > BITS_MAX {
            return Err(BitmapError::TooLarge(bits));
        }
        Ok(at(bits.div_ceil(PAGE_BITS)))
    }

    /// Number of bits.
    #[must_use]
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// Number of set bits.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Number of 64-bit words that carry bits.
    #[must_use]
    pub const fn word_count(&self) -> u64 {
        self.bits.div_ceil(64)
    }

    /// Number of pages.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.page_counts.len()).unwrap_or(u32::MAX)
    }

    /// The words that carry bits, bit `n` in word `n / 64` at position `n % 64`.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words[..at(self.word_count())]
    }

    /// The bits as a bit slice.
    #[must_use]
    pub fn as_bits(&self) -> &BitSlice<u64, Lsb0> {
        &BitSlice::from_slice(&self.words)[..at(self.bits)]
    }

    /// Whether a bit is set; false beyond the end.
    #[must_use]
    pub fn test(&self, bit: BmBit) -> bool {
        bit.0 < self.bits && self.words[at(bit.0 / 64)] >> (bit.0 % 64) & 1 == 1
    }

    /// Sets a range of bits (clipped to the device). Returns how many were 0.
    pub fn set_range(&mut self, range: Range<u64>) -> u64 {
        self.change(range, true)
    }

    /// Clears a range of bits (clipped to the device). Returns how many were 1.
    pub fn clear_range(&mut self, range: Range<u64>) -> u64 {
        self.change(range, false)
    }

    /// Sets every bit. Large devices: see `set_slice`.
    pub fn set_all(&mut self) -> u64 {
        self.set_range(0..self.bits)
    }

    /// Clears every bit. Large devices: see `clear_slice`.
    pub fn clear_all(&mut self) -> u64 {
        self.clear_range(0..self.bits)
    }

    /// Sets the first `max_words` words' worth of a range.
    pub fn set_slice(&mut self, range: Range<u64>, max_words: u64) -> Slice {
        let (now, rest) = self.split(range, max_words);
        Slice { bits: self.set_range(now), rest }
    }

    /// Clears the first `max_words` words' worth of a range.
    pub fn clear_slice(&mut self, range: Range<u64>, max_words: u64) -> Slice {
        let (now, rest) = self.split(range, max_words);
        Slice { bits: self.clear_range(now), rest }
    }

    /// Counts the set bits of a range from the words, `max_words` at a time (a check of `count`, or a part of it).
    pub fn count_slice(&self, range: Range<u64>, max_words: u64) -> Slice {
        let (now, rest) = self.split(range, max_words);
        Slice { bits: self.count_words(now), rest }
    }

    /// Number of set bits in a range.
    #[must_use]
    pub fn count_range(&self, range: Range<u64>) -> u64 {
        let range = self.clip(range);
        let (first, last) = (range.start.div_ceil(PAGE_BITS), range.end / PAGE_BITS);
        if first >= last {
            return self.count_words(range);
        }
        let whole: u64 = self.page_counts[at(first)..at(last)].iter().map(|&count| u64::from(count)).sum();
        self.count_words(range.start..first * PAGE_BITS) + whole + self.count_words(last * PAGE_BITS..range.end)
    }

    /// Number of set bits in a resync extent (16 MiB), 0..=4096.
    #[must_use]
    pub fn count_resync_extent(&self, extent: u32) -> u32 {
        let first = u64::from(extent) * RESYNC_EXTENT_BITS;
        u32::try_from(self.count_words(first..first + RESYNC_EXTENT_BITS)).unwrap_or(u32::MAX)
    }

    /// Whether any bit of a range is set.
    #[must_use]
    pub fn any(&self, range: Range<u64>) -> bool {
        let end = range.end;
        self.find_first_set_from(BmBit(range.start)).is_some_and(|bit| bit.0 < end)
    }

    /// The first set bit at or after `from`.
    #[must_use]
    pub fn find_first_set_from(&self, from: BmBit) -> Option<BmBit> {
        self.find(from.0, 0).filter(|&bit| bit < self.bits).map(BmBit)
    }

    /// The first clear bit at or after `from`.
    #[must_use]
    pub fn find_first_clear_from(&self, from: BmBit) -> Option<BmBit> {
        self.find(from.0, u64::MAX).filter(|&bit| bit < self.bits).map(BmBit)
    }

    /// The runs of set bits that touch a range, clipped to it, ascending.
    pub fn runs(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let range = self.clip(range);
        let mut from = range.start;
        std::iter::from_fn(move || {
            let start = self.find(from, 0).filter(|&bit| bit < range.end)?;
            let end = self.find(start, u64::MAX).unwrap_or(self.bits).min(range.end);
            from = end;
            Some(start..end)
        })
    }

    /// The run of equal bits that starts at `from`: their value and the end of the run. `None` at the end of the bitmap.
    #[must_use]
    pub fn run_at(&self, from: BmBit) -> Option<(bool, BmBit)> {
        if from.0 >= self.bits {
            return None;
        }
        let value = self.test(from);
        let end = self.find(from.0, if value { u64::MAX } else { 0 }).unwrap_or(self.bits).min(self.bits);
        Some((value, BmBit(end)))
    }

    /// Merges words of the peer's bitmap (bits set there are set here), from word `first_word`. Words beyond the end and
    /// bits beyond the device are ignored. Returns how many bits were 0.
    pub fn or_words(&mut self, first_word: u64, words: &[u64]) -> u64 {
        let mut newly = 0;
        let last = self.word_count();
        for (word, &theirs) in (first_word..last).zip(words) {
            if theirs == 0 {
                continue;
            }
            let theirs = theirs & mask(word, &(0..self.bits));
            let ours = &mut self.words[at(word)];
            let added = u64::from((theirs & !*ours).count_ones());
            if added > 0 {
                *ours |= theirs;
                self.note_page(at(word) / PAGE_WORDS, added, true);
                newly += added;
            }
        }
        newly
    }

    /// Changes the number of bits. New bits are set or clear as `set_new` says; bits beyond a new, smaller end are gone.
    /// All pages are marked as changed if `set_new` set bits in them. Growing copies the bitmap (10 ms per TiB), and
    /// setting many new bits is better done with `set_slice` afterwards.
    ///
    /// # Errors
    /// When the size is beyond DRBD's limit or memory is short; nothing has changed then.
    pub fn resize(&mut self, bits: u64, set_new: bool) -> Result<(), BitmapError> {
        let pages = Self::pages_for(bits)?;
        let old_bits = self.bits;
        if bits < old_bits {
            self.clear_range(bits..old_bits);
        }
        let words = pages * PAGE_WORDS;
        self.words
            .try_reserve_exact(words.saturating_sub(self.words.len()))
            .map_err(|_| BitmapError::NoMemory(bits))?;
        for &flags in self.page_flags.get(pages..).unwrap_or_default() {
            self.changed_pages -= u32::from(flags & CHANGED != 0);
        }
        self.words.resize(words, 0);
        self.page_counts.resize(pages, 0);
        self.page_flags.resize(pages, 0);
        self.bits = bits;
        if set_new && bits > old_bits {
            self.set_range(old_bits..bits);
        }
        Ok(())
    }

    fn clip(&self, range: Range<u64>) -> Range<u64> {
        let end = range.end.min(self.bits);
        range.start.min(end)..end
    }

    fn split(&self, range: Range<u64>, max_words: u64) -> (Range<u64>, Option<Range<u64>>) {
        let range = self.clip(range);
        let stop = (range.start / 64).saturating_add(max_words.max(1)).saturating_mul(64);
        if stop >= range.end { (range, None) } else { (range.start..stop, Some(stop..range.end)) }
    }

    fn count_words(&self, range: Range<u64>) -> u64 {
        let range = self.clip(range);
        if range.is_empty() {
            return 0;
        }
        let (first, last) = (range.start / 64, (range.end - 1) / 64);
        let edge = |word: u64| u64::from((self.words[at(word)] & mask(word, &range)).count_ones());
        if first == last {
            return edge(first);
        }
        edge(first) + popcount(&self.words[at(first + 1)..at(last)]) + edge(last)
    }

    /// Finds the first bit from `from` whose word, exclusive-or `flip`, has it set: 0 looks for ones, all ones for zeros.
    /// May return a bit beyond the device when looking for zeros.
    fn find(&self, from: u64, flip: u64) -> Option<u64> {
        if from >= self.bits {
            return None;
        }
        let full = if flip == 0 { 0 } else { PAGE_BITS_U16 };
        let mut word = from / 64;
        let mut found = (self.words[at(word)] ^ flip) & (u64::MAX << (from % 64));
        while found == 0 {
            word += 1;
            let mut page = at(word) / PAGE_WORDS;
            if at(word).is_multiple_of(PAGE_WORDS) {
                page += self.page_counts.get(page..)?.iter().position(|&count| count != full)?;
                word = nr(page * PAGE_WORDS);
            }
            let rest = &self.words[at(word)..(page + 1) * PAGE_WORDS];
            match rest.iter().position(|&bits| bits != flip) {
                Some(skip) => {
                    word += nr(skip);
                    found = self.words[at(word)] ^ flip;
                }
                None => word += nr(rest.len()) - 1,
            }
        }
        Some(word * 64 + u64::from(found.trailing_zeros()))
    }

    fn change(&mut self, range: Range<u64>, value: bool) -> u64 {
        let range = self.clip(range);
        let mut changed = 0;
        let mut from = range.start;
        while from < range.end {
            let page = at(from / PAGE_BITS);
            let end = range.end.min((nr(page) + 1) * PAGE_BITS);
            let same = if value { u64::from(self.page_counts[page]) } else { 0 };
            let in_page = if end - from == PAGE_BITS {
                let words = &mut self.words[page * PAGE_WORDS..(page + 1) * PAGE_WORDS];
                let delta = if value { PAGE_BITS - same } else { u64::from(self.page_counts[page]) };
                if delta > 0 {
                    words.fill(if value { u64::MAX } else { 0 });
                }
                delta
            } else {
                self.change_words(from..end, value)
            };
            if in_page > 0 {
                self.note_page(page, in_page, value);
                changed += in_page;
            }
            from = end;
        }
        changed
    }

    /// Changes bits inside one page without touching the counts.
    fn change_words(&mut self, range: Range<u64>, value: bool) -> u64 {
        let mut changed = 0;
        for word in range.start / 64..range.end.div_ceil(64) {
            let bits = mask(word, &range);
            let slot = &mut self.words[at(word)];
            let delta = if value { bits & !*slot } else { bits & *slot };
            *slot ^= delta;
            changed += u64::from(delta.count_ones());
        }
        changed
    }

    /// Books `bits` (above 0) changed bits of a page.
    fn note_page(&mut self, page: usize, bits: u64, value: bool) {
        let delta = u16::try_from(bits).unwrap_or(PAGE_BITS_U16);
        let flags = &mut self.page_flags[page];
        self.changed_pages += u32::from(*flags & CHANGED == 0);
        if value {
            self.count += bits;
            self.page_counts[page] += delta;
            *flags |= SET;
        } else {
            self.count -= bits;
            self.page_counts[page] -= delta;
            *flags |= CLEARED;
        }
    }
}
