//! The bitmap's pages on disk: what changed, what is being written, encoding and loading.
//!
//! A page keeps two marks apart, because they have different duties: set bits must be on disk before the activity log
//! forgets an extent of the page, cleared bits must not be on disk before the data is. While a page is being written its
//! marks count for the bytes that are under way; changes meanwhile mark it again. Source: metadata.md 6.1, 6.4, 9.

use super::{AL_EXTENT_BITS, Bitmap, PAGE_BITS, PAGE_BITS_U16, PAGE_BYTES, PAGE_WORDS, at, mask, nr, popcount};
use crate::units::AlExtent;

/// Number of a 4 KiB page of the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNr(pub u32);

/// What happened to a page since its last write-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageChange {
    /// Bits were set: must be on disk before the AL forgets an extent of the page.
    pub set: bool,
    /// Bits were cleared: the data device is flushed before the page may be written.
    pub cleared: bool,
}

/// Which pages to take for write-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFilter {
    /// Every changed page (lazy write-out, demote, disconnect, detach).
    Changed,
    /// Only pages in which bits were set (eviction: clearing never has to be durable).
    WithSetBits,
}

pub(super) const SET: u8 = 1;
pub(super) const CLEARED: u8 = 2;
const WRITING: u8 = 4;
const WRITING_SET: u8 = 8;
const WRITING_CLEARED: u8 = 16;
pub(super) const CHANGED: u8 = SET | CLEARED;

impl Bitmap {
    /// The page that holds the bits of an AL extent; `None` beyond the end of the bitmap.
    #[must_use]
    pub fn page_of_al_extent(&self, extent: AlExtent) -> Option<PageNr> {
        let page = u32::try_from(u64::from(extent.0) * AL_EXTENT_BITS / PAGE_BITS).ok()?;
        (page < self.page_count()).then_some(PageNr(page))
    }

    /// Number of pages with changes that no write has been started for.
    #[must_use]
    pub const fn changed_pages(&self) -> u32 {
        self.changed_pages
    }

    /// What changed in a page since its last write was started.
    #[must_use]
    pub fn page_change(&self, page: PageNr) -> PageChange {
        let flags = self.flags(page);
        PageChange { set: flags & SET != 0, cleared: flags & CLEARED != 0 }
    }

    /// Whether a write of the page is under way.
    #[must_use]
    pub fn page_writing(&self, page: PageNr) -> bool {
        self.flags(page) & WRITING != 0
    }

    /// Whether set bits of the page are not on disk yet: changed, or the write of the change not done.
    #[must_use]
    pub fn page_unwritten(&self, page: PageNr) -> bool {
        self.flags(page) & (SET | WRITING_SET) != 0
    }

    /// Whether a page of any of these extents has set bits that are not on disk yet; such pages go before a transaction
    /// that evicts the extents.
    #[must_use]
    pub fn unwritten_pages(&self, extents: &[AlExtent]) -> Vec<PageNr> {
        let mut pages: Vec<PageNr> = extents
            .iter()
            .filter_map(|&extent| self.page_of_al_extent(extent))
            .filter(|&page| self.page_unwritten(page))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// The changed pages from `from` on that pass the filter and are not being written, at most `max`.
    #[must_use]
    pub fn dirty_pages(&self, from: PageNr, filter: PageFilter, max: usize) -> Vec<PageNr> {
        if self.changed_pages == 0 {
            return Vec::new();
        }
        let wanted = match filter {
            PageFilter::Changed => CHANGED,
            PageFilter::WithSetBits => SET,
        };
        (from.0..)
            .zip(self.page_flags.get(at(u64::from(from.0))..).unwrap_or_default())
            .filter(|&(_, &flags)| flags & wanted != 0 && flags & WRITING == 0)
            .map(|(page, _)| PageNr(page))
            .take(max)
            .collect()
    }

    /// Starts the write of a page: returns its bytes and what had changed. `None` while an earlier write of the page is
    /// under way (two writes of one page could arrive in the wrong order) or beyond the end.
    #[must_use]
    pub fn start_page_write(&mut self, page: PageNr) -> Option<(PageChange, Box<[u8; PAGE_BYTES]>)> {
        let bytes = self.page_bytes(page)?;
        let change = self.page_change(page);
        let flags = self.page_flags.get_mut(at(u64::from(page.0)))?;
        if *flags & WRITING != 0 {
            return None;
        }
        self.changed_pages -= u32::from(*flags & CHANGED != 0);
        *flags = WRITING | if change.set { WRITING_SET } else { 0 } | if change.cleared { WRITING_CLEARED } else { 0 };
        Some((change, bytes))
    }

    /// The write of a page ended. After a failure its changes count as unwritten again.
    pub fn page_written(&mut self, page: PageNr, ok: bool) {
        let Some(flags) = self.page_flags.get_mut(at(u64::from(page.0))) else { return };
        let mut now = *flags & CHANGED;
        if !ok {
            now |= if *flags & WRITING_SET != 0 { SET } else { 0 };
            now |= if *flags & WRITING_CLEARED != 0 { CLEARED } else { 0 };
        }
        self.changed_pages += u32::from(now != 0) - u32::from(*flags & CHANGED != 0);
        *flags = now;
    }

    /// Marks every page as changed, so that the whole bitmap gets written (its place on disk has moved).
    pub fn mark_all_changed(&mut self) {
        for flags in &mut self.page_flags {
            *flags |= CHANGED;
        }
        self.changed_pages = self.page_count();
    }

    /// The on-disk form of a page; zeros beyond the device end. `None` beyond the end of the bitmap.
    #[must_use]
    pub fn page_bytes(&self, page: PageNr) -> Option<Box<[u8; PAGE_BYTES]>> {
        let first = at(u64::from(page.0)) * PAGE_WORDS;
        let words = self.words.get(first..first + PAGE_WORDS)?;
        let mut bytes = Box::new([0; PAGE_BYTES]);
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Some(bytes)
    }

    /// Replaces a page by what is on disk; it counts as unchanged. Bits beyond the device end are ignored. Returns the
    /// set bits of the page, `None` beyond the end of the bitmap.
    pub fn load_page(&mut self, page: PageNr, bytes: &[u8; PAGE_BYTES]) -> Option<u64> {
        let index = at(u64::from(page.0));
        let first = index * PAGE_WORDS;
        let words = self.words.get_mut(first..first + PAGE_WORDS)?;
        for (word, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*from);
        }
        for word in self.word_count().max(nr(first) + 1) - 1..nr(first + PAGE_WORDS) {
            self.words[at(word)] &= mask(word, &(0..self.bits));
        }
        let count = popcount(&self.words[first..first + PAGE_WORDS]);
        self.count = self.count - u64::from(self.page_counts[index]) + count;
        self.page_counts[index] = u16::try_from(count).unwrap_or(PAGE_BITS_U16);
        self.changed_pages -= u32::from(self.page_flags[index] & CHANGED != 0);
        self.page_flags[index] = 0;
        Some(count)
    }

    fn flags(&self, page: PageNr) -> u8 {
        self.page_flags.get(at(u64::from(page.0))).copied().unwrap_or(0)
    }
}
