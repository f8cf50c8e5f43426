//! Where superblock, activity log (AL) and bitmap lie on the metadata device, and how much room they leave for data.
//!
//! Takes in: the kind of metadata, the sizes of the devices, the AL stripes. Gives out: a [`Layout`] in sectors.
//! Invariants: all three areas start on a 4 KiB boundary (of the slot, for indexed metadata), do not overlap, and lie
//! inside the metadata device. Spec: metadata.md 3 and 4.3.

use std::fmt;

use crate::limits::{BM_BLOCK_SECTORS, DEVICE_SECTORS_MAX};
use crate::units::{Sector, Sectors};

/// Bytes of a metadata block: superblock, AL transaction and bitmap page are one block each.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors of a metadata block.
pub const BLOCK_SECTORS: u64 = 8;
/// Sectors of data that one 4 KiB block of bitmap covers (128 MiB).
pub const BM_PAGE_DATA_SECTORS: u64 = 262_144;
/// Sectors of data that one sector of bitmap covers (16 MiB).
pub const BM_SECTOR_DATA_SECTORS: u64 = 32_768;
/// Sectors of one slot of an indexed metadata device (128 MiB).
pub const INDEX_SLOT_SECTORS: u64 = 262_144;
/// Largest data device with indexed metadata, in sectors. metadata.md 3.3.
pub const INDEXED_DATA_SECTORS_MAX: u64 = (INDEX_SLOT_SECTORS - 72) * BM_SECTOR_DATA_SECTORS;
/// Smallest metadata device that `drbdmeta` accepts, in bytes. metadata.md 3.4.
pub const DEVICE_BYTES_MIN: u64 = 69_632;
/// Smallest internal or flexible metadata device that the kernel attaches, in sectors. metadata.md 3.4.
pub const ATTACH_SECTORS_MIN: u64 = 2048;
/// Fewest blocks of an activity log.
pub const AL_BLOCKS_MIN: u32 = 8;
/// Most blocks of an activity log that a new layout may have (32 MiB). Enforced by `drbdmeta`.
pub const AL_BLOCKS_MAX: u32 = 8192;
/// Most blocks of an activity log that the kernel reads.
pub const AL_BLOCKS_MAX_READ: u32 = 4_194_304;
/// Entries of the `al-extents` setting: least, and most that a slot number can say.
pub const AL_EXTENTS_MIN: u16 = 67;
/// Most slots of the active set, whatever the size of the ring.
pub const AL_EXTENTS_MAX: u16 = 65_534;

const _: () = assert!(INDEXED_DATA_SECTORS_MAX == 8_587_575_296);
const _: () = assert!(BM_PAGE_DATA_SECTORS == 4096 * 8 * BM_BLOCK_SECTORS);

/// Which of DRBD's three placements the metadata has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaKind {
    /// At the end of the data device ("internal", "flex-internal").
    Internal,
    /// On a metadata device of its own that it fills ("flexible", "flex-external").
    FlexExternal,
    /// In the 128 MiB slot with this index of a metadata device that may hold several.
    Indexed(u8),
}

impl MetaKind {
    /// The kind that drbdmeta's INDEX argument (or drbd.conf's `meta-disk` suffix) names: `internal`,
    /// `flex-internal`, `flex-external`, `flexible`, or a number 0..=255.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "internal" | "flex-internal" => Some(Self::Internal),
            "flex-external" | "flexible" => Some(Self::FlexExternal),
            number => number.parse().ok().map(Self::Indexed),
        }
    }

    /// Whether the metadata lies on the data device.
    #[must_use]
    pub const fn is_internal(self) -> bool {
        matches!(self, Self::Internal)
    }
}

impl fmt::Display for MetaKind {
    /// drbdmeta's INDEX argument.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => f.write_str("internal"),
            Self::FlexExternal => f.write_str("flex-external"),
            Self::Indexed(index) => write!(f, "{index}"),
        }
    }
}

/// Geometry of the ring of AL transactions: `stripes` runs of `stripe_size_4k` blocks, written round robin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AlStripes {
    stripes: u32,
    stripe_size_4k: u32,
}

impl AlStripes {
    /// One stripe of 32 KiB.
    pub const DEFAULT: Self = Self { stripes: 1, stripe_size_4k: 8 };

    /// A geometry for a new layout: 8..=8192 blocks in total.
    ///
    /// # Errors
    /// [`LayoutError::AlStripes`] outside these bounds.
    pub const fn new(stripes: u32, stripe_size_4k: u32) -> Result<Self, LayoutError> {
        Self::bounded(stripes, stripe_size_4k, AL_BLOCKS_MAX)
    }

