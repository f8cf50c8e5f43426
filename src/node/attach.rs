//! Opening a volume's devices and reading its metadata: everything that an attach needs before the engine sees it. Blocks,
//! so it runs on a thread of its own.
//!
//! Invariant: the devices are claimed before the first look at the metadata, and stay claimed until they are closed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::volume::Devices;
use crate::control::ErrorReply;
use crate::disk::last_known::LastKnownFile;
use crate::disk::meta_file::{Access, MetaFile};
use crate::disk::{BLOCK_BYTES_MIN, BackingDevice, ClaimScope, DiskError, DiskErrorKind, OpenOptions};
use crate::engine::event::{AttachedDisk, Geometry};
use crate::engine::load::{DiskFacts, LoadError, load_moved};
use crate::engine::options::DiskOptions;
use crate::meta::layout::INDEX_SLOT_SECTORS;
use crate::meta::{MetaError, MetaKind, Place};
use crate::units::{Sectors, VolumeNr};

/// How long a lock without a holder is waited for, and the pause between two looks. Measured: I/O of a killed process is
/// gone within milliseconds; a slow disk may take longer.
const UNSEEN_MAX: Duration = Duration::from_secs(5);
const UNSEEN_PAUSE: Duration = Duration::from_millis(10);

/// Where the metadata are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaPlace {
    /// At the end of the data device.
    Internal,
    /// On a device of their own.
    Flexible(PathBuf),
    /// In a slot of a device that may hold several.
    Indexed(PathBuf, u8),
}

/// What to attach.
#[derive(Clone, Debug)]
pub struct AttachSpec {
    /// Number of the volume.
    pub volume: VolumeNr,
    /// Path of the backing device or file.
    pub backing: PathBuf,
    /// Where the metadata are.
    pub meta: MetaPlace,
    /// Options of the disk.
    pub options: DiskOptions,
    /// Who claims the devices, for people: `r0/0`.
    pub owner: String,
    /// Where the size of a device with internal metadata is remembered.
    pub last_known: Option<LastKnownFile>,
}

/// Devices and what they hold.
#[derive(Debug)]
pub struct Opened {
    /// The devices.
    pub devices: Devices,
    /// What the engine gets.
    pub disk: AttachedDisk,
    /// What the recovery of the activity log had to say.
    pub recovery: String,
    /// For the next change of the device's size.
    pub last_known: Option<LastKnownFile>,
}

/// Which device failed: DRBD's numbers differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Data,
    Meta,
}

/// Opens, claims and reads.
///
/// # Errors
/// DRBD's numbers: 104 and 105 (cannot be opened), 114 and 115 (claimed), 107 and 108 (not a device), 112 (too small), 118
/// (unreadable), 119 (no valid metadata), 140 (no memory for the bitmap).
pub fn open(spec: &AttachSpec) -> Result<Opened, ErrorReply> {
    let AttachSpec { backing, owner, .. } = spec;
    let data = open_device(backing, Which::Data, ClaimScope::Whole, owner)?;
    let (meta, kind) = match &spec.meta {
        MetaPlace::Internal => (data.clone(), MetaKind::Internal),
        MetaPlace::Flexible(path) => {
            (open_device(path, Which::Meta, ClaimScope::Whole, owner)?, MetaKind::FlexExternal)
        }
        MetaPlace::Indexed(path, index) => {
            let len = Sectors(INDEX_SLOT_SECTORS).bytes();
            let scope = ClaimScope::Range { start: u64::from(*index) * len, len };
            (open_device(path, Which::Meta, scope, owner)?, MetaKind::Indexed(*index))
        }
    };
    let shared_device = meta.is_same(&data);
    let geometry = data.geometry();
    let facts = DiskFacts {
        geometry: Geometry {
            logical_block_size: geometry.logical_block_bytes,
            physical_block_size: geometry.physical_block_bytes,
            discard: geometry.discard.is_some(),
            discard_zeroes: geometry.discard.is_some_and(|discard| discard.reads_zeroes),
        },
        shared_device,
        path: backing.display().to_string(),
    };
    let size = (kind != MetaKind::Internal).then(|| Sectors::from_bytes_floor(data.size_bytes()));
    let path = meta.path();
    let mut file = MetaFile::open(path, Access::Write, false)
        .map_err(|error| ErrorReply::code(105).detail(format!("{}: {error}", path.display())))?;
    let mut last_known = spec.last_known.clone().filter(|_| kind.is_internal());
    let known = last_known.as_ref().and_then(LastKnownFile::read);
    let loaded = load_moved(&mut file, Place { kind, data: size }, facts, known.as_ref())
        .map_err(|error| load_error(&error, path))?;
    if let Some(remembered) = &mut last_known {
        remembered.about(path, loaded.disk.superblock.device_uuid);
        remembered.write(meta.size_bytes());
    }
    Ok(Opened { devices: Devices { data, meta }, disk: loaded.disk, recovery: loaded.recovery, last_known })
}

