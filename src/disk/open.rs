//! Opening backing devices: block devices and regular files.
//!
//! Gives out: [`BackingDevice`], a cheap-to-clone handle. Invariants: the descriptor stays open, and the claim held,
//! until the last handle and the last operation in flight are gone; a request that passed [`BackingDevice::check`] lies
//! within the size and is aligned to logical blocks.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags};

use super::claim::{self, ClaimGuard, ClaimScope, DeviceKey};
use super::error::{DiskAction, DiskError, DiskErrorKind};
use super::probe::{self, Geometry};

/// How to open a backing device.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Refuse every change. Default: false.
    pub read_only: bool,
    /// Bypass the page cache where the device can. Default: true.
    pub direct: bool,
    /// What to claim. Default: the whole device.
    pub claim: ClaimScope,
    /// Who claims, for the error text that the next one gets, such as `r0/0 (data)`. Default: empty.
    pub owner: String,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, direct: true, claim: ClaimScope::Whole, owner: String::new() }
    }
}

/// An open block device or regular file. Clones refer to the same open device.
#[derive(Clone)]
pub struct BackingDevice(Arc<Device>);

// Field order matters: the descriptor (and the lock that it carries) goes before the claim does.
struct Device {
    fd: OwnedFd,
    claim: Option<ClaimGuard>,
    scope: ClaimScope,
    path: PathBuf,
    geometry: Geometry,
    size_bytes: AtomicU64,
    read_only: bool,
    closed: AtomicBool,
    abilities: Abilities,
    #[cfg(any(test, feature = "sim"))]
    medium: Option<super::fault::OpenMedium>,
}

/// What the device has refused as unsupported so far, so that it is not asked again.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    pub(super) no_punch: AtomicBool,
    pub(super) no_zero_range: AtomicBool,
}

impl Drop for Device {
    fn drop(&mut self) {
        claim::release(self.fd.as_fd(), self.scope);
    }
}

impl BackingDevice {
    /// Opens and claims the block device or regular file at `path`.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `NotADevice`, `InUse` (the text says by whom where that can be known), `Unsupported`
    /// for write access without a claim, `OutOfRange` for an empty claim, or the system's error.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let open_error = |error: rustix::io::Errno| DiskError::new(DiskAction::Open, path, error.into());
        let probe_error = |error: io::Error| DiskError::new(DiskAction::Probe, path, error);
        if options.claim == ClaimScope::Nothing && !options.read_only {
            let text = "writing without a claim is not possible";
            return Err(DiskError::refused(DiskAction::Open, path, DiskErrorKind::Unsupported, text));
        }
        if let ClaimScope::Range { start, len } = options.claim
            && (len == 0 || start.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()))
        {
            let text = "the byte range to claim is empty or too large";
            return Err(DiskError::refused(DiskAction::Claim, path, DiskErrorKind::OutOfRange, text));
        }
        // Looked at before it is opened: opening a pipe or a terminal has effects or never returns.
        device_key(path, &rustix::fs::stat(path).map_err(open_error)?)?;
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let fd =
            rustix::fs::open(path, access | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(open_error)?;
        let stat = rustix::fs::fstat(&fd).map_err(open_error)?;
        let key = device_key(path, &stat)?;
        let rdev = match key {
            DeviceKey::Block { rdev } => Some(rdev),
            DeviceKey::File { .. } => None,
        };
        let claim = claim::claim(fd.as_fd(), path, key, options.claim, &options.owner, options.read_only)?;
        let transfer = probe::negotiate_direct(fd.as_fd(), rdev.is_some(), options.direct).map_err(probe_error)?;
        let geometry = probe::probe(fd.as_fd(), rdev, &stat, options.read_only, transfer).map_err(probe_error)?;
        Ok(Self(Arc::new(Device {
            fd,
            claim,
            scope: options.claim,
            path: path.to_owned(),
            geometry,
            size_bytes: AtomicU64::new(geometry.size_bytes),
            read_only: options.read_only,
            closed: AtomicBool::new(false),
            abilities: Abilities::default(),
            #[cfg(any(test, feature = "sim"))]
            medium: super::fault::medium_of(&stat),
        })))
    }

    /// The path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Size and abilities; the size is the current one.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.size_bytes(), ..self.0.geometry }
    }

    /// Usable size in bytes, as last looked at.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.load(Ordering::Relaxed)
    }

    /// Looks at the size again (after the device was grown) and returns it, in bytes.
    ///
    /// # Errors
    /// The system's error when the size cannot be read; the old size stays.
    pub fn refresh_size(&self) -> Result<u64, DiskError> {
        let raw =
            probe::size_bytes(self.fd()).map_err(|error| DiskError::new(DiskAction::Probe, self.path(), error))?;
        let size = raw - raw % u64::from(self.0.geometry.logical_block_bytes);
        self.0.size_bytes.store(size, Ordering::Relaxed);
        Ok(size)
    }

    /// Whether changes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// Refuses every operation submitted from now on, through any handle. Operations in flight go on; the descriptor and
    /// the claim are given back when the last of them and the last handle are gone.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// Whether [`BackingDevice::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Whether both handles refer to the same open device.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The medium whose faults the device has, in tests.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn medium(&self) -> Option<&Arc<super::fault::Medium>> {
        self.0.medium.as_ref().map(super::fault::OpenMedium::medium)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    pub(super) fn abilities(&self) -> &Abilities {
        &self.0.abilities
    }

    pub(super) fn geometry_at_open(&self) -> &Geometry {
        &self.0.geometry
    }

    /// Whether an operation on `len` bytes from `offset` may be started.
    pub(super) fn check(&self, action: DiskAction, offset: u64, len: u64) -> Result<(), DiskError> {
        let refuse = |kind, text: String| Err(DiskError::refused(action, self.path(), kind, text).at(offset, len));
        if self.is_closed() {
            return refuse(DiskErrorKind::Closed, "the device was closed".to_owned());
        }
        if self.0.read_only && action != DiskAction::Read {
            return refuse(DiskErrorKind::ReadOnly, "the device is open read-only".to_owned());
        }
        let block = u64::from(self.0.geometry.logical_block_bytes);
        if len == 0 {
            return refuse(DiskErrorKind::Misaligned, "the length is 0".to_owned());
        }
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return refuse(
                DiskErrorKind::Misaligned,
                format!("offset and length must be multiples of the logical block size of {block} bytes"),
            );
        }
        let size = self.size_bytes();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return refuse(DiskErrorKind::OutOfRange, format!("beyond the end of the device at {size} bytes"));
        }
        Ok(())
    }

    /// Whether a flush may be started.
    pub(super) fn check_flush(&self) -> Result<(), DiskError> {
        if self.is_closed() {
            let text = "the device was closed";
            return Err(DiskError::refused(DiskAction::Flush, self.path(), DiskErrorKind::Closed, text));
        }
        Ok(())
    }
}

fn device_key(path: &Path, stat: &rustix::fs::Stat) -> Result<DeviceKey, DiskError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Ok(DeviceKey::Block { rdev: stat.st_rdev }),
        FileType::RegularFile => Ok(DeviceKey::File { dev: stat.st_dev, ino: stat.st_ino }),
        _ => {
            let text = "neither a block device nor a regular file";
            Err(DiskError::refused(DiskAction::Open, path, DiskErrorKind::NotADevice, text))
        }
    }
}

impl fmt::Debug for BackingDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackingDevice")
            .field("path", &self.0.path)
            .field("geometry", &self.geometry())
            .field("read_only", &self.0.read_only)
            .field("claim", &self.0.claim)
            .finish()
    }
}
