//! Exact bytes and positions of the metadata writes of an attached node.
//!
//! Takes in a layout and what is to be said; gives out a [`MetaWrite`]. Which of them must be durable before which is
//! the engine's business (metadata.md 9). Invariant: every write is one aligned 4 KiB block inside the metadata area.

use super::al_transaction::{AlTransaction, initialized_block};
use super::bitmap::Bitmap;
use super::layout::Layout;
use super::superblock::{Block, Superblock};

/// One block to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaWrite {
    /// Position on the metadata device, in bytes; a multiple of 4096 for every layout that udrbd makes.
    pub offset: u64,
    /// The bytes.
    pub block: Box<Block>,
}

impl MetaWrite {
    /// The superblock. A node that is attached must have called [`Superblock::set_unclean`].
    #[must_use]
    pub fn superblock(layout: &Layout, superblock: &Superblock) -> Self {
        Self { offset: layout.superblock_byte(), block: Box::new(superblock.encode()) }
    }

    /// A transaction of the activity log, at the position that its number gives.
    #[must_use]
    pub fn al_transaction(layout: &Layout, transaction: &AlTransaction) -> Self {
        Self { offset: layout.al_block_byte(transaction.tr_number), block: Box::new(transaction.encode()) }
    }

    /// An initialised block of the activity log at ring position `position`.
    #[must_use]
    pub fn al_initialized(layout: &Layout, position: u32) -> Self {
        Self { offset: layout.al_block_byte(position), block: Box::new(initialized_block()) }
    }

    /// A page of the bitmap; `None` when the page lies outside the bitmap area.
    #[must_use]
    pub fn bitmap_page(layout: &Layout, bitmap: &Bitmap, page: u64) -> Option<Self> {
        Some(Self { offset: layout.bm_page_byte(page)?, block: Box::new(bitmap.store_page(page)) })
    }

    /// A page of the bitmap from its bytes; `None` when the page lies outside the bitmap area.
    #[must_use]
    pub fn raw_bitmap_page(layout: &Layout, page: u64, bytes: Block) -> Option<Self> {
        Some(Self { offset: layout.bm_page_byte(page)?, block: Box::new(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{AlStripes, DeviceSizes, MetaKind};
    use crate::units::Sectors;

    #[test]
    fn positions_are_absolute_and_striped() {
        let al = AlStripes::new(3, 4).expect("valid");
        let layout = Layout::new(MetaKind::Internal, al, DeviceSizes::one(Sectors(1_048_576))).expect("fits");
        let offset_of = |tr_number| {
            MetaWrite::al_transaction(&layout, &AlTransaction { tr_number, ..AlTransaction::default() }).offset
        };
        assert_eq!([108, 109, 110, 111].map(offset_of), [0, 4, 8, 1].map(|block| 536_817_664 + block * 4096));
        assert_eq!(MetaWrite::al_initialized(&layout, 1).offset, 536_817_664 + 4 * 4096);
        assert_eq!(MetaWrite::superblock(&layout, &Superblock::create(&layout, 0)).offset, 536_866_816);
        let bitmap = Bitmap::new(10);
        let page = |page| MetaWrite::bitmap_page(&layout, &bitmap, page).map(|write| write.offset);
        assert_eq!([page(0), page(3), page(4)], [Some(536_801_280), Some(536_813_568), None]);
    }
}