    /// The geometry that a superblock says; 0/0 (written by DRBD 8.3) is the default, up to 4194304 blocks are read.
    ///
    /// # Errors
    /// [`LayoutError::AlStripes`] when exactly one is 0 or the product is out of bounds.
    pub const fn from_disk(stripes: u32, stripe_size_4k: u32) -> Result<Self, LayoutError> {
        if stripes == 0 && stripe_size_4k == 0 {
            return Ok(Self::DEFAULT);
        }
        Self::bounded(stripes, stripe_size_4k, AL_BLOCKS_MAX_READ)
    }

    const fn bounded(stripes: u32, stripe_size_4k: u32, blocks_max: u32) -> Result<Self, LayoutError> {
        match stripes.checked_mul(stripe_size_4k) {
            Some(blocks) if blocks >= AL_BLOCKS_MIN && blocks <= blocks_max => Ok(Self { stripes, stripe_size_4k }),
            _ => Err(LayoutError::AlStripes { stripes, stripe_size_4k }),
        }
    }

    /// Number of stripes.
    #[must_use]
    pub const fn stripes(self) -> u32 {
        self.stripes
    }

    /// Blocks of 4 KiB per stripe.
    #[must_use]
    pub const fn stripe_size_4k(self) -> u32 {
        self.stripe_size_4k
    }

    /// Blocks of the whole ring, `n` in the spec.
    #[must_use]
    pub const fn blocks(self) -> u32 {
        self.stripes * self.stripe_size_4k
    }

    /// Size of the whole ring.
    #[must_use]
    pub const fn size(self) -> Sectors {
        Sectors(self.blocks() as u64 * BLOCK_SECTORS)
    }

    /// The block, counted from the start of the AL area, at ring position `position`; positions wrap around. The
    /// position of a transaction is its number.
    #[must_use]
    pub const fn block_at(self, position: u32) -> u32 {
        let k = position % self.blocks();
        (k % self.stripes) * self.stripe_size_4k + k / self.stripes
    }

    /// Largest `al-extents` that this ring can carry: the whole active set must fit into all blocks but one.
    #[must_use]
    pub fn al_extents_max(self) -> u16 {
        if self.blocks() > 72 {
            return AL_EXTENTS_MAX;
        }
        let context = u32::try_from(super::al_transaction::CONTEXT_LEN).unwrap_or(u32::MAX);
        u16::try_from((self.blocks() - 1) * context).unwrap_or(AL_EXTENTS_MAX).min(AL_EXTENTS_MAX)
    }

    /// `wanted` clamped to what this ring allows, as the kernel does silently.
    #[must_use]
    pub fn clamp_al_extents(self, wanted: u32) -> u16 {
        u16::try_from(wanted).unwrap_or(u16::MAX).clamp(AL_EXTENTS_MIN, self.al_extents_max())
    }
}

impl Default for AlStripes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Sizes of the devices that a layout is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSizes {
    /// The metadata device; for internal metadata the same as `data`.
    pub meta: Sectors,
    /// The data device.
    pub data: Sectors,
}

impl DeviceSizes {
    /// Both on one device.
    #[must_use]
    pub const fn one(size: Sectors) -> Self {
        Self { meta: size, data: size }
    }
}

/// Where everything lies. Positions are absolute on the metadata device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The placement.
    pub kind: MetaKind,
    /// The AL ring.
    pub al: AlStripes,
    /// The superblock, 8 sectors long.
    pub md_offset: Sector,
    /// Start of the AL area.
    pub al_offset: Sector,
    /// Size of the AL area.
    pub al_size: Sectors,
    /// Start of the bitmap area.
    pub bm_offset: Sector,
    /// Size of the bitmap area, a whole number of blocks.
    pub bm_size: Sectors,
    /// Size of superblock, AL and bitmap together as the superblock says it.
    pub md_size: Sectors,
    /// Largest device that can be offered to applications with these devices.
    pub data_size: Sectors,
}

impl Layout {
    /// The layout of metadata of `kind` with ring `al` on devices of these sizes.
    ///
    /// # Errors
    /// [`LayoutError::TooSmall`] or [`LayoutError::TooLarge`] when the metadata device cannot hold it,
    /// [`LayoutError::IndexedStripes`] for indexed metadata with other than the default ring.
    pub fn new(kind: MetaKind, al: AlStripes, sizes: DeviceSizes) -> Result<Self, LayoutError> {
        match kind {
            MetaKind::Internal => Self::internal(al, sizes.meta),
            MetaKind::FlexExternal => Self::flexible(al, sizes),
            MetaKind::Indexed(index) => Self::indexed(index, al, sizes),
        }
    }

