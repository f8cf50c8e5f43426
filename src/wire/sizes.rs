//! `P_SIZES`: device sizes and limits, with and without the queue-limits extension (wire.md 4.7).

use crate::units::Sectors;

use super::flags::flags;

flags!(
    /// `dds_flags` of `P_SIZES`.
    DdsFlags(u16) {
        /// The resize was forced.
        FORCED = 1;
        /// The grown area needs no resync (from version 93 on).
        NO_RESYNC = 2;
    }
);

/// `P_SIZES`. Sizes are below 2^54 sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Usable sectors of the sender's backing device, without metadata; 0 if diskless.
    pub d_size: Sectors,
    /// User-configured limit; 0 is none.
    pub u_size: Sectors,
    /// Exported size; 0 asks for the receiver's `P_SIZES`.
    pub c_size: Sectors,
    /// Largest request in bytes.
    pub max_bio_size: u32,
    /// 0; ignored.
    pub queue_order_type: u16,
    /// Kind of resize.
    pub dds_flags: DdsFlags,
    /// Queue limits; present if and only if [`super::feature::FeatureFlags::WSAME`] is agreed.
    pub limits: Option<QueueLimits>,
}

/// The queue limits of the sender's device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Physical block size.
    pub physical_block_size: u32,
    /// Logical block size: 0, or a power of two from 512 on.
    pub logical_block_size: u32,
    /// Alignment offset.
    pub alignment_offset: u32,
    /// Preferred smallest I/O.
    pub io_min: u32,
    /// Preferred I/O.
    pub io_opt: u32,
    /// The backing device discards. A byte on the wire: 0 or not.
    pub discard_enabled: bool,
    /// Discarded ranges read as zero.
    pub discard_zeroes_data: bool,
    /// The backing device can write-same. Announce false, always.
    pub write_same_capable: bool,
}
