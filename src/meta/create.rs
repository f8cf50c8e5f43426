//! New metadata on a device: what stands in the way, creation, and restoring a dump.
//!
//! Two steps on purpose: `check_*` only reads and gives out [`Finding`]s for the caller to ask about; `create_md` and
//! `restore_md` write without looking. Order of writes, with a flush in between: no superblock, activity log and bitmap,
//! superblock.
//! Spec: metadata.md 10.2 and 11.2.

use super::bitmap;
use super::error::MetaError;
use super::layout::{AlStripes, BLOCK_BYTES, Layout, MetaKind};
use super::offline::{Place, flush, io_error, read, reset_ring, write, write_superblock};
use super::probe::{self, Finding, FoundVersion, HEAD_BYTES};
use super::store::MetaIo;
use super::superblock::{MAGIC_V07, MagicKind, Superblock, Unverified};
use super::text::restore::Dump;
use crate::units::Sectors;

/// Bytes that are zeroed with one write.
const ZERO_BYTES: usize = 1 << 20;
/// Fixed size of DRBD 0.7's internal metadata, in bytes.
const V07_FIXED_BYTES: u64 = 128 << 20;

/// What metadata to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Where.
    pub place: Place,
    /// The activity log's ring.
    pub al: AlStripes,
    /// Random label; 0 for none.
    pub device_uuid: u64,
    /// Assumed largest request of the peer, in bytes; 0 for unknown.
    pub peer_max_bio_size: u32,
}

impl CreateOptions {
    /// The layout on `io`.
    ///
    /// # Errors
    /// [`MetaError::Layout`] when it does not fit.
    pub fn layout(&self, io: &dyn MetaIo) -> Result<Layout, MetaError> {
        Ok(Layout::new(self.place.kind, self.al, self.place.sizes(io))?)
    }
}

/// Looks for what creating metadata would destroy; reads only. The findings are in the order in which to ask.
///
/// # Errors
/// [`MetaError::Layout`] when it does not fit, [`MetaError::Io`].
pub fn check_create(io: &mut dyn MetaIo, options: &CreateOptions) -> Result<Vec<Finding>, MetaError> {
    let layout = options.layout(io)?;
    let md_byte = layout.superblock_byte();
    let mut findings = Vec::new();
    let found = find_version(io, options.place, md_byte)?;
    if options.place.kind.is_internal() {
        if let Some(fixed) = find_v07_fixed(io)? {
            findings.push(Finding::InternalMeta { version: FoundVersion::V07, md_byte: fixed, said: false });
        }
        if let Some(version) = found {
            let other = matches!(version, FoundVersion::V08(al) if al != options.al);
            if other {
                findings.push(Finding::OtherStripes { md_byte });
            }
            findings.push(Finding::InternalMeta { version, md_byte, said: other });
        }
    } else if let Some(version) = found {
        findings.push(Finding::ExternalMeta { version });
    }
    findings.extend(check_data(io, layout)?);
    Ok(findings)
}

fn find_version(io: &mut dyn MetaIo, place: Place, md_byte: u64) -> Result<Option<FoundVersion>, MetaError> {
    let unverified = Unverified::decode(&read(io, "read superblock", md_byte)?);
    Ok(match unverified.magic_kind() {
        MagicKind::V08 | MagicKind::V08Unclean => {
            let valid = unverified.verify(place.kind, place.sizes(io));
            valid.ok().map(|(_, layout)| FoundVersion::V08(layout.al))
        }
        MagicKind::V07 => Some(FoundVersion::V07),
        MagicKind::V09 => Some(FoundVersion::V09),
        MagicKind::Unknown => None,
    })
}

/// DRBD 0.7 had its superblock at the start of the last 128 MiB.
fn find_v07_fixed(io: &mut dyn MetaIo) -> Result<Option<u64>, MetaError> {
    let end = io.size_bytes() & !(BLOCK_BYTES as u64 - 1);
    let Some(md_byte) = end.checked_sub(V07_FIXED_BYTES) else { return Ok(None) };
    let unverified = Unverified::decode(&read(io, "read superblock", md_byte)?);
    Ok((unverified.word_28 == MAGIC_V07 && unverified.magic == 0).then_some(md_byte))
}

fn check_data(io: &mut dyn MetaIo, layout: Layout) -> Result<Option<Finding>, MetaError> {
    let mut head = vec![0; HEAD_BYTES];
    io.read_at(0, &mut head).map_err(io_error("read data", 0))?;
    Ok(probe::identify(&head).map(|(content, bytes)| {
        // Rounded up, so that a file system that reaches a byte into the metadata is refused.
        Finding::Data { content, used_kib: bytes.map(|bytes| bytes.div_ceil(1024)), layout }
    }))
}

