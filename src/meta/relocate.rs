//! Internal metadata of a device that was resized while nobody had it attached: remembered size, search, move
//! (`check-resize`).
//!
//! Takes in the text of the last-known file (whose place is the caller's business) and the device; gives out the
//! metadata at its old place, or moved to its proper one. Spec: metadata.md 12.2. drbdmeta 9.22 moves a bitmap that
//! grows to the wrong place; here byte i goes to byte i.

use std::fmt::Write as _;

use super::create::zero;
use super::error::MetaError;
use super::layout::{BLOCK_BYTES, DeviceSizes, Layout, MetaKind};
use super::offline::{OpenMeta, Place, flush, read, write, write_superblock};
use super::store::MetaIo;
use super::superblock::{MdFlags, Superblock, SuperblockError, Unverified};
use crate::units::Sectors;

/// What is remembered about a device with internal metadata, one file per minor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// The device's size, in bytes.
    pub size_bytes: u64,
    /// The device's name, if it was remembered.
    pub device: Option<String>,
    /// The metadata's label; `None` when it has none.
    pub device_uuid: Option<u64>,
}

impl LastKnown {
    /// Reads a file; `None` when it does not even start with a number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut first = lines.next()?.split_whitespace();
        let size_bytes = first.next()?.parse().ok()?;
        let device = first.next().map(str::to_owned);
        let device_uuid = lines
            .find_map(|line| line.strip_prefix("uuid:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .filter(|&uuid| uuid != 0);
        Some(Self { size_bytes, device, device_uuid })
    }

    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("{}\t{}\n", self.size_bytes, self.device.as_deref().unwrap_or_default());
        if let Some(uuid) = self.device_uuid {
            let _ = writeln!(text, "uuid:\t{uuid:016X}");
        }
        text
    }

    /// Whether the labels allow that this file is about `meta`: a file without one matches anything.
    #[must_use]
    pub fn matches(&self, meta: &OpenMeta) -> bool {
        self.device_uuid.is_none_or(|uuid| uuid == meta.superblock.device_uuid)
    }
}

/// Reads the superblock where it was when the device had `size_bytes`.
///
/// # Errors
/// [`MetaError::Shrunk`] when that lies behind the device's end, [`MetaError::NoMetadata`] when nothing valid is there,
/// [`MetaError::Layout`], [`MetaError::Io`].
pub fn open_at_old_size(io: &mut dyn MetaIo, size_bytes: u64) -> Result<OpenMeta, MetaError> {
    let sizes = DeviceSizes::one(Sectors::from_bytes_floor(size_bytes));
    if size_bytes > io.size_bytes() {
        return Err(MetaError::Shrunk);
    }
    let probe = Layout::new(MetaKind::Internal, super::AlStripes::DEFAULT, sizes)?;
    let block = read(io, "read superblock", probe.superblock_byte())?;
    let (mut superblock, layout) =
        Unverified::decode(&block).verify(MetaKind::Internal, sizes).map_err(MetaError::NoMetadata)?;
    let claimed_size = superblock.excess_size(&layout);
    superblock.effective_size = superblock.effective_size.min(layout.data_size);
    Ok(OpenMeta { superblock, layout, claimed_size })
}

/// Moves internal metadata to the end of its device, which has grown. Activity log and bitmap are durable at their new
/// place before the new superblock is, and the old superblock goes last. Where old and new areas overlap (a device that grew
/// by less than its metadata) the new superblock comes first, and says until everything is there that every block is out of
/// sync.
///
/// # Errors
/// [`MetaError::Shrunk`] when the proper place lies before the old one, [`MetaError::Layout`], [`MetaError::Io`].
pub fn move_internal(io: &mut dyn MetaIo, old: &OpenMeta) -> Result<OpenMeta, MetaError> {
    let al = old.superblock.al().map_err(SuperblockError::Layout).map_err(MetaError::NoMetadata)?;
    let sizes = DeviceSizes::one(Sectors::from_bytes_floor(io.size_bytes()));
    let layout = Layout::new(MetaKind::Internal, al, sizes)?;
    if layout.md_offset < old.layout.md_offset {
        return Err(MetaError::Shrunk);
    }
    let mut moved = OpenMeta { superblock: old.superblock.clone(), layout, claimed_size: old.claimed_size };
    if layout.md_offset == old.layout.md_offset {
        return Ok(moved);
    }
    moved.superblock.set_layout(&layout);
    let old_area = old.layout.area();
    if layout.area().0 < old_area.0 + old_area.1 {
        // It lies behind the old superblock, so that one of the two is valid at any time.
        let flags = moved.superblock.flags.with(MdFlags::FULL_SYNC).with(MdFlags::AL_DISABLED);
        write_superblock(io, &layout, &Superblock { flags, ..moved.superblock.clone() })?;
    }
    // Everything moves upwards: copied from the end backwards, an overlap overwrites only what is copied already.
    for block in (0..u64::from(al.blocks())).rev() {
        copy_block(io, old.layout.al_offset.bytes(), layout.al_offset.bytes(), block)?;
    }
    let (old_pages, pages) = (old.layout.bm_pages(), layout.bm_pages());
    for page in (0..old_pages).rev() {
        copy_block(io, old.layout.bm_offset.bytes(), layout.bm_offset.bytes(), page)?;
    }
    let tail = layout.bm_offset.bytes() + old_pages * BLOCK_BYTES as u64;
    zero(io, tail, pages.saturating_sub(old_pages) * BLOCK_BYTES as u64)?;
    write_superblock(io, &layout, &moved.superblock)?;
    let old_byte = old.layout.superblock_byte();
    let (start, len) = layout.area();
    if !(start..start + len).contains(&old_byte) {
        write(io, "write superblock", old_byte, &[0; BLOCK_BYTES])?;
        flush(io)?;
    }
    Ok(moved)
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Valid metadata where they belong.
    InPlace,
    /// They were where they belonged when the device had this size, and have been moved.
    Moved {
        /// In bytes.
        from_size: u64,
    },
    /// Nothing valid, here nor there.
    Nothing,
}