fn open_device(path: &Path, which: Which, claim: ClaimScope, owner: &str) -> Result<BackingDevice, ErrorReply> {
    let what = if which == Which::Data { "data" } else { "metadata" };
    let mut options = OpenOptions { claim, owner: format!("{owner} ({what})"), ..OpenOptions::default() };
    let device = open_when_free(path, &options).map_err(|error| open_error(&error, which))?;
    if device.geometry().logical_block_bytes <= BLOCK_BYTES_MIN {
        return Ok(device);
    }
    // Clients and peers address sectors of 512 bytes. The page cache does the rest, where the device itself does not insist.
    drop(device);
    options.direct = false;
    let device = BackingDevice::open(path, &options).map_err(|error| open_error(&error, which))?;
    let block = device.geometry().logical_block_bytes;
    if block > BLOCK_BYTES_MIN {
        let text = format!("{} has logical blocks of {block} bytes, only 512 are supported", path.display());
        return Err(ErrorReply::code(if which == Which::Data { 104 } else { 105 }).detail(text));
    }
    tracing::warn!("{owner}: {} goes through the page cache, direct I/O of 512 bytes is not possible", path.display());
    Ok(device)
}

/// Opens a device; where a daemon was killed a moment ago, waits until the kernel has given up what it was doing.
fn open_when_free(path: &Path, options: &OpenOptions) -> Result<BackingDevice, DiskError> {
    let deadline = Instant::now() + UNSEEN_MAX;
    loop {
        match BackingDevice::open(path, options) {
            Err(error) if error.kind() == DiskErrorKind::InUseUnseen && Instant::now() < deadline => {
                std::thread::sleep(UNSEEN_PAUSE);
            }
            result => return result,
        }
    }
}

fn open_error(error: &DiskError, which: Which) -> ErrorReply {
    let (data, meta) = match error.kind() {
        DiskErrorKind::InUse | DiskErrorKind::InUseUnseen => (114, 115),
        DiskErrorKind::NotADevice => (107, 108),
        _ => (104, 105),
    };
    ErrorReply::code(if which == Which::Data { data } else { meta }).detail(error.to_string())
}

fn load_error(error: &LoadError, path: &Path) -> ErrorReply {
    let code = match error {
        LoadError::Bitmap(_) => 140,
        LoadError::Meta(MetaError::NoMetadata(_)) => 119,
        LoadError::Meta(MetaError::Layout(_) | MetaError::Shrunk) => 112,
        LoadError::Meta(MetaError::Unclean | MetaError::NoUsableLog(_)) => 165,
        LoadError::Meta(_) => 118,
    };
    let mut text = format!("{}: {error}", path.display());
    if let LoadError::Meta(MetaError::NoMetadata(reason)) = error {
        text = format!("{text}: {reason}");
    }
    ErrorReply::code(code).detail(text)
}
