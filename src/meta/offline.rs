//! What an administrator does to metadata while no node has it attached: open, look, edit, apply the log, wipe.
//!
//! Takes in a [`MetaIo`] and the placement; gives out what was read or done. Never asks anybody. Whether the device is
//! in use is the caller's business. Invariant: whatever a superblock relies on is durable before the superblock is
//! written. Spec: metadata.md 5, 8 and 11.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;

use super::al_transaction::{AlBlock, initialized_block};
use super::bitmap::{self, AL_EXTENT_BITS};
use super::error::MetaError;
use super::layout::{ATTACH_SECTORS_MIN, BLOCK_BYTES, DeviceSizes, Layout, LayoutError, MetaKind};
use super::recover::{self, ActiveSet, NoUsableLog, ReplayRange, RingScan, RingState, SlotOutOfRange};
use super::store::{MetaIo, read_block};
use super::superblock::{Block, MdFlags, Superblock, Unverified};
use super::text::dump::{self, AlListing, BitmapListing, DumpHeader, Relocated};
use super::text::{gi, human_kib};
use crate::limits::DEVICE_SECTORS_MAX;
use crate::units::{AlExtent, Sectors};

/// Where metadata is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The placement.
    pub kind: MetaKind,
    /// Size of the data device, if known; `None` for external metadata looked at without its data device. For internal
    /// metadata the device itself says it.
    pub data: Option<Sectors>,
}

impl Place {
    /// Internal metadata.
    pub const INTERNAL: Self = Self { kind: MetaKind::Internal, data: None };

    /// The sizes that a layout on `io` is computed from.
    pub(crate) fn sizes(self, io: &dyn MetaIo) -> DeviceSizes {
        let meta = Sectors::from_bytes_floor(io.size_bytes());
        if self.kind.is_internal() {
            return DeviceSizes::one(meta);
        }
        DeviceSizes { meta, data: self.data.unwrap_or(Sectors(DEVICE_SECTORS_MAX)) }
    }

    /// Position where a superblock would be, in bytes, if it lies inside the device.
    pub(super) fn superblock_byte(self, io: &dyn MetaIo) -> Result<u64, LayoutError> {
        // Whatever the stripes are, the superblock is at the same place.
        Ok(Layout::new(self.kind, super::AlStripes::DEFAULT, self.sizes(io))?.superblock_byte())
    }
}

/// Metadata that was found and is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenMeta {
    /// What it says; its agreed size is clipped to what the layout can hold.
    pub superblock: Superblock,
    /// Where it lies.
    pub layout: Layout,
    /// The agreed size on disk, if it was clipped.
    pub claimed_size: Option<Sectors>,
}

pub(super) fn io_error(what: &'static str, offset: u64) -> impl Fn(std::io::Error) -> MetaError {
    move |source| MetaError::Io { what, offset, source }
}

pub(super) fn read(io: &mut dyn MetaIo, what: &'static str, offset: u64) -> Result<Block, MetaError> {
    read_block(io, offset).map_err(io_error(what, offset))
}

pub(super) fn write(io: &mut dyn MetaIo, what: &'static str, offset: u64, block: &[u8]) -> Result<(), MetaError> {
    io.write_at(offset, block).map_err(io_error(what, offset))
}

pub(super) fn flush(io: &mut dyn MetaIo) -> Result<(), MetaError> {
    io.flush().map_err(io_error("flush", 0))
}

/// Fills the whole ring with initialised blocks; not flushed.
pub(super) fn reset_ring(io: &mut dyn MetaIo, layout: &Layout) -> Result<(), MetaError> {
    let block = initialized_block();
    for position in 0..layout.al.blocks() {
        write(io, "write activity log", layout.al_block_byte(position), &block)?;
    }
    Ok(())
}

/// Writes the superblock durably, after everything that was written before it.
///
/// # Errors
/// [`MetaError::Io`]
pub fn write_superblock(io: &mut dyn MetaIo, layout: &Layout, superblock: &Superblock) -> Result<(), MetaError> {
    flush(io)?;
    write(io, "write superblock", layout.superblock_byte(), &superblock.encode())?;
    flush(io)
}