    fn internal(al: AlStripes, device: Sectors) -> Result<Self, LayoutError> {
        let too_small = LayoutError::TooSmall { has: device, needs: Self::internal_min(al) };
        if device > Sectors(DEVICE_SECTORS_MAX) {
            return Err(LayoutError::TooLarge { has: device });
        }
        if device.bytes() < DEVICE_BYTES_MIN {
            return Err(too_small);
        }
        let bm_size = Sectors(BLOCK_SECTORS * device.0.div_ceil(BM_PAGE_DATA_SECTORS));
        let md_offset = (device.0 & !7) - BLOCK_SECTORS;
        let Some(data) = md_offset.checked_sub(al.size().0 + bm_size.0) else {
            return Err(too_small);
        };
        Ok(Self {
            kind: MetaKind::Internal,
            al,
            md_offset: Sector(md_offset),
            al_offset: Sector(md_offset - al.size().0),
            al_size: al.size(),
            bm_offset: Sector(data),
            bm_size,
            md_size: Sectors(BLOCK_SECTORS + al.size().0 + bm_size.0),
            data_size: Sectors(data),
        })
    }

    /// Smallest device, in sectors, on which internal metadata with ring `al` leaves no negative room.
    fn internal_min(al: AlStripes) -> Sectors {
        // The ring is at most 16 GiB, so the bitmap of a device that is nearly all ring is a fixed point found fast.
        Self::internal_device_for(Sectors(0), al).max(Sectors(DEVICE_BYTES_MIN.div_ceil(512)))
    }

    /// Smallest device, a multiple of 8 sectors, whose internal metadata leaves at least `data` sectors.
    #[must_use]
    pub fn internal_device_for(data: Sectors, al: AlStripes) -> Sectors {
        let fixed = data.0.next_multiple_of(BLOCK_SECTORS) + BLOCK_SECTORS + al.size().0;
        let mut device = fixed + BLOCK_SECTORS;
        loop {
            let next = fixed + BLOCK_SECTORS * device.div_ceil(BM_PAGE_DATA_SECTORS);
            if next <= device {
                return Sectors(device);
            }
            device = next;
        }
    }

    /// Smallest flexible external metadata device, a multiple of 8 sectors, for a data device of `data` sectors.
    #[must_use]
    pub fn flexible_device_for(data: Sectors, al: AlStripes) -> Sectors {
        let bitmap = data.0.div_ceil(BM_SECTOR_DATA_SECTORS).next_multiple_of(BLOCK_SECTORS);
        Sectors(BLOCK_SECTORS + al.size().0 + bitmap).max(Sectors(DEVICE_BYTES_MIN / 512))
    }

    fn flexible(al: AlStripes, sizes: DeviceSizes) -> Result<Self, LayoutError> {
        let needs = Sectors(BLOCK_SECTORS + al.size().0 + BLOCK_SECTORS).max(Sectors(DEVICE_BYTES_MIN / 512));
        if sizes.meta < needs {
            return Err(LayoutError::TooSmall { has: sizes.meta, needs });
        }
        // The superblock has 32 bits for it; that much bitmap is beyond any device.
        let md_size = sizes.meta.min(Sectors(u64::from(u32::MAX)));
        Ok(Self::external(MetaKind::FlexExternal, al, Sector(0), md_size, sizes.data))
    }

    fn indexed(index: u8, al: AlStripes, sizes: DeviceSizes) -> Result<Self, LayoutError> {
        if al != AlStripes::DEFAULT {
            return Err(LayoutError::IndexedStripes);
        }
        let start = u64::from(index) * INDEX_SLOT_SECTORS;
        let needs = Sectors(start + INDEX_SLOT_SECTORS);
        if sizes.meta < needs {
            return Err(LayoutError::TooSmall { has: sizes.meta, needs });
        }
        let md_size = Sectors(INDEX_SLOT_SECTORS);
        Ok(Self::external(MetaKind::Indexed(index), al, Sector(start), md_size, sizes.data))
    }

