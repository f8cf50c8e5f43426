//! Undoing: the saved blocks go back to a disk that is not attached, and the disk gets a data generation of its own.
//!
//! Takes in an undo file, an empty one for the way back, the data device and the metadata. Order, each step durable before the
//! next: the superblock says "inconsistent" under a new generation; every block that is replaced is in the file for the way
//! back; the old contents are written; the bitmap marks them; the superblock says what the disk was. A crash in between
//! leaves an Inconsistent disk and both files, and doing it again completes it.
//!
//! **The new generation.** It is a random one, its bitmap identifier is unset, and its history ([`history_after`]) holds
//! generations that both nodes have left behind, never the peer's present one and none that the peer counts its changes
//! from. So no comparison calls either side newer: the next handshake finds a split brain whose bitmaps say nothing
//! (rule 100), the nodes do not connect, and whoever is chosen is copied as a whole.

use std::io;

use super::UndoIo;
use super::file::{Run, UndoFile};
use super::format::{BLOCK, Head};
use crate::meta::bitmap::PAGE_BITS;
use crate::meta::{MdFlags, MetaError, MetaIo, OpenMeta, offline};
use crate::units::{GenId, Sectors};

/// Blocks of one step.
const STEP: usize = 256;

/// Why nothing was undone.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The metadata cannot be used.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The file does not belong to this disk.
    #[error("the undo file is for a device of {file} sectors, this one has {disk}")]
    Size {
        /// Sectors of the file.
        file: u64,
        /// Sectors of the disk.
        disk: u64,
    },
    /// The file does not belong to this disk.
    #[error("the undo file is for the disk with the device-uuid {file:016X}, this one has {disk:016X}")]
    Disk {
        /// Of the file.
        file: u64,
        /// Of the disk.
        disk: u64,
    },
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

fn at(what: &'static str) -> impl Fn(io::Error) -> RestoreError {
    move |source| RestoreError::Io { what, source }
}

/// The history of the new generation, from the identifiers of the disk and what the file knows.
#[must_use]
pub fn history_after(present: [GenId; 4], head: &Head) -> [GenId; 2] {
    let [current, _, h0, h1] = present;
    let taken = [current, head.peer[0], head.own[0]].map(GenId::masked);
    let mut left = [h0, h1, head.own[1], head.own[2], head.peer[2]]
        .into_iter()
        .filter(|id| id.masked() != 0 && id.0 != GenId::JUST_CREATED.0 && !taken.contains(&id.masked()));
    let first = left.next().unwrap_or(GenId::UNSET);
    let second = left.find(|id| id.masked() != first.masked()).unwrap_or(GenId::UNSET);
    [first, second]
}

/// The identifiers that a superblock has now.
#[must_use]
pub fn present(meta: &OpenMeta) -> [GenId; 4] {
    let sb = &meta.superblock;
    [sb.current, sb.bitmap, sb.history[0], sb.history[1]]
}

/// Whether the file is one of this disk, and of its size.
///
/// # Errors
/// It is not.
pub fn check(meta: &OpenMeta, head: &Head) -> Result<(), RestoreError> {
    let sb = &meta.superblock;
    if sb.device_uuid != head.device {
        return Err(RestoreError::Disk { file: head.device, disk: sb.device_uuid });
    }
    if sb.effective_size.0 != head.sectors {
        return Err(RestoreError::Size { file: head.sectors, disk: sb.effective_size.0 });
    }
    Ok(())
}

/// Whether the disk has begun a data generation of its own since the file was completed: what was written in it goes as well.
#[must_use]
pub fn written_since(meta: &OpenMeta, head: &Head) -> bool {
    let sb = &meta.superblock;
    sb.flags.contains(MdFlags::CONSISTENT) && sb.current.masked() != head.after.masked()
}

/// The generation that an undo begins.
#[must_use]
pub fn generation(random: u64) -> GenId {
    GenId(random | 16).with_primary_bit(false)
}

/// Begins: the disk is Inconsistent, in the generation that the file for the way back is for.
///
/// # Errors
/// The metadata cannot be used, or are those of another device.
pub fn begin(meta: &mut OpenMeta, io: &mut dyn MetaIo, head: &Head, new: GenId) -> Result<(), RestoreError> {
    check(meta, head)?;
    let history = history_after(present(meta), head);
    let sb = &mut meta.superblock;
    sb.current = new;
    sb.bitmap = GenId::UNSET;
    sb.history = history;
    let clean = MdFlags::AL_CLEAN;
    sb.flags = if sb.flags.contains(clean) { clean } else { MdFlags::NONE };
    offline::write_superblock(io, &meta.layout, &meta.superblock)?;
    Ok(())
}