/// Reads and checks the superblock.
///
/// # Errors
/// [`MetaError::NoMetadata`] when there is none for a device of this size, [`MetaError::Layout`] when the device is too
/// small to have any, [`MetaError::Io`].
pub fn open(io: &mut dyn MetaIo, place: Place) -> Result<OpenMeta, MetaError> {
    let offset = place.superblock_byte(io)?;
    let block = read(io, "read superblock", offset)?;
    let (mut superblock, layout) =
        Unverified::decode(&block).verify(place.kind, place.sizes(io)).map_err(MetaError::NoMetadata)?;
    let claimed_size = superblock.excess_size(&layout);
    if claimed_size.is_some() {
        superblock.effective_size = layout.data_size;
    }
    Ok(OpenMeta { superblock, layout, claimed_size })
}

impl OpenMeta {
    /// The comment that drbdmeta prints before anything else when the agreed size had to be clipped; empty otherwise.
    #[must_use]
    pub fn excess_comment(&self) -> String {
        self.claimed_size.map_or_else(String::new, |claimed| dump::excess_comment(claimed, self.layout.data_size))
    }

    /// Pages of the bitmap that the agreed size uses.
    #[must_use]
    pub fn pages_used(&self) -> u64 {
        bitmap::pages_for(self.superblock.effective_size.bm_bits()).min(self.layout.bm_pages())
    }

    /// Looks at every block of the ring.
    ///
    /// # Errors
    /// [`MetaError::Io`]
    pub fn scan_ring(&self, io: &mut dyn MetaIo) -> Result<RingState, MetaError> {
        let mut scan = RingScan::new(self.layout.al);
        for position in 0..self.layout.al.blocks() {
            scan.push(&read(io, "read activity log", self.layout.al_block_byte(position))?);
        }
        Ok(scan.finish())
    }

    /// Replays transactions into a set of hot extents.
    ///
    /// # Errors
    /// [`MetaError::Io`]
    pub fn replay(&self, io: &mut dyn MetaIo, range: ReplayRange) -> Result<Hot, MetaError> {
        let mut set = ActiveSet::default();
        let mut skipped_slots = Vec::new();
        for position in range.positions() {
            let block = read(io, "read activity log", self.layout.al_block_byte(position))?;
            if let Ok(AlBlock::Update(transaction)) = AlBlock::decode(&block) {
                skipped_slots.extend(set.replay(&transaction));
            }
        }
        Ok(Hot { extents: set.extents(), skipped_slots })
    }

    /// Dumps superblock and bitmap (`dump-md`), and the activity log if `with_al`. The comment about a clipped size
    /// comes first.
    ///
    /// # Errors
    /// [`MetaError::Unclean`] without `force` for unclean metadata (with it, print [`dump::UNCLEAN_WARNING`] on stderr),
    /// [`MetaError::Io`], [`MetaError::Output`].
    pub fn dump(
        &self,
        io: &mut dyn MetaIo,
        out: &mut dyn Write,
        header: &DumpHeader<'_>,
        options: DumpOptions<'_>,
    ) -> Result<(), MetaError> {
        if !self.superblock.is_clean() && !options.force {
            return Err(MetaError::Unclean);
        }
        out.write_all(self.excess_comment().as_bytes()).map_err(MetaError::Output)?;
        dump::render_head(out, header, &self.superblock, &self.layout, options.relocated).map_err(MetaError::Output)?;
        let mut listing = BitmapListing::default();
        for page in 0..self.pages_used() {
            let offset = self.layout.bm_offset.bytes() + page * BLOCK_BYTES as u64;
            let block = read(io, "read bitmap", offset)?;
            listing.push(out, &block).map_err(MetaError::Output)?;
        }
        listing.finish(out).map_err(MetaError::Output)?;
        if options.with_al {
            let mut listing = AlListing::start(out).map_err(MetaError::Output)?;
            for index in 0..u64::from(self.layout.al.blocks()) {
                let offset = self.layout.al_offset.bytes() + index * BLOCK_BYTES as u64;
                listing.push(out, &read(io, "read activity log", offset)?).map_err(MetaError::Output)?;
            }
            listing.finish(out, &self.superblock).map_err(MetaError::Output)?;
        }
        Ok(())
    }

    /// The output of `get-gi`.
    #[must_use]
    pub fn get_gi(&self) -> String {
        gi::get_gi(&self.superblock)
    }

    /// The output of `show-gi`.
    #[must_use]
    pub fn show_gi(&self) -> String {
        gi::show_gi(&self.superblock)
    }

