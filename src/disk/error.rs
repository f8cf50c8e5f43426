//! What can go wrong with a backing device: a small kind for decisions, the context for people, the system's own error.
//!
//! Owns: [`DiskError`], [`DiskErrorKind`], [`DiskAction`]. Invariant: the text names the action, the path and, for I/O,
//! the range, so that one log line is enough.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskAction {
    /// Opening a device.
    Open,
    /// Claiming a device or a byte range of it.
    Claim,
    /// Reading size and abilities of a device.
    Probe,
    /// Setting up a ring or its threads.
    Setup,
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Making completed writes durable.
    Flush,
    /// Discarding a range.
    Discard,
    /// Filling a range with zeroes.
    WriteZeroes,
}

impl DiskAction {
    const fn noun(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Claim => "claim",
            Self::Probe => "probe",
            Self::Setup => "set-up",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }
}

/// Why it failed, for control flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskErrorKind {
    /// The path does not exist.
    NotFound,
    /// The operating system denies access.
    PermissionDenied,
    /// Something else holds the device, the file or the byte range; the text says who where that can be known.
    InUse,
    /// The file is locked, and no process that can be seen holds it: most likely one that was killed and whose I/O the
    /// kernel is still calling back, so that it is free in a moment; else one of another container.
    InUseUnseen,
    /// Neither a block device nor a regular file.
    NotADevice,
    /// A change was asked of a device that is open, or is, read-only.
    ReadOnly,
    /// Offset or length is zero or no multiple of the logical block size.
    Misaligned,
    /// The range reaches beyond the end of the device, or is longer than one operation may be.
    OutOfRange,
    /// The device ended before the range did: it shrank while it was open.
    UnexpectedEof,
    /// The device or file system cannot do this.
    Unsupported,
    /// The file system under a file is full (or over quota).
    NoSpace,
    /// The device was closed before the operation was submitted.
    Closed,
    /// No memory or other resource of the host for it.
    NoMemory,
    /// The device is gone (unplugged, removed).
    Gone,
    /// The medium or the path to it failed.
    Io,
}

impl DiskErrorKind {
    /// The kind of an error of the operating system.
    #[must_use]
    pub fn of(source: &io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT) => Self::NotFound,
            Some(libc::EACCES | libc::EPERM) => Self::PermissionDenied,
            Some(libc::EBUSY | libc::ETXTBSY) => Self::InUse,
            Some(libc::EROFS | libc::EBADF) => Self::ReadOnly,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => Self::Unsupported,
            Some(libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM) => Self::Gone,
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Self::NoMemory,
            _ => match source.kind() {
                io::ErrorKind::UnexpectedEof => Self::UnexpectedEof,
                _ => Self::Io,
            },
        }
    }
}

/// A failed action on a backing device. One pointer wide, because it travels in every completion.
pub struct DiskError(Box<Parts>);

#[derive(Debug)]
struct Parts {
    kind: DiskErrorKind,
    action: DiskAction,
    path: PathBuf,
    range: Option<(u64, u64)>,
    detail: Option<String>,
    /// Found by us before anything was asked of the system.
    refused: bool,
    source: io::Error,
}

impl DiskError {
    /// An error of the operating system while doing `action` on `path`; its kind follows from the error number.
    #[must_use]
    pub fn new(action: DiskAction, path: &Path, source: io::Error) -> Self {
        let kind = DiskErrorKind::of(&source);
        Self(Box::new(Parts { kind, action, path: path.to_owned(), range: None, detail: None, refused: false, source }))
    }