fn range_of(block: u64, sectors: u64) -> (u64, usize) {
    let start = block * BLOCK as u64;
    let end = (start + BLOCK as u64).min(Sectors(sectors).bytes());
    (start, usize::try_from(end.saturating_sub(start)).unwrap_or(0))
}

/// Writes the saved blocks back; what they replace goes to `redo` before. Gives the number of blocks.
///
/// # Errors
/// Those of the files and of the device; the disk stays Inconsistent then.
pub fn write_back<I: UndoIo, J: UndoIo>(
    undo: &mut UndoFile<I>,
    redo: &mut UndoFile<J>,
    data: &mut dyn MetaIo,
) -> Result<u64, RestoreError> {
    let sectors = undo.head().sectors;
    let blocks: Vec<u64> = undo.runs().flatten().collect();
    for step in blocks.chunks(STEP) {
        let mut present = Vec::new();
        for block in step.iter().filter(|block| !redo.has(**block)) {
            let (start, len) = range_of(*block, sectors);
            let mut bytes = vec![0; BLOCK];
            data.read_at(start, &mut bytes[..len]).map_err(at("read the present data"))?;
            present.push((*block, bytes));
        }
        let runs: Vec<Run<'_>> = present.iter().map(|(first, data)| Run { first: *first, data }).collect();
        redo.append(&runs).and_then(|()| redo.sync()).map_err(at("write the file for the way back"))?;
        for block in step {
            let (start, len) = range_of(*block, sectors);
            let mut old = [0; BLOCK];
            undo.read(*block, &mut old).map_err(at("read the undo file"))?;
            data.write_at(start, &old[..len]).map_err(at("write the old data"))?;
        }
    }
    data.flush().map_err(at("flush the disk"))?;
    redo.finish().map_err(at("write the file for the way back"))?;
    Ok(blocks.len() as u64)
}

/// Ends: the bitmap marks what was written back, and the disk is what it was.
///
/// # Errors
/// The metadata cannot be written.
pub fn end<I: UndoIo>(meta: &mut OpenMeta, io: &mut dyn MetaIo, undo: &UndoFile<I>) -> Result<(), RestoreError> {
    let bits: Vec<u64> = undo.runs().flatten().collect();
    let mut rest = bits.as_slice();
    while let Some(first) = rest.first() {
        let page = first / PAGE_BITS;
        let (here, behind) = rest.split_at(rest.partition_point(|bit| bit / PAGE_BITS == page));
        rest = behind;
        let Some(offset) = meta.layout.bm_page_byte(page) else { continue };
        let mut block = [0; BLOCK];
        io.read_at(offset, &mut block).map_err(at("read bitmap"))?;
        for bit in here {
            let inside = usize::try_from(bit % PAGE_BITS).unwrap_or(0);
            block[inside / 8] |= 1 << (inside % 8);
        }
        io.write_at(offset, &block).map_err(at("write bitmap"))?;
    }
    let (head, flags) = (undo.head(), meta.superblock.flags);
    let up_to_date = head.good && head.up_to_date;
    meta.superblock.flags = flags.set_to(MdFlags::CONSISTENT, head.good).set_to(MdFlags::WAS_UP_TO_DATE, up_to_date);
    offline::write_superblock(io, &meta.layout, &meta.superblock)?;
    Ok(())
}