    /// Superblock, AL, bitmap upwards from `start`; the caller has checked that a block of bitmap fits at least.
    fn external(kind: MetaKind, al: AlStripes, start: Sector, md_size: Sectors, data: Sectors) -> Self {
        let before_bm = BLOCK_SECTORS + al.size().0;
        let bm_size = Sectors((md_size.0 - before_bm) & !7);
        let capacity = Sectors(bm_size.0 * BM_SECTOR_DATA_SECTORS);
        Self {
            kind,
            al,
            md_offset: start,
            al_offset: Sector(start.0 + BLOCK_SECTORS),
            al_size: al.size(),
            bm_offset: Sector(start.0 + before_bm),
            bm_size,
            md_size,
            data_size: data.min(capacity).min(Sectors(DEVICE_SECTORS_MAX)),
        }
    }

    /// Start of the AL relative to the superblock, in sectors, as the superblock says it.
    #[must_use]
    pub fn al_offset_rel(&self) -> i32 {
        relative(self.al_offset, self.md_offset)
    }

    /// Start of the bitmap relative to the superblock, in sectors, as the superblock says it.
    #[must_use]
    pub fn bm_offset_rel(&self) -> i32 {
        relative(self.bm_offset, self.md_offset)
    }

    /// `md_size` as the superblock says it.
    #[must_use]
    pub fn md_size_u32(&self) -> u32 {
        u32::try_from(self.md_size.0).unwrap_or(u32::MAX)
    }

    /// Byte position of the superblock.
    #[must_use]
    pub const fn superblock_byte(&self) -> u64 {
        self.md_offset.bytes()
    }

    /// Byte position of the AL block at ring position `position` (of transaction number `position`).
    #[must_use]
    pub const fn al_block_byte(&self, position: u32) -> u64 {
        self.al_offset.bytes() + self.al.block_at(position) as u64 * BLOCK_BYTES as u64
    }

    /// Byte position of bitmap page `page` (bits `32768 * page` and up); `None` outside the bitmap area.
    #[must_use]
    pub const fn bm_page_byte(&self, page: u64) -> Option<u64> {
        if page < self.bm_pages() { Some(self.bm_offset.bytes() + page * BLOCK_BYTES as u64) } else { None }
    }

    /// Pages of the whole bitmap area.
    #[must_use]
    pub const fn bm_pages(&self) -> u64 {
        self.bm_size.0 / BLOCK_SECTORS
    }

    /// First byte of the metadata on its device, and the number of bytes up to its end.
    #[must_use]
    pub const fn area(&self) -> (u64, u64) {
        let start = if self.kind.is_internal() { self.bm_offset } else { self.md_offset };
        (start.bytes(), self.md_size.bytes())
    }
}

/// Fits: every layout is bounded by [`DEVICE_SECTORS_MAX`] (bitmap 2^26 sectors) and [`AL_BLOCKS_MAX_READ`] (2^25).
fn relative(position: Sector, base: Sector) -> i32 {
    let distance = i32::try_from(position.0.abs_diff(base.0)).unwrap_or(i32::MAX);
    if position < base { -distance } else { distance }
}

const _: () = assert!(
    DEVICE_SECTORS_MAX / BM_SECTOR_DATA_SECTORS + AL_BLOCKS_MAX_READ as u64 * BLOCK_SECTORS + 16 < i32::MAX as u64,
    "offsets of internal metadata fit 32 bits"
);

