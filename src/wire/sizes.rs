//! `P_SIZES`: device sizes and limits, with and without the queue-limits extension (wire.md 4.7).

use bytes::{BufMut, BytesMut};

use crate::limits::SECTOR_SIZE;
use crate::units::Sectors;

use super::cursor::Reader;
use super::error::Fault;
use super::feature::FeatureFlags;
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

/// No legal size is larger, so byte counts cannot overflow a signed 64-bit number.
const SECTORS_MAX: u64 = 1 << 54;

impl Sizes {
    /// Length on the wire without queue limits, in bytes.
    pub const LEN_SHORT: usize = 32;
    /// Length on the wire with queue limits, in bytes.
    pub const LEN: usize = 56;

    pub(super) fn decode(r: &mut Reader<'_>, features: FeatureFlags) -> Result<Self, Fault> {
        let sizes = Self {
            d_size: Sectors(r.u64()?),
            u_size: Sectors(r.u64()?),
            c_size: Sectors(r.u64()?),
            max_bio_size: r.u32()?,
            queue_order_type: r.u16()?,
            dds_flags: DdsFlags(r.u16()?),
            limits: if features.has(FeatureFlags::WSAME) { Some(QueueLimits::decode(r)?) } else { None },
        };
        sizes.check()?;
        Ok(sizes)
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        for (field, value) in [("d_size", self.d_size), ("u_size", self.u_size), ("c_size", self.c_size)] {
            if value.0 > SECTORS_MAX {
                return Err(Fault::Field { field, value: value.0, rule: "is larger than any device" });
            }
        }
        if let Some(limits) = &self.limits {
            let value = limits.logical_block_size;
            if value != 0 && !(value.is_power_of_two() && u64::from(value) >= SECTOR_SIZE) {
                let rule = "must be 0 or a power of two from 512 on";
                return Err(Fault::Field { field: "logical_block_size", value: value.into(), rule });
            }
        }
        Ok(())
    }

    pub(super) fn encode(&self, features: FeatureFlags, out: &mut BytesMut) {
        out.put_u64(self.d_size.0);
        out.put_u64(self.u_size.0);
        out.put_u64(self.c_size.0);
        out.put_u32(self.max_bio_size);
        out.put_u16(self.queue_order_type);
        out.put_u16(self.dds_flags.0);
        if features.has(FeatureFlags::WSAME) {
            self.limits.unwrap_or_default().encode(out);
        }
    }
}

impl QueueLimits {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let limits = Self {
            physical_block_size: r.u32()?,
            logical_block_size: r.u32()?,
            alignment_offset: r.u32()?,
            io_min: r.u32()?,
            io_opt: r.u32()?,
            discard_enabled: r.u8()? != 0,
            discard_zeroes_data: r.u8()? != 0,
            write_same_capable: r.u8()? != 0,
        };
        r.u8()?;
        Ok(limits)
    }

    fn encode(&self, out: &mut BytesMut) {
        for value in
            [self.physical_block_size, self.logical_block_size, self.alignment_offset, self.io_min, self.io_opt]
        {
            out.put_u32(value);
        }
        for value in [self.discard_enabled, self.discard_zeroes_data, self.write_same_capable] {
            out.put_u8(value.into());
        }
        out.put_u8(0);
    }
}

impl Default for QueueLimits {
    /// A device of 512-byte blocks without discard.
    fn default() -> Self {
        Self {
            physical_block_size: 512,
            logical_block_size: 512,
            alignment_offset: 0,
            io_min: 512,
            io_opt: 0,
            discard_enabled: false,
            discard_zeroes_data: false,
            write_same_capable: false,
        }
    }
}
