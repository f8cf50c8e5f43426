//! Errors of the operations on an unattached device.

use std::io;

use super::layout::LayoutError;
use super::recover::NoUsableLog;
use super::superblock::SuperblockError;
use super::text::gi::SetGiError;

/// Why an operation failed. `Display` gives drbdmeta's words where it has some.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The device failed.
    #[error("cannot {what} at byte {offset}: {source}")]
    Io {
        /// What was tried: "read" or "write" and the name of the area, or "flush".
        what: &'static str,
        /// Position on the device, in bytes.
        offset: u64,
        /// The device's error.
        source: io::Error,
    },
    /// There is no metadata of ours. drbdmeta says nothing more; the reason is in the source.
    #[error("No valid meta data found")]
    NoMetadata(#[source] SuperblockError),
    /// There is no room for metadata.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The activity log is needed and useless.
    #[error(transparent)]
    NoUsableLog(#[from] NoUsableLog),
    /// The device is inconsistent and cannot be outdated.
    #[error("Device is inconsistent.")]
    Inconsistent,
    /// The argument of `set-gi`.
    #[error(transparent)]
    SetGi(#[from] SetGiError),
    /// The metadata is not applied, and a clean dump was asked for.
    #[error("Found meta data is \"unclean\", please apply-al first")]
    Unclean,
    /// The text could not be written.
    #[error("cannot write the dump: {0}")]
    Output(#[source] io::Error),
    /// The metadata cannot be moved to a device end that lies before the old one.
    #[error("Device is too small now!")]
    Shrunk,
}

impl MetaError {
    /// The exit code of drbdmeta for this error.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoMetadata(_) | Self::NoUsableLog(_) | Self::Unclean | Self::Shrunk => 1,
            Self::Inconsistent => 5,
            Self::Io { .. } | Self::Layout(_) | Self::SetGi(_) | Self::Output(_) => 10,
        }
    }
}