/// Why there is no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The metadata device cannot hold the metadata.
    #[error("the metadata needs at least {needs} sectors, the device has {has}")]
    TooSmall {
        /// Size of the metadata device.
        has: Sectors,
        /// Smallest size that would do.
        needs: Sectors,
    },
    /// The device is larger than DRBD can address.
    #[error("the device has {has} sectors, the most is 2199023255552 (1 PiB)")]
    TooLarge {
        /// Size of the device.
        has: Sectors,
    },
    /// The ring is too small, too large, or only half given.
    #[error("invalid activity log striping: al_stripes={stripes}, al_stripe_size_4k={stripe_size_4k}")]
    AlStripes {
        /// Number of stripes.
        stripes: u32,
        /// Blocks per stripe.
        stripe_size_4k: u32,
    },
    /// Indexed metadata has a fixed geometry.
    #[error("indexed metadata must have al_stripes=1, al_stripe_size_4k=8")]
    IndexedStripes,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stripes(n: u32, size: u32) -> AlStripes {
        AlStripes::new(n, size).expect("valid stripes")
    }

    /// Backing bytes, ring, and the expected md_size and byte offsets and data size: metadata.md 3.2, measured.
    #[test]
    fn positions_are_absolute_and_striped() {
        let layout =
            Layout::new(MetaKind::Internal, stripes(3, 4), DeviceSizes::one(Sectors(1_048_576))).expect("fits");
        let offsets = [108, 109, 110, 111].map(|tr_number| layout.al_block_byte(tr_number));
        assert_eq!(offsets, [0, 4, 8, 1].map(|block| 536_817_664 + block * 4096));
        assert_eq!(layout.al_block_byte(1), 536_817_664 + 4 * 4096);
        assert_eq!(layout.superblock_byte(), 536_866_816);
        assert_eq!([0, 3, 4].map(|page| layout.bm_page_byte(page)), [Some(536_801_280), Some(536_813_568), None]);
    }

    #[test]
    fn internal_matches_the_measured_table() {
        let default = AlStripes::DEFAULT;
        for (bytes, al, md_size, sb, al_at, bm, data) in [
            (69_632, default, 80, 65_536, 32_768, 28_672, 56),
            (70_144, default, 80, 65_536, 32_768, 28_672, 56),
            (131_072, default, 80, 126_976, 94_208, 90_112, 176),
            (1_048_576, default, 80, 1_044_480, 1_011_712, 1_007_616, 1968),
            (67_108_864, default, 80, 67_104_768, 67_072_000, 67_067_904, 130_992),
            (67_112_448, default, 80, 67_104_768, 67_072_000, 67_067_904, 130_992),
            (134_217_728, default, 80, 134_213_632, 134_180_864, 134_176_768, 262_064),
            (1_073_741_824, default, 136, 1_073_737_728, 1_073_704_960, 1_073_672_192, 2_097_016),
            (1_073_745_920, default, 144, 1_073_741_824, 1_073_709_056, 1_073_672_192, 2_097_016),
            (10_737_418_240, default, 712, 10_737_414_144, 10_737_381_376, 10_737_053_696, 20_970_808),
            (
                1_099_511_627_776,
                default,
                65_608,
                1_099_511_623_680,
                1_099_511_590_912,
                1_099_478_036_480,
                2_147_418_040,
            ),
            (536_870_912, stripes(3, 4), 136, 536_866_816, 536_817_664, 536_801_280, 1_048_440),
            (67_108_864, stripes(2, 8), 144, 67_104_768, 67_039_232, 67_035_136, 130_928),
            (67_108_864, stripes(4, 8), 272, 67_104_768, 66_973_696, 66_969_600, 130_800),
        ] {
            let layout = Layout::new(MetaKind::Internal, al, DeviceSizes::one(Sectors::from_bytes_floor(bytes)))
                .expect("large enough");
            let got = (
                layout.md_size.0,
                layout.md_offset.bytes(),
                layout.al_offset.bytes(),
                layout.bm_offset.bytes(),
                layout.data_size.0,
            );
            assert_eq!(got, (md_size, sb, al_at, bm, data), "{bytes} bytes");
        }
    }

    #[test]
    fn external_matches_the_measured_table() {
        let huge = Sectors(1 << 41);
        for (bytes, kind, md_size, al_at, bm, data) in [
            (69_632, MetaKind::FlexExternal, 136, 4096, 36_864, 2_097_152),
            (70_144, MetaKind::FlexExternal, 137, 4096, 36_864, 2_097_152),
            (1_048_576, MetaKind::FlexExternal, 2048, 4096, 36_864, 64_749_568),
            (4_194_304, MetaKind::FlexExternal, 8192, 4096, 36_864, 266_076_160),
            (134_217_728, MetaKind::FlexExternal, 262_144, 4096, 36_864, 8_587_575_296),
            (268_435_456, MetaKind::FlexExternal, 524_288, 4096, 36_864, 17_177_509_888),
            (268_435_456, MetaKind::Indexed(1), 262_144, 134_221_824, 134_254_592, 8_587_575_296),
        ] {
            let sizes = DeviceSizes { meta: Sectors::from_bytes_floor(bytes), data: huge };
            let layout = Layout::new(kind, AlStripes::DEFAULT, sizes).expect("large enough");
            let got = (layout.md_size.0, layout.al_offset.bytes(), layout.bm_offset.bytes(), layout.data_size.0);
            assert_eq!(got, (md_size, al_at, bm, data), "{bytes} bytes");
            let small = Layout::new(kind, AlStripes::DEFAULT, DeviceSizes { data: Sectors(1000), ..sizes });
            assert_eq!(small.map(|l| l.data_size), Ok(Sectors(1000)));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_size_that_would_do() {
        let one = |n| DeviceSizes::one(Sectors(n));
        assert_eq!(
            Layout::new(MetaKind::Internal, AlStripes::DEFAULT, one(135)),
            Err(LayoutError::TooSmall { has: Sectors(135), needs: Sectors(136) })
        );
        let err = Layout::new(MetaKind::Internal, stripes(4, 8), one(195));
        assert_eq!(err, Err(LayoutError::TooSmall { has: Sectors(195), needs: Sectors(272) }));
        assert!(Layout::new(MetaKind::Internal, stripes(4, 8), one(272)).is_ok());
        assert_eq!(
            Layout::new(MetaKind::Indexed(1), AlStripes::DEFAULT, one(262_144)),
            Err(LayoutError::TooSmall { has: Sectors(262_144), needs: Sectors(524_288) })
        );
        assert_eq!(Layout::new(MetaKind::Indexed(0), stripes(2, 8), one(1 << 30)), Err(LayoutError::IndexedStripes));
        assert!(matches!(
            Layout::new(MetaKind::Internal, AlStripes::DEFAULT, one(u64::MAX)),
            Err(LayoutError::TooLarge { .. })
        ));
    }

    #[test]
    fn stripes_are_bounded_and_0_0_is_the_default() {
        assert!(AlStripes::new(1, 7).is_err());
        assert!(AlStripes::new(0, 0).is_err());
        assert!(AlStripes::new(1024, 9).is_err());
        assert!(AlStripes::new(u32::MAX, u32::MAX).is_err());
        assert_eq!(AlStripes::from_disk(0, 0), Ok(AlStripes::DEFAULT));
        assert!(AlStripes::from_disk(0, 8).is_err());
        assert!(AlStripes::from_disk(1024, 9).is_ok());
    }

    #[test]
    fn transactions_alternate_between_stripes() {
        let al = stripes(3, 4);
        assert_eq!([108, 109, 110, 111, 112].map(|t| al.block_at(t)), [0, 4, 8, 1, 5]);
        let mut blocks: Vec<_> = (0..12).map(|t| al.block_at(t)).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn al_extents_are_capped_by_the_ring() {
        assert_eq!(AlStripes::DEFAULT.clamp_al_extents(65_000), 6433);
        assert_eq!(AlStripes::DEFAULT.clamp_al_extents(1), 67);
        assert_eq!(stripes(1, 72).al_extents_max(), 65_249);
        assert_eq!(stripes(1, 73).al_extents_max(), 65_534);
    }

    #[test]
    fn kinds_have_drbdmetas_names() {
        for kind in [MetaKind::Internal, MetaKind::FlexExternal, MetaKind::Indexed(7)] {
            assert_eq!(MetaKind::from_text(&kind.to_string()), Some(kind));
        }
        assert_eq!(MetaKind::from_text("256"), None);
    }

    proptest! {
        #[test]
        fn the_reverse_is_the_smallest_device(data in 1_u64..1 << 35, n in 1_u32..20, size in 8_u32..100) {
            let al = stripes(n, size);
            let device = Layout::internal_device_for(Sectors(data), al);
            let offers = |s: u64| Layout::new(MetaKind::Internal, al, DeviceSizes::one(Sectors(s))).map_or(0, |l| l.data_size.0);
            prop_assert!(device.bytes() < DEVICE_BYTES_MIN || offers(device.0) >= data);
            prop_assert!(offers(device.0 - 8) < data);

            let meta = Layout::flexible_device_for(Sectors(data), al);
            let layout = Layout::new(MetaKind::FlexExternal, al, DeviceSizes { meta, data: Sectors(data) });
            prop_assert_eq!(layout.map(|l| l.data_size), Ok(Sectors(data)));
        }

        #[test]
        fn areas_do_not_overlap_and_fit(device in 0_u64..1 << 41, n in 1_u32..40, size in 8_u32..200) {
            let sizes = DeviceSizes::one(Sectors(device));
            for kind in [MetaKind::Internal, MetaKind::FlexExternal] {
                let Ok(l) = Layout::new(kind, stripes(n, size), sizes) else { continue };
                let mut areas = [
                    (l.md_offset.0, BLOCK_SECTORS), (l.al_offset.0, l.al_size.0), (l.bm_offset.0, l.bm_size.0),
                ];
                areas.sort_unstable();
                prop_assert!(areas.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
                prop_assert!(areas[2].0 + areas[2].1 <= device);
                prop_assert!(l.data_size.bm_bits().div_ceil(8) <= l.bm_size.bytes());
            }
        }
    }
}