/// Creates metadata, whatever is there.
///
/// # Errors
/// [`MetaError::Layout`] when it does not fit, [`MetaError::Io`].
pub fn create_md(io: &mut dyn MetaIo, options: &CreateOptions) -> Result<(Layout, Superblock), MetaError> {
    let layout = options.layout(io)?;
    let superblock = Superblock {
        la_peer_max_bio_size: options.peer_max_bio_size,
        ..Superblock::create(&layout, options.device_uuid)
    };
    disown(io, &layout)?;
    reset_ring(io, &layout)?;
    zero(io, layout.bm_offset.bytes(), pages_to_clear(&layout, options.place) * BLOCK_BYTES as u64)?;
    write_superblock(io, &layout, &superblock)?;
    Ok((layout, superblock))
}

/// Zeroes the place of the superblock durably: an old one would vouch for bitmap and ring while they are replaced, and a
/// crash would then lose bits.
fn disown(io: &mut dyn MetaIo, layout: &Layout) -> Result<(), MetaError> {
    write(io, "write superblock", layout.superblock_byte(), &[0; BLOCK_BYTES])?;
    flush(io)
}

/// An external area may be far larger than any bitmap in it; a device that it will never serve need not be zeroed.
fn pages_to_clear(layout: &Layout, place: Place) -> u64 {
    match (layout.kind, place.data) {
        (MetaKind::Internal, _) | (_, None) => layout.bm_pages(),
        (_, Some(_)) => bitmap::pages_for(layout.data_size.bm_bits()).min(layout.bm_pages()),
    }
}

/// Zeroes `len` bytes from byte `start`, both multiples of 4096.
pub(super) fn zero(io: &mut dyn MetaIo, start: u64, len: u64) -> Result<(), MetaError> {
    let zeros = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(ZERO_BYTES)];
    let mut done = 0;
    while done < len {
        let chunk = usize::try_from(len - done).unwrap_or(usize::MAX).min(ZERO_BYTES);
        write(io, "write bitmap", start + done, zeros.get(..chunk).unwrap_or_default())?;
        done += chunk as u64;
    }
    Ok(())
}

/// Looks for what restoring `dump` would destroy; reads only.
///
/// # Errors
/// [`MetaError::Layout`] when it does not fit, [`MetaError::Io`].
pub fn check_restore(io: &mut dyn MetaIo, place: Place, al: AlStripes) -> Result<Vec<Finding>, MetaError> {
    let layout = Layout::new(place.kind, al, place.sizes(io))?;
    let found = find_version(io, place, layout.superblock_byte())?;
    let in_place = matches!(found, Some(FoundVersion::V08(_))).then_some(Finding::MetaInPlace);
    Ok(in_place.into_iter().chain(check_data(io, layout)?).collect())
}

/// What `restore-md` did besides restoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The agreed size in the dump, if it had to be clipped to `layout.data_size`.
    pub claimed_size: Option<Sectors>,
    /// Whether the dump had more bitmap than the agreed size needs (`Bitmap info too large, truncated!`).
    pub bitmap_truncated: bool,
    /// Where it lies.
    pub layout: Layout,
}

/// Writes the metadata of a dump, whatever is there, with the ring `al` (the dump's own, or another one). The ring is
/// initialised and the metadata clean, unlike drbdmeta's; offsets are those of the device, not of the dump's.
///
/// # Errors
/// [`MetaError::Layout`] when it does not fit, [`MetaError::Io`].
pub fn restore_md(io: &mut dyn MetaIo, place: Place, dump: &Dump, al: AlStripes) -> Result<RestoreReport, MetaError> {
    let layout = Layout::new(place.kind, al, place.sizes(io))?;
    let [current, bitmap_uuid, younger, older] = dump.uuids;
    let mut superblock = Superblock {
        effective_size: dump.effective_size,
        current,
        bitmap: bitmap_uuid,
        history: [younger, older],
        flags: dump.flags,
        la_peer_max_bio_size: dump.la_peer_max_bio_size,
        ..Superblock::create(&layout, dump.device_uuid)
    };
    let claimed_size = superblock.excess_size(&layout);
    superblock.effective_size = superblock.effective_size.min(layout.data_size);
    superblock.set_clean();

    disown(io, &layout)?;
    reset_ring(io, &layout)?;
    let pages = bitmap::pages_for(superblock.effective_size.bm_bits());
    let words_max = pages * bitmap::PAGE_WORDS;
    let mut words = dump.words(words_max);
    let mut page = [0; BLOCK_BYTES];
    for number in 0..pages {
        page.fill(0);
        let (chunks, _) = page.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip(&mut words) {
            *chunk = word.to_le_bytes();
        }
        write(io, "write bitmap", layout.bm_offset.bytes() + number * BLOCK_BYTES as u64, &page)?;
    }
    write_superblock(io, &layout, &superblock)?;
    Ok(RestoreReport { claimed_size, bitmap_truncated: dump.word_count() > words_max, layout })
}