/// The head of the file for the way back from the generation `after`.
#[must_use]
pub fn redo_head(meta: &OpenMeta, undo: &Head, after: GenId, now: u64, salt: u64) -> Head {
    let flags = meta.superblock.flags;
    let (good, up_to_date) = (flags.contains(MdFlags::CONSISTENT), flags.contains(MdFlags::WAS_UP_TO_DATE));
    Head {
        own: present(meta),
        peer: undo.own,
        after,
        made: now,
        good,
        up_to_date,
        redo: !undo.redo,
        salt,
        ..undo.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemFile;
    use super::*;
    use crate::meta::create::{CreateOptions, create_md};
    use crate::meta::{AlStripes, MemIo, Place};

    const SECTORS: u64 = 1000;

    fn head() -> Head {
        Head {
            resource: "r0".into(),
            volume: 0,
            device: 1,
            sectors: SECTORS,
            own: [GenId(0x10), GenId(0x20), GenId(0), GenId(0)],
            peer: [GenId(0x30), GenId(0x20), GenId(0), GenId(0)],
            after: GenId(0x30),
            made: 1,
            good: true,
            redo: false,
            up_to_date: true,
            salt: 1,
        }
    }

    #[test]
    fn the_history_never_names_what_one_of_the_nodes_goes_on_from() {
        let id = GenId;
        // After the resolution: the peer's generation, and both nodes' history.
        let after = history_after([id(0x30), id(0), id(0x40), id(0x20)], &head());
        assert_eq!(after, [id(0x40), id(0x20)]);
        // In the middle of it.
        assert_eq!(history_after([id(0x40), id(0), id(0), id(0)], &head()), [id(0x20), id(0)]);
        assert_eq!(history_after([id(0x50), id(0), id(0x31), id(0x11)], &head()), [id(0x20), id(0)]);
    }

    #[test]
    fn what_was_is_there_again_and_the_way_back_is_kept() {
        let (mut data, mut md) = (MemIo::new(SECTORS * 512), MemIo::new(1 << 20));
        let place = Place { kind: crate::meta::MetaKind::FlexExternal, data: Some(Sectors(SECTORS)) };
        let options = CreateOptions { place, al: AlStripes::DEFAULT, device_uuid: 1, peer_max_bio_size: 0 };
        create_md(&mut md, &options).expect("memory");
        let mut meta = offline::open(&mut md, place).expect("metadata");
        meta.superblock.effective_size = Sectors(SECTORS);
        meta.superblock.current = GenId(0x30);
        meta.superblock.history = [GenId(0x40), GenId(0x20)];
        meta.superblock.flags = meta.superblock.flags.with(MdFlags::CONSISTENT).with(MdFlags::WAS_UP_TO_DATE);
        offline::write_superblock(&mut md, &meta.layout, &meta.superblock).expect("memory");
        // The last block is not whole.
        data.write_at(0, &[9; 512_000]).expect("memory");
        let mut undo = UndoFile::create(MemFile::default(), head()).expect("memory");
        undo.append(&[Run { first: 2, data: &[1; 2 * BLOCK] }, Run { first: 124, data: &[2; BLOCK] }]).expect("memory");
        let mut redo =
            UndoFile::create(MemFile::default(), redo_head(&meta, undo.head(), generation(0xabcd_0000), 2, 3))
                .expect("memory");
        assert!(!written_since(&meta, undo.head()));
        let mut other = undo.head().clone();
        other.device = 2;
        assert!(matches!(check(&meta, &other), Err(RestoreError::Disk { .. })));
        begin(&mut meta, &mut md, undo.head(), redo.head().after).expect("memory");
        let between = offline::open(&mut md, place).expect("metadata").superblock;
        assert!(!between.flags.contains(MdFlags::CONSISTENT));
        assert_eq!(write_back(&mut undo, &mut redo, &mut data).expect("memory"), 3);
        end(&mut meta, &mut md, &undo).expect("memory");
        let mut bytes = vec![0; 512_000];
        data.read_at(0, &mut bytes).expect("memory");
        let expect = |at: usize| match at / BLOCK {
            2 | 3 => 1,
            124 => 2,
            _ => 9,
        };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expect(at)));
        let sb = offline::open(&mut md, place).expect("metadata").superblock;
        assert_eq!((sb.bitmap, sb.history), (GenId::UNSET, [GenId(0x40), GenId(0x20)]));
        assert!(sb.current.0 > 0x30 && sb.flags.contains(MdFlags::CONSISTENT.with(MdFlags::WAS_UP_TO_DATE)));
        let mut page = [0; BLOCK];
        md.read_at(meta.layout.bm_page_byte(0).expect("one"), &mut page).expect("memory");
        assert_eq!((page[0] & 0x1c, page[15] & 0x10), (0x0c, 0x10));
        // Both files are for the disk as it is; what begins a generation of its own is noticed.
        assert!(!written_since(&meta, redo.head()) && written_since(&meta, undo.head()));
        // And back again.
        let mut again =
            UndoFile::create(MemFile::default(), redo_head(&meta, redo.head(), generation(0xef00_0000), 4, 5))
                .expect("memory");
        assert_eq!((redo.ended(), redo.head().redo, again.head().redo), (true, true, false));
        write_back(&mut redo, &mut again, &mut data).expect("memory");
        data.read_at(0, &mut bytes).expect("memory");
        assert!(bytes.iter().all(|byte| *byte == 9));
    }
}