/// `check-resize`: looks for internal metadata, and moves them if the device has grown since `known` was remembered.
/// `force`: also if the labels differ.
///
/// # Errors
/// [`MetaError`] of reading and moving; metadata that are missing are no error.
pub fn check(io: &mut dyn MetaIo, known: Option<&LastKnown>, force: bool) -> Result<Checked, MetaError> {
    match super::offline::open(io, Place::INTERNAL) {
        Err(MetaError::NoMetadata(_) | MetaError::Layout(_)) => {}
        other => return other.map(|_| Checked::InPlace),
    }
    let Some(known) = known.filter(|known| known.size_bytes < io.size_bytes()) else { return Ok(Checked::Nothing) };
    match open_at_old_size(io, known.size_bytes) {
        Ok(old) if force || known.matches(&old) => {
            move_internal(io, &old)?;
            Ok(Checked::Moved { from_size: known.size_bytes })
        }
        Ok(_) | Err(MetaError::NoMetadata(_) | MetaError::Layout(_)) => Ok(Checked::Nothing),
        Err(error) => Err(error),
    }
}

fn copy_block(io: &mut dyn MetaIo, from: u64, to: u64, block: u64) -> Result<(), MetaError> {
    let distance = block * BLOCK_BYTES as u64;
    let bytes = read(io, "read metadata", from + distance)?;
    write(io, "write metadata", to + distance, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::create::{CreateOptions, create_md};
    use crate::meta::offline::open;
    use crate::meta::{AlStripes, MemIo};
    use crate::units::GenId;

    const MIB: u64 = 1 << 20;

    /// A device with marked ring and bitmap blocks.
    fn device(size_bytes: u64) -> (MemIo, OpenMeta) {
        let mut io = MemIo::new(size_bytes);
        let options =
            CreateOptions { place: Place::INTERNAL, al: AlStripes::DEFAULT, device_uuid: 0x1234, peer_max_bio_size: 0 };
        let (layout, superblock) = create_md(&mut io, &options).expect("fits");
        let superblock = Superblock { effective_size: layout.data_size, current: GenId(77), ..superblock };
        write_superblock(&mut io, &layout, &superblock).expect("memory");
        for block in 0_u8..8 {
            io.write_at(layout.al_offset.bytes() + u64::from(block) * 4096, &[block + 1; BLOCK_BYTES]).expect("memory");
        }
        for page in 0..u8::try_from(layout.bm_pages()).expect("few") {
            io.write_at(layout.bm_offset.bytes() + u64::from(page) * 4096, &[page + 101; BLOCK_BYTES]).expect("memory");
        }
        (io, OpenMeta { superblock, layout, claimed_size: None })
    }

    #[test]
    fn everything_arrives_whatever_the_overlap() {
        for (old_bytes, new_bytes) in [
            (64 * MIB, 1024 * MIB),
            (64 * MIB, 96 * MIB),
            (1024 * MIB, 1024 * MIB + 4096),
            (1024 * MIB, 1024 * MIB + 8192),
            (128 * MIB, 128 * MIB + 4096),
            (2048 * MIB - 4096, 2048 * MIB + 20 * 4096),
            (64 * MIB, 64 * MIB + 512),
        ] {
            let (mut io, before) = device(old_bytes);
            io.resize(new_bytes);
            let old = open_at_old_size(&mut io, old_bytes).expect("still there");
            assert_eq!(old, before);
            move_internal(&mut io, &old).expect("room");
            let moved = open(&mut io, Place::INTERNAL).expect("valid at the new place");
            assert_eq!(moved.superblock.current, GenId(77));
            assert_eq!(moved.superblock.effective_size, before.superblock.effective_size);
            let mut fill = |offset: u64| {
                let block = read(&mut io, "read", offset).expect("inside");
                assert!(block.iter().all(|&byte| byte == block[0]));
                u64::from(block[0])
            };
            for block in 0..8 {
                assert_eq!(fill(moved.layout.al_offset.bytes() + block * 4096), block + 1);
            }
            for page in 0..moved.layout.bm_pages() {
                let expected = if page < before.layout.bm_pages() { page + 101 } else { 0 };
                assert_eq!(
                    fill(moved.layout.bm_offset.bytes() + page * 4096),
                    expected,
                    "{old_bytes} {new_bytes} {page}"
                );
            }
            if old_bytes / 4096 != new_bytes / 4096 {
                assert!(open_at_old_size(&mut io, old_bytes).is_err());
            }
        }
    }

    #[test]
    fn a_shrunk_device_is_refused() {
        let (mut io, _) = device(64 * MIB);
        io.resize(32 * MIB);
        assert!(matches!(open_at_old_size(&mut io, 64 * MIB), Err(MetaError::Shrunk)));
    }

    #[test]
    fn the_file_is_drbdmetas() {
        let text = "67108864\t/dev/loop6\nuuid:\tBB629DDFD5CE4B09\n";
        let known = LastKnown::parse(text).expect("valid");
        assert_eq!((known.size_bytes, known.device_uuid), (67_108_864, Some(0xBB62_9DDF_D5CE_4B09)));
        assert_eq!(known.render(), text);
        let bare = LastKnown::parse("67108864").expect("valid");
        assert_eq!((bare.device, bare.device_uuid), (None, None));
        assert_eq!(LastKnown::parse("x"), None);
        assert_eq!(LastKnown::parse(""), None);
    }
}
