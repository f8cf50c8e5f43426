//! Arithmetic of the quick-sync bitmap: one bit per 4 KiB of device, set means out of sync; on disk a little-endian bit
//! stream in pages of 4096 bytes. Spec: metadata.md 6.

use std::ops::Range;

use super::layout::BLOCK_BYTES;
use super::superblock::Block;
use crate::limits::AL_EXTENT_SECTORS;
use crate::units::{AlExtent, Sectors};

/// Bits of one page: 128 MiB of device.
pub const PAGE_BITS: u64 = 32_768;
/// 64-bit words of one page.
pub const PAGE_WORDS: u64 = 512;
/// Bits of one activity-log extent.
pub const AL_EXTENT_BITS: u64 = AL_EXTENT_SECTORS / 8;
/// Activity-log extents of one page.
pub const PAGE_AL_EXTENTS: u64 = PAGE_BITS / AL_EXTENT_BITS;

const _: () = assert!(PAGE_WORDS * 64 == PAGE_BITS && BLOCK_BYTES as u64 * 8 == PAGE_BITS);

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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_page_is_counted_as_it_lies_on_the_disk() {
        let mut page = [0; BLOCK_BYTES];
        assert_eq!(count_page(&page), 0);
        page[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        page[BLOCK_BYTES - 1] = 0xff;
        assert_eq!(count_page(&page), 13 + 8);
    }
}