    /// Says that the data is outdated (`outdate`); in memory, see [`write_superblock`].
    ///
    /// # Errors
    /// [`MetaError::Inconsistent`] when it is worse than that.
    pub const fn outdate(&mut self) -> Result<(), MetaError> {
        if !self.superblock.flags.contains(MdFlags::CONSISTENT) {
            return Err(MetaError::Inconsistent);
        }
        self.superblock.flags = self.superblock.flags.without(MdFlags::WAS_UP_TO_DATE);
        Ok(())
    }

    /// Says that the data is inconsistent and all of it must be synced (`invalidate`); in memory, the bitmap stays.
    pub const fn invalidate(&mut self) {
        let flags = self.superblock.flags.without(MdFlags::CONSISTENT).without(MdFlags::WAS_UP_TO_DATE);
        self.superblock.flags = flags.with(MdFlags::FULL_SYNC);
    }
}

/// How to dump.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpOptions<'a> {
    /// Dump unclean metadata too.
    pub force: bool,
    /// List the activity log.
    pub with_al: bool,
    /// The metadata lies where the device ended before.
    pub relocated: Option<&'a Relocated<'a>>,
}

/// Result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hot {
    /// Extents whose blocks may differ from the peer's.
    pub extents: BTreeSet<AlExtent>,
    /// Slot numbers that made no sense.
    pub skipped_slots: Vec<SlotOutOfRange>,
}

/// What `apply-al` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyReport {
    /// What the ring looked like.
    pub ring: RingState,
    /// The replay, if there was one.
    pub hot: Option<Hot>,
    /// Hot extents behind the end of the bitmap, which were skipped.
    pub beyond: Vec<AlExtent>,
    /// Bits that were set and had been clear.
    pub bits_set: u64,
    /// The log was useless but not needed.
    pub ignored: Option<NoUsableLog>,
    /// Bytes of the bitmap that the agreed size uses.
    bm_bytes: u64,
}

impl ApplyReport {
    /// drbdmeta's words on stderr.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        let mut text = String::new();
        let corrupt = match self.ring {
            RingState::Updates(range) => range.corrupt,
            RingState::Initialized { first_torn } => u32::from(first_torn),
            RingState::Damaged { corrupt } => corrupt,
            RingState::Missing => 0,
        };
        if corrupt > 0 {
            let _ = writeln!(text, "{corrupt} corrupt AL transactions found");
        }
        if let Some(reason) = self.ignored {
            let _ = writeln!(text, "{reason}\nError ignored, no need to apply the AL");
        }
        let Some(hot) = &self.hot else { return text };
        for slot in &hot.skipped_slots {
            let _ = writeln!(text, "update {slot}");
        }
        for extent in &self.beyond {
            let at = u64::from(extent.0) * AL_EXTENT_BITS / 8;
            let _ = writeln!(text, "extent {extent} beyond end of bitmap! ({at} >= {})", self.bm_bytes);
        }
        if hot.extents.is_empty() {
            return text + "Nothing to do.\n";
        }
        let size = human_kib(self.bits_set * 4);
        let _ = writeln!(text, "Marked additional {size} as out-of-sync based on AL.");
        text
    }
}

/// Applies the activity log to the bitmap, initialises the log, and says so in the superblock (`apply-al`). Doing it
/// twice does no harm; after a crash in between it can be done again.
///
/// # Errors
/// [`MetaError::NoUsableLog`] when it is needed and useless; nothing is written then. Those of [`open`].
pub fn apply_al(io: &mut dyn MetaIo, place: Place) -> Result<(OpenMeta, ApplyReport), MetaError> {
    let mut meta = open(io, place)?;
    let ring = meta.scan_ring(io)?;
    let plan = recover::plan(&meta.superblock, ring)?;
    let mut report = ApplyReport {
        ring,
        hot: None,
        beyond: Vec::new(),
        bits_set: 0,
        ignored: plan.ignored,
        bm_bytes: meta.pages_used() * BLOCK_BYTES as u64,
    };
    if let Some(range) = plan.replay {
        let hot = meta.replay(io, range)?;
        let pages: BTreeSet<_> = hot.extents.iter().map(|&extent| bitmap::page_of_extent(extent)).collect();
        for page in pages {
            let Some(offset) = meta.layout.bm_page_byte(page).filter(|_| page < meta.pages_used()) else { continue };
            let mut bytes = read(io, "read bitmap", offset)?;
            let bits_set = recover::mark_page(page, &mut bytes, &hot.extents);
            if bits_set > 0 {
                write(io, "write bitmap", offset, &bytes)?;
                report.bits_set += bits_set;
            }
        }
        let inside = |extent: &AlExtent| bitmap::page_of_extent(*extent) < meta.pages_used();
        report.beyond = hot.extents.iter().copied().filter(|extent| !inside(extent)).collect();
        report.hot = Some(hot);
    }
    if plan.reset_ring {
        // A ring that is reset before the bitmap is durable would lose what it said.
        flush(io)?;
        reset_ring(io, &meta.layout)?;
    }
    if plan.write_superblock {
        meta.superblock.set_clean();
        write_superblock(io, &meta.layout, &meta.superblock)?;
    } else if plan.reset_ring {
        flush(io)?;
    }
    Ok((meta, report))
}