    /// An error that we found ourselves; `detail` is a clause for people and stands in for the system's text.
    #[must_use]
    pub fn refused(action: DiskAction, path: &Path, kind: DiskErrorKind, detail: impl Into<String>) -> Self {
        let errno = match kind {
            DiskErrorKind::NotFound => libc::ENOENT,
            DiskErrorKind::PermissionDenied => libc::EACCES,
            DiskErrorKind::InUse | DiskErrorKind::InUseUnseen => libc::EBUSY,
            DiskErrorKind::NotADevice => libc::ENOTBLK,
            DiskErrorKind::ReadOnly => libc::EROFS,
            DiskErrorKind::Misaligned | DiskErrorKind::OutOfRange => libc::EINVAL,
            DiskErrorKind::Unsupported => libc::EOPNOTSUPP,
            DiskErrorKind::NoSpace => libc::ENOSPC,
            DiskErrorKind::Closed | DiskErrorKind::Gone => libc::ENODEV,
            DiskErrorKind::NoMemory => libc::ENOMEM,
            DiskErrorKind::UnexpectedEof | DiskErrorKind::Io => libc::EIO,
        };
        let source = io::Error::from_raw_os_error(errno);
        Self(Box::new(Parts {
            kind,
            action,
            path: path.to_owned(),
            range: None,
            detail: Some(detail.into()),
            refused: true,
            source,
        }))
    }

    /// The same error with the range that it is about, in bytes.
    #[must_use]
    pub fn at(mut self, offset: u64, len: u64) -> Self {
        self.0.range = Some((offset, len));
        self
    }

    /// The same error with an explanation for people.
    #[must_use]
    pub fn because(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Why, for control flow.
    #[must_use]
    pub fn kind(&self) -> DiskErrorKind {
        self.0.kind
    }

    /// Whether the device failed, so that on-io-error applies; false for requests that should not have been made, for
    /// discards that the device cannot do, and for everything that is not I/O.
    #[must_use]
    pub fn is_device_failure(&self) -> bool {
        match (self.0.action, self.0.kind) {
            (DiskAction::Open | DiskAction::Claim | DiskAction::Probe | DiskAction::Setup, _)
            | (DiskAction::Discard, DiskErrorKind::Unsupported) => false,
            (_, DiskErrorKind::UnexpectedEof) => true,
            _ => !self.0.refused,
        }
    }

    /// What was being done.
    #[must_use]
    pub fn action(&self) -> DiskAction {
        self.0.action
    }

    /// The device's path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Where the operation starts, in bytes; `None` for errors that are not about a range.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.range.map(|(offset, _)| offset)
    }

    /// Length of the operation in bytes; `None` for errors that are not about a range.
    #[must_use]
    pub fn len_bytes(&self) -> Option<u64> {
        self.0.range.map(|(_, len)| len)
    }

    /// The system's error; for refusals of our own the error number that fits best.
    #[must_use]
    pub fn io_error(&self) -> &io::Error {
        &self.0.source
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { action, path, range, detail, source, .. } = &*self.0;
        write!(f, "{} of ", action.noun())?;
        if let Some((offset, len)) = range {
            write!(f, "{len} bytes at offset {offset} on ")?;
        }
        write!(f, "{} failed: ", path.display())?;
        match detail {
            Some(detail) => f.write_str(detail),
            None => write!(f, "{source}"),
        }
    }
}

impl fmt::Debug for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for DiskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_action_range_path_and_cause() {
        let error = DiskError::new(DiskAction::Write, Path::new("/dev/x"), io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.kind(), DiskErrorKind::NoSpace);
        assert!(error.is_device_failure());
        assert_eq!(
            error.at(4096, 512).to_string(),
            "write of 512 bytes at offset 4096 on /dev/x failed: No space left on device (os error 28)"
        );
    }

    #[test]
    fn a_refusal_is_told_in_our_words_and_keeps_a_fitting_number() {
        let error =
            DiskError::refused(DiskAction::Claim, Path::new("/dev/x"), DiskErrorKind::InUse, "in use by r0/0 (data)");
        assert_eq!(error.to_string(), "claim of /dev/x failed: in use by r0/0 (data)");
        assert_eq!(error.io_error().raw_os_error(), Some(libc::EBUSY));
        assert!(!error.is_device_failure());
        assert_eq!(size_of::<DiskError>(), size_of::<usize>());
    }
}
