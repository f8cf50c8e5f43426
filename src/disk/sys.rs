//! The few system calls of this room that rustix has no safe wrapper for: open-file-description locks and BLKDISCARD;
//! and the registration of an eventfd with tokio.
#![expect(unsafe_code, reason = "fcntl and ioctl with structures that only live for the call")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `_IO(0x12, 119)`: discard a byte range of a block device.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// What to do with a byte range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeLock {
    /// Lock against everybody else.
    Exclusive,
    /// Lock against exclusive lockers (all that a read-only descriptor may do).
    Shared,
    /// Give the lock back.
    Release,
}

/// Changes the lock that belongs to the open file description behind `fd` on `len` bytes from `start` (`len` 0: to the
/// end of the file, wherever that will be). False when somebody else holds a conflicting lock; never waits.
pub(super) fn lock_range(fd: BorrowedFd<'_>, lock: RangeLock, start: u64, len: u64) -> io::Result<bool> {
    let kind = match lock {
        RangeLock::Exclusive => libc::F_WRLCK,
        RangeLock::Shared => libc::F_RDLCK,
        RangeLock::Release => libc::F_UNLCK,
    };
    let too_large = |_| io::Error::from_raw_os_error(libc::EOVERFLOW);
    let request = libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(too_large)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(too_large)?,
        l_start: libc::off_t::try_from(start).map_err(too_large)?,
        l_len: libc::off_t::try_from(len).map_err(too_large)?,
        // Must be 0 for locks of the open file description.
        l_pid: 0,
    };
    // SAFETY: `fd` is open for the duration of the call and `request` is a valid `flock` that the kernel only reads.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Discards `len` bytes from `offset` of the block device behind `fd`; waits until that is done.
pub(super) fn blk_discard(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range: [u64; 2] = [offset, len];
    // SAFETY: `fd` is open for the duration of the call and BLKDISCARD reads exactly two u64 from the pointer.
    if unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Registers `event` for reading with the tokio runtime of the calling thread.
pub(super) fn watch(event: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `Arc` owns the descriptor and moves into the result, so it stays open, with the same number, for as
    // long as it is registered.
    unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }.map_err(io::Error::from)
}