/// Zeroes the superblock (`wipe-md`).
///
/// # Errors
/// [`MetaError::NoMetadata`] when there is none (drbdmeta then says `There appears to be no drbd meta data to wipe out?`
/// and exits with 0), [`MetaError::Io`].
pub fn wipe_md(io: &mut dyn MetaIo, place: Place) -> Result<(), MetaError> {
    let meta = open(io, place)?;
    write(io, "write superblock", meta.layout.superblock_byte(), &[0; BLOCK_BYTES])?;
    flush(io)
}

/// Where the bits of an attached device come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachBits {
    /// Read the bitmap, then set the bits of the hot extents.
    FromDisk,
    /// All bits are to be set and written, under [`MdFlags::FULL_SYNC`].
    AllSet(FullSyncReason),
}

/// Why the bitmap on disk says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullSyncReason {
    /// Never attached: there is no agreed size.
    JustCreated,
    /// The full-sync flag is set.
    Flag,
    /// A Primary crashed without keeping its activity log.
    AlDisabled,
    /// A Primary crashed and its activity log is useless. drbdmeta refuses to go on here.
    NoUsableLog(NoUsableLog),
}

/// Everything on disk that an attach needs to know, except the bitmap itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachMeta {
    /// The superblock as it is on disk, agreed size unclipped.
    pub superblock: Superblock,
    /// The layout for the devices as they are.
    pub layout: Layout,
    /// What the ring looked like. It must be reset, or continued with the number after its newest, before or while the
    /// first transaction is written.
    pub ring: RingState,
    /// Where the bits come from.
    pub bits: AttachBits,
    /// The extents that were hot when the node crashed as Primary.
    pub hot: BTreeSet<AlExtent>,
    /// Whether this node crashed as Primary and has not been in sync since.
    pub crashed_primary: bool,
}

/// Reads what an attach needs; writes nothing. The caller decides about sizes: consistent data with an agreed size above
/// `layout.data_size` must not be attached (error 170).
///
/// # Errors
/// Those of [`open`]; [`LayoutError::TooSmall`] also for a device below the kernel's 1 MiB (error 112).
pub fn read_for_attach(io: &mut dyn MetaIo, place: Place) -> Result<AttachMeta, MetaError> {
    let mut meta = open(io, place)?;
    let needs = Sectors(ATTACH_SECTORS_MIN);
    let has = Sectors::from_bytes_floor(io.size_bytes());
    if has < needs {
        return Err(LayoutError::TooSmall { has, needs }.into());
    }
    if let Some(claimed) = meta.claimed_size {
        meta.superblock.effective_size = claimed;
    }
    let flags = meta.superblock.flags;
    let crashed_primary = flags.contains(MdFlags::PRIMARY_IND) || flags.contains(MdFlags::CRASHED_PRIMARY);
    let ring = meta.scan_ring(io)?;
    let (mut bits, mut hot) = (AttachBits::FromDisk, BTreeSet::new());
    match recover::plan(&meta.superblock, ring) {
        Ok(plan) => {
            if let Some(range) = plan.replay {
                hot = meta.replay(io, range)?.extents;
            }
        }
        Err(reason) => bits = AttachBits::AllSet(FullSyncReason::NoUsableLog(reason)),
    }
    if crashed_primary && flags.contains(MdFlags::AL_DISABLED) {
        bits = AttachBits::AllSet(FullSyncReason::AlDisabled);
    }
    if flags.contains(MdFlags::FULL_SYNC) {
        bits = AttachBits::AllSet(FullSyncReason::Flag);
    }
    if meta.superblock.effective_size == Sectors(0) {
        bits = AttachBits::AllSet(FullSyncReason::JustCreated);
    }
    Ok(AttachMeta { superblock: meta.superblock, layout: meta.layout, ring, bits, hot, crashed_primary })
}
