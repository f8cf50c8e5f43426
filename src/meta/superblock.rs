//! The superblock: 4096 big-endian bytes with size, generation identifiers, flags and geometry.
//!
//! Takes in: a block read from disk, as [`Unverified`]; gives out: a [`Superblock`] whose geometry is the one that the
//! devices' sizes imply, or the reason why not; and the block to write. Invariants: encoding is total, reserved bytes
//! are written as zero and ignored when read; there is no checksum. Spec: metadata.md 2 and 13.

use std::fmt;

use super::layout::{AlStripes, BLOCK_BYTES, DeviceSizes, Layout, LayoutError, MetaKind};
use crate::units::{GenId, Sectors};

/// Magic at offset 60 of DRBD 0.6's metadata.
pub const MAGIC_V06: u32 = 0x8374_0269;
/// Magic of DRBD 0.7's metadata; genuine ones have it at offset 28.
pub const MAGIC_V07: u32 = 0x8374_026a;
/// Magic that `drbdmeta` writes; clean only together with [`MdFlags::AL_CLEAN`].
pub const MAGIC_V08: u32 = 0x8374_026b;
/// Magic that a node writes while attached: the activity log must be applied first.
pub const MAGIC_V08_UNCLEAN: u32 = 0x8374_026c;
/// Magic of DRBD 9's metadata.
pub const MAGIC_V09: u32 = 0x8374_026d;

/// Device bytes per bitmap bit; v08 knows no other.
pub const BYTES_PER_BIT: u32 = 4096;
/// `al_nr_extents` in fresh metadata.
pub const AL_EXTENTS_FRESH: u32 = 257;
/// Largest `la_peer_max_bio_size` that can be given at creation, in bytes.
pub const PEER_MAX_BIO_SIZE_MAX: u32 = 1 << 20;

/// One block as it lies on the disk.
pub type Block = [u8; BLOCK_BYTES];

/// The flags word ("MDF_*"). Bits without a name are ignored when read and written as 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MdFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)+) => {
        impl MdFlags {
            $($(#[$doc])* pub const $name: Self = Self($bit);)+
            /// Every named bit.
            pub const ALL: Self = Self($($bit)|+);
            const NAMES: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name)),)+];
        }
    };
}

flags! {
    /// The local data was better than Inconsistent.
    CONSISTENT = 0x001;
    /// This node was Primary: writes may have been in flight, the activity log is relevant.
    PRIMARY_IND = 0x002;
    /// There was a connection past the handshake.
    CONNECTED_IND = 0x004;
    /// The bitmap on disk is not trustworthy: treat all bits as set.
    FULL_SYNC = 0x008;
    /// The disk state was better than Outdated.
    WAS_UP_TO_DATE = 0x010;
    /// The peer's disk was known to be Inconsistent or Outdated.
    PEER_OUT_DATED = 0x020;
    /// This node crashed as Primary and has not been in sync with its peer since.
    CRASHED_PRIMARY = 0x040;
    /// The activity log is applied or initialised.
    AL_CLEAN = 0x080;
    /// The activity log was not maintained ("al-updates no").
    AL_DISABLED = 0x100;
}

impl MdFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// The named bits of `bits`.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The word on disk.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags but those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// These flags with those of `other` set or cleared.
    #[must_use]
    pub const fn set_to(self, other: Self, on: bool) -> Self {
        if on { self.with(other) } else { self.without(other) }
    }
}

impl std::ops::BitOr for MdFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl fmt::Debug for MdFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05x}", self.0)?;
        f.debug_list().entries(Self::NAMES.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, n)| n)).finish()
    }
}

/// Which format the magic numbers of a block say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MagicKind {
    /// v08, written by the tool.
    V08,
    /// v08, written by a node while attached.
    V08Unclean,
    /// DRBD 0.7, at offset 28 or 60.
    V07,
    /// DRBD 9.
    V09,
    /// Nothing we know.
    Unknown,
}

