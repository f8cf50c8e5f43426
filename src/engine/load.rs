//! From a device with metadata to an [`AttachedDisk`]: recover the activity log if the last owner did not detach
//! cleanly, then read superblock and bitmap. Works over [`MetaIo`], so the daemon and the tests take the same path.

use crate::engine::dirty::{Bitmap, PageNr};
use crate::engine::event::{AttachedDisk, Geometry};
use crate::meta::relocate::{self, Checked, LastKnown};
use crate::meta::{self, AttachBits, MetaError, MetaIo, Place};

/// What the device cannot say about itself.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// Capabilities of the data device.
    pub geometry: Geometry,
    /// Data and metadata share a device.
    pub shared_device: bool,
    /// Path of the data device, for messages.
    pub path: String,
}

/// A disk ready to attach, and what the recovery had to say (drbdmeta's words), if there was one.
#[derive(Debug)]
pub struct Loaded {
    /// For [`Command::Attach`](super::event::Command::Attach).
    pub disk: AttachedDisk,
    /// Text of `apply-al`; empty when the metadata was clean.
    pub recovery: String,
}

/// Why a disk cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The metadata are missing, foreign, damaged or unreadable.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The bitmap does not fit into memory.
    #[error(transparent)]
    Bitmap(#[from] crate::engine::dirty::BitmapError),
}

/// As [`load`], for a device that may have grown since its size was remembered: internal metadata are moved first.
///
/// # Errors
/// [`LoadError`]; nothing is lost by any of them.
pub fn load_moved(
    io: &mut dyn MetaIo,
    place: Place,
    facts: DiskFacts,
    known: Option<&LastKnown>,
) -> Result<Loaded, LoadError> {
    let moved = place.kind.is_internal() && matches!(relocate::check(io, known, false)?, Checked::Moved { .. });
    let mut loaded = load(io, place, facts)?;
    if moved {
        loaded.recovery.insert_str(0, "Moving the internal meta data to its proper location\n");
    }
    Ok(loaded)
}

/// Recovers and reads. Writes only when the metadata are not clean.
///
/// # Errors
/// [`LoadError`]; nothing is lost by any of them.
pub fn load(io: &mut dyn MetaIo, place: Place, facts: DiskFacts) -> Result<Loaded, LoadError> {
    let mut recovery = String::new();
    let open = meta::offline::open(io, place)?;
    if !open.superblock.is_clean() {
        match meta::offline::apply_al(io, place) {
            Ok((_, report)) => recovery = report.stderr_text(),
            // A useless log makes the attach below a full sync; anything else is reported by it.
            Err(error @ MetaError::Io { .. }) => return Err(error.into()),
            Err(error) => recovery = error.to_string(),
        }
    }
    let found = meta::offline::read_for_attach(io, place)?;
    let size = found.superblock.effective_size.min(found.layout.data_size);
    let mut bitmap = Bitmap::new(size.bm_bits())?;
    match found.bits {
        AttachBits::FromDisk => {
            let mut block = [0; meta::layout::BLOCK_BYTES];
            for page in 0..bitmap.page_count() {
                let offset = found.layout.bm_page_byte(u64::from(page)).unwrap_or(0);
                io.read_at(offset, &mut block).map_err(|source| MetaError::Io {
                    what: "read bitmap",
                    offset,
                    source,
                })?;
                bitmap.load_page(PageNr(page), &block);
            }
            for extent in &found.hot {
                bitmap.set_range(meta::bitmap::bits_of_extent(*extent));
            }
        }
        AttachBits::AllSet(_) => {
            bitmap.set_all();
        }
    }
    let mut superblock = found.superblock;
    if matches!(found.bits, AttachBits::AllSet(reason) if reason != meta::offline::FullSyncReason::JustCreated) {
        superblock.flags = superblock.flags.with(meta::MdFlags::FULL_SYNC);
    }
    let al_next_transaction = match found.ring {
        meta::RingState::Updates(range) => range.newest_tr.wrapping_add(1),
        _ => 0,
    };
    let capacity = found.layout.data_size;
    let sizes = place.sizes(io);
    let DiskFacts { geometry, shared_device, path } = facts;
    let disk = AttachedDisk {
        superblock,
        layout: found.layout,
        bitmap,
        al_slots: Vec::new(),
        al_next_transaction,
        capacity,
        sizes,
        geometry,
        shared_device,
        path,
        undo: None,
    };
    Ok(Loaded { disk, recovery })
}