/// The fields of a block that may be a superblock; any 4096 bytes decode to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// Last agreed size, in sectors.
    pub la_size_sect: u64,
    /// Current, bitmap, younger and older history identifier.
    pub uuid: [u64; 4],
    /// Random label of the metadata.
    pub device_uuid: u64,
    /// All 32 bits of the flags word.
    pub flags: u32,
    /// The word at offset 60.
    pub magic: u32,
    /// Size of the metadata, in sectors.
    pub md_size_sect: u32,
    /// Start of the AL relative to the superblock, in sectors.
    pub al_offset: i32,
    /// Slots of the active set of the last writer.
    pub al_nr_extents: u32,
    /// Start of the bitmap relative to the superblock, in sectors.
    pub bm_offset: i32,
    /// Device bytes per bitmap bit.
    pub bm_bytes_per_bit: u32,
    /// Largest request that the peer last took, in bytes.
    pub la_peer_max_bio_size: u32,
    /// AL stripes; 0 from DRBD 8.3.
    pub al_stripes: u32,
    /// AL blocks per stripe; 0 from DRBD 8.3.
    pub al_stripe_size_4k: u32,
    /// The word at offset 28, where DRBD 0.7 has its magic (part of a history identifier in v08).
    pub word_28: u32,
}

fn be32(block: &Block, at: usize) -> u32 {
    block.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be64(block: &Block, at: usize) -> u64 {
    block.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Unverified {
    /// Reads the fields; never fails, says nothing about validity.
    #[must_use]
    pub fn decode(block: &Block) -> Self {
        Self {
            la_size_sect: be64(block, 0),
            uuid: [be64(block, 8), be64(block, 16), be64(block, 24), be64(block, 32)],
            device_uuid: be64(block, 40),
            flags: be32(block, 56),
            magic: be32(block, 60),
            md_size_sect: be32(block, 64),
            al_offset: be32(block, 68).cast_signed(),
            al_nr_extents: be32(block, 72),
            bm_offset: be32(block, 76).cast_signed(),
            bm_bytes_per_bit: be32(block, 80),
            la_peer_max_bio_size: be32(block, 84),
            al_stripes: be32(block, 88),
            al_stripe_size_4k: be32(block, 92),
            word_28: be32(block, 28),
        }
    }

    /// What the magic numbers say.
    #[must_use]
    pub const fn magic_kind(&self) -> MagicKind {
        match self.magic {
            MAGIC_V08 => MagicKind::V08,
            MAGIC_V08_UNCLEAN => MagicKind::V08Unclean,
            MAGIC_V09 => MagicKind::V09,
            MAGIC_V07 => MagicKind::V07,
            0 if self.word_28 == MAGIC_V07 => MagicKind::V07,
            _ => MagicKind::Unknown,
        }
    }

    /// Checks everything but the sizes: magic, bytes per bit, stripes.
    ///
    /// # Errors
    /// The first of [`SuperblockError`]'s reasons that applies, in the kernel's order.
    pub fn check(&self) -> Result<Superblock, SuperblockError> {
        let unclean_magic = match self.magic_kind() {
            MagicKind::V08 => false,
            MagicKind::V08Unclean => true,
            MagicKind::V07 => return Err(SuperblockError::V07),
            MagicKind::V09 => return Err(SuperblockError::V09),
            MagicKind::Unknown => return Err(SuperblockError::Magic { found: self.magic }),
        };
        if self.bm_bytes_per_bit != BYTES_PER_BIT {
            return Err(SuperblockError::BytesPerBit { found: self.bm_bytes_per_bit });
        }
        let al = AlStripes::from_disk(self.al_stripes, self.al_stripe_size_4k).map_err(SuperblockError::Layout)?;
        let [current, bitmap, younger, older] = self.uuid.map(GenId);
        Ok(Superblock {
            effective_size: Sectors(self.la_size_sect),
            current,
            bitmap,
            history: [younger, older],
            device_uuid: self.device_uuid,
            flags: MdFlags::from_bits(self.flags),
            unclean_magic,
            md_size_sect: self.md_size_sect,
            al_offset: self.al_offset,
            al_extents: self.al_nr_extents,
            bm_offset: self.bm_offset,
            bm_bytes_per_bit: self.bm_bytes_per_bit,
            la_peer_max_bio_size: self.la_peer_max_bio_size,
            al_stripes: al.stripes(),
            al_stripe_size_4k: al.stripe_size_4k(),
        })
    }

    /// Checks everything: as [`check`](Self::check), and that the geometry is exactly the one for these devices (as
    /// `drbdmeta` does; the kernel is laxer). The agreed size is not checked, see [`Superblock::excess_size`].
    ///
    /// # Errors
    /// The first of [`SuperblockError`]'s reasons that applies.
    pub fn verify(&self, kind: MetaKind, sizes: DeviceSizes) -> Result<(Superblock, Layout), SuperblockError> {
        let superblock = self.check()?;
        let layout = Layout::new(kind, superblock.al()?, sizes)?;
        superblock.check_offsets(&layout)?;
        Ok((superblock, layout))
    }
}

/// What the superblock says, after its checks. All fields may be changed freely; [`Superblock::set_layout`] keeps the
/// geometry consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Last agreed size of the replicated device ("la-size"); 0 before the first attach.
    pub effective_size: Sectors,
    /// Current data generation.
    pub current: GenId,
    /// Generation that the bitmap is relative to; unset when in sync.
    pub bitmap: GenId,
    /// Younger and older history.
    pub history: [GenId; 2],
    /// Random label of this metadata; 0 when never assigned.
    pub device_uuid: u64,
    /// The flags.
    pub flags: MdFlags,
    /// Whether the magic is the one that a node writes while attached ("unclean").
    pub unclean_magic: bool,
    /// Size of the whole metadata area, in sectors.
    pub md_size_sect: u32,
    /// Start of the AL relative to the superblock, in sectors.
    pub al_offset: i32,
    /// Slots of the active set of the last writer; informational.
    pub al_extents: u32,
    /// Start of the bitmap relative to the superblock, in sectors.
    pub bm_offset: i32,
    /// Device bytes per bitmap bit, 4096.
    pub bm_bytes_per_bit: u32,
    /// Largest request that the peer last took, in bytes; 0 when never connected.
    pub la_peer_max_bio_size: u32,
    /// AL stripes.
    pub al_stripes: u32,
    /// AL blocks of 4 KiB per stripe.
    pub al_stripe_size_4k: u32,
}

impl Superblock {
    /// Fresh metadata for `layout`: just created, clean, no agreed size. `device_uuid` is a random number of the
    /// caller's (drbdmeta itself leaves 0).
    #[must_use]
    pub fn create(layout: &Layout, device_uuid: u64) -> Self {
        Self {
            effective_size: Sectors(0),
            current: GenId::JUST_CREATED,
            bitmap: GenId::UNSET,
            history: [GenId::UNSET; 2],
            device_uuid,
            flags: MdFlags::AL_CLEAN,
            unclean_magic: false,
            md_size_sect: layout.md_size_u32(),
            al_offset: layout.al_offset_rel(),
            al_extents: AL_EXTENTS_FRESH,
            bm_offset: layout.bm_offset_rel(),
            bm_bytes_per_bit: BYTES_PER_BIT,
            la_peer_max_bio_size: 0,
            al_stripes: layout.al.stripes(),
            al_stripe_size_4k: layout.al.stripe_size_4k(),
        }
    }

    /// Takes over the geometry of `layout`.
    pub fn set_layout(&mut self, layout: &Layout) {
        self.md_size_sect = layout.md_size_u32();
        self.al_offset = layout.al_offset_rel();
        self.bm_offset = layout.bm_offset_rel();
        self.al_stripes = layout.al.stripes();
        self.al_stripe_size_4k = layout.al.stripe_size_4k();
    }

    /// The four identifiers in their order on disk and on the wire: current, bitmap, younger, older history.
    #[must_use]
    pub const fn uuids(&self) -> [GenId; 4] {
        [self.current, self.bitmap, self.history[0], self.history[1]]
    }

    /// The ring that the stripe fields say.
    ///
    /// # Errors
    /// [`LayoutError::AlStripes`] when the fields were set to something impossible.
    pub const fn al(&self) -> Result<AlStripes, LayoutError> {
        AlStripes::from_disk(self.al_stripes, self.al_stripe_size_4k)
    }

    /// Whether the activity log needs no replay.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        !self.unclean_magic && self.flags.contains(MdFlags::AL_CLEAN)
    }

    /// Says that the activity log is applied and initialised.
    pub const fn set_clean(&mut self) {
        self.unclean_magic = false;
        self.flags = self.flags.with(MdFlags::AL_CLEAN);
    }

    /// Says that the activity log is in use, as an attached node must.
    pub const fn set_unclean(&mut self) {
        self.unclean_magic = true;
        self.flags = self.flags.without(MdFlags::AL_CLEAN);
    }

    /// The agreed size, when it is larger than `layout` can hold. Tools then work with the layout's size; an attach
    /// refuses consistent data.
    #[must_use]
    pub fn excess_size(&self, layout: &Layout) -> Option<Sectors> {
        (self.effective_size > layout.data_size).then_some(self.effective_size)
    }

    /// Checks that the offsets are those of `layout`.
    ///
    /// # Errors
    /// [`SuperblockError::Offset`] with the first field that differs. The area's size is checked for internal metadata
    /// only: that of a grown metadata device is picked up silently.
    pub fn check_offsets(&self, layout: &Layout) -> Result<(), SuperblockError> {
        let fields = [
            (OffsetField::AlOffset, i64::from(self.al_offset), i64::from(layout.al_offset_rel())),
            (OffsetField::BmOffset, i64::from(self.bm_offset), i64::from(layout.bm_offset_rel())),
            (OffsetField::MdSize, i64::from(self.md_size_sect), i64::from(layout.md_size_u32())),
        ];
        for (field, found, expected) in fields {
            if found != expected && (field != OffsetField::MdSize || layout.kind.is_internal()) {
                return Err(SuperblockError::Offset { kind: layout.kind, field, found, expected });
            }
        }
        Ok(())
    }

    /// The block to write.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(room) = block.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(&self.effective_size.0.to_be_bytes());
        for uuid in self.uuids() {
            put(&uuid.0.to_be_bytes());
        }
        put(&self.device_uuid.to_be_bytes());
        put(&[0; 8]);
        put(&self.flags.bits().to_be_bytes());
        put(&if self.unclean_magic { MAGIC_V08_UNCLEAN } else { MAGIC_V08 }.to_be_bytes());
        put(&self.md_size_sect.to_be_bytes());
        put(&self.al_offset.to_be_bytes());
        put(&self.al_extents.to_be_bytes());
        put(&self.bm_offset.to_be_bytes());
        put(&self.bm_bytes_per_bit.to_be_bytes());
        put(&self.la_peer_max_bio_size.to_be_bytes());
        put(&self.al_stripes.to_be_bytes());
        put(&self.al_stripe_size_4k.to_be_bytes());
        block
    }
}

/// A geometry field of the superblock, by its name in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetField {
    /// `al_offset`
    AlOffset,
    /// `bm_offset`
    BmOffset,
    /// `md_size_sect`
    MdSize,
}

/// Why a block is no superblock of ours. `Display` gives drbdmeta's words where it has some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// No magic that we know.
    #[error("v08 Magic number not found")]
    Magic {
        /// The word at offset 60.
        found: u32,
    },
    /// DRBD 0.7's metadata.
    #[error("found old (0.7) meta data magic")]
    V07,
    /// DRBD 9's metadata.
    #[error("found v09 meta data magic")]
    V09,
    /// A granularity that v08 does not have.
    #[error("unexpected bm_bytes_per_bit: {found} (expected 4096)")]
    BytesPerBit {
        /// The value found.
        found: u32,
    },
    /// Impossible stripes, or a device that is too small for this metadata.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The geometry belongs to a device of another size, or to another placement.
    #[error("{}", offset_text(*.kind, *.field, *.found, *.expected))]
    Offset {
        /// The placement that was asked for.
        kind: MetaKind,
        /// The field.
        field: OffsetField,
        /// Its value, in sectors.
        found: i64,
        /// The value for these devices.
        expected: i64,
    },
}

fn offset_text(kind: MetaKind, field: OffsetField, found: i64, expected: i64) -> String {
    match (kind.is_internal(), field) {
        (true, OffsetField::AlOffset) => format!("v08 al_offset: expected {expected}, found {found}"),
        (true, OffsetField::BmOffset) => format!("strange bm_offset {found} (expected: {expected})"),
        (_, OffsetField::MdSize) => format!("strange md_size_sect {found} (expected: {expected})"),
        (false, OffsetField::AlOffset) => {
            format!("v08 Magic number (al_offset) not found\n\texpected: {expected}, found {found}")
        }
        (false, OffsetField::BmOffset) => format!("v08 bm_offset: expected {expected}, found {found}"),
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;

    const SIZE: Sectors = Sectors(131_072);

    fn fresh() -> Superblock {
        let layout = Layout::new(MetaKind::Internal, AlStripes::DEFAULT, DeviceSizes::one(SIZE)).expect("fits");
        Superblock::create(&layout, 7)
    }

    fn verify(superblock: &Superblock) -> Result<(Superblock, Layout), SuperblockError> {
        Unverified::decode(&superblock.encode()).verify(MetaKind::Internal, DeviceSizes::one(SIZE))
    }

    /// metadata.md 2.1: written by the kernel on a 64 MiB device.
    #[test]
    fn the_worked_hexdump_decodes_and_encodes() {
        let mut block = [0; BLOCK_BYTES];
        block[..96].copy_from_slice(&hex!(
            "00000000 0001ffb0 11223344 55667788 00000000 00000000 00000000 00000000"
            "00000000 00000000 00000000 00000000 00000000 00000000 00000031 8374026c"
            "00000050 ffffffc0 000004d5 ffffffb8 00001000 00001000 00000001 00000008"
        ));
        let (superblock, layout) =
            Unverified::decode(&block).verify(MetaKind::Internal, DeviceSizes::one(SIZE)).expect("valid");
        assert_eq!(superblock.effective_size, Sectors(130_992));
        assert_eq!(superblock.effective_size, layout.data_size);
        assert_eq!(superblock.current, GenId(0x1122_3344_5566_7788));
        let flags = MdFlags::CONSISTENT | MdFlags::WAS_UP_TO_DATE | MdFlags::PEER_OUT_DATED;
        assert_eq!(superblock.flags, flags);
        assert!(superblock.unclean_magic && !superblock.is_clean());
        assert_eq!((superblock.al_extents, superblock.la_peer_max_bio_size), (1237, 4096));
        assert_eq!(superblock.encode(), block);
    }

    #[test]
    fn clean_needs_magic_and_flag() {
        let mut superblock = fresh();
        assert!(superblock.is_clean());
        superblock.flags = MdFlags::NONE;
        assert!(!superblock.is_clean());
        superblock.set_clean();
        assert!(superblock.is_clean());
        superblock.unclean_magic = true;
        assert!(!superblock.is_clean());
        superblock.set_unclean();
        assert_eq!(superblock.flags, MdFlags::NONE);
    }

    #[test]
    fn every_failure_has_its_error() {
        assert_eq!(Unverified::decode(&[0; BLOCK_BYTES]).check(), Err(SuperblockError::Magic { found: 0 }));
        let with_word = |at: usize, word: u32| {
            let mut block = fresh().encode();
            block[at..at + 4].copy_from_slice(&word.to_be_bytes());
            Unverified::decode(&block).verify(MetaKind::Internal, DeviceSizes::one(SIZE)).map(|_| ())
        };
        assert_eq!(with_word(60, MAGIC_V07), Err(SuperblockError::V07));
        assert_eq!(with_word(60, MAGIC_V09), Err(SuperblockError::V09));
        assert_eq!(with_word(60, MAGIC_V06), Err(SuperblockError::Magic { found: MAGIC_V06 }));
        assert_eq!(with_word(80, 8192), Err(SuperblockError::BytesPerBit { found: 8192 }));
        let stripes = LayoutError::AlStripes { stripes: 0, stripe_size_4k: 8 };
        assert_eq!(with_word(88, 0), Err(SuperblockError::Layout(stripes)));
        let texts = [
            (68, 8, "v08 al_offset: expected -64, found 8"),
            (76, 80_u32.wrapping_neg(), "strange bm_offset -80 (expected: -72)"),
            (64, 88, "strange md_size_sect 88 (expected: 80)"),
        ];
        for (at, word, text) in texts {
            assert_eq!(with_word(at, word).map_err(|e| e.to_string()), Err(text.to_owned()));
        }
        assert_eq!(with_word(56, 0xffff_fe80), Ok(()));
    }

    #[test]
    fn a_v07_superblock_has_its_magic_elsewhere() {
        let mut block = [0; BLOCK_BYTES];
        block[28..32].copy_from_slice(&MAGIC_V07.to_be_bytes());
        assert_eq!(Unverified::decode(&block).check(), Err(SuperblockError::V07));
    }

    #[test]
    fn stripes_of_8_3_are_the_default() {
        let mut superblock = fresh();
        (superblock.al_stripes, superblock.al_stripe_size_4k) = (0, 0);
        let (superblock, _) = verify(&superblock).expect("valid");
        assert_eq!((superblock.al_stripes, superblock.al_stripe_size_4k), (1, 8));
    }

    #[test]
    fn a_grown_metadata_device_is_accepted_and_a_moved_end_is_not() {
        let sizes = |meta| DeviceSizes { meta: Sectors(meta), data: Sectors(1 << 20) };
        let layout = Layout::new(MetaKind::FlexExternal, AlStripes::DEFAULT, sizes(4096)).expect("fits");
        let block = Superblock::create(&layout, 0).encode();
        let verify = |kind, sizes| Unverified::decode(&block).verify(kind, sizes).map(|(_, layout)| layout.md_size);
        assert_eq!(verify(MetaKind::FlexExternal, sizes(8192)), Ok(Sectors(8192)));
        assert!(verify(MetaKind::Internal, sizes(4096)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), BLOCK_BYTES), magic in any::<bool>()) {
            let mut block = Block::try_from(bytes).expect("4096 bytes");
            if magic {
                block[60..64].copy_from_slice(&MAGIC_V08.to_be_bytes());
                block[80..84].copy_from_slice(&BYTES_PER_BIT.to_be_bytes());
            }
            for kind in [MetaKind::Internal, MetaKind::FlexExternal, MetaKind::Indexed(255)] {
                let _ = Unverified::decode(&block).verify(kind, DeviceSizes::one(SIZE));
            }
        }

        #[test]
        fn what_was_encoded_decodes(
            size in any::<u64>(), uuids in any::<[u64; 5]>(), words in any::<[u32; 4]>(), al_offset in any::<i32>(),
            bm_offset in any::<i32>(), unclean in any::<bool>(), stripes in 1_u32..1000, stripe_size in 8_u32..4000,
        ) {
            let superblock = Superblock {
                effective_size: Sectors(size),
                current: GenId(uuids[0]),
                bitmap: GenId(uuids[1]),
                history: [GenId(uuids[2]), GenId(uuids[3])],
                device_uuid: uuids[4],
                flags: MdFlags::from_bits(words[0]),
                unclean_magic: unclean,
                md_size_sect: words[1],
                al_offset,
                al_extents: words[2],
                bm_offset,
                bm_bytes_per_bit: BYTES_PER_BIT,
                la_peer_max_bio_size: words[3],
                al_stripes: stripes,
                al_stripe_size_4k: stripe_size,
            };
            prop_assert_eq!(Unverified::decode(&superblock.encode()).check(), Ok(superblock));
        }
    }
}
