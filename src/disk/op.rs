//! Disk operations: what callers ask for, what they get back, and the steps in between.
//!
//! Gives out: [`DiskOp`], [`Payload`], [`Completion`]. Inside: [`Active`], an accepted operation that owns its buffers and
//! says which system call comes next ([`Active::step`]) and what a call's result means ([`Active::advance`]); both rings
//! run the same steps, so short transfers, bounce buffers and refused zeroing are handled once. Invariants: an operation
//! is accepted only if its range is aligned and inside the device; buffers are freed only after the kernel is done.

use std::io::{self, IoSlice};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use smallvec::SmallVec;

use super::erase::Erase;
use super::error::{DiskAction, DiskError, DiskErrorKind};
use super::open::BackingDevice;
use super::pool::{BUF_LEN_MAX, PoolBuf};

/// Longest single write, in bytes.
pub const WRITE_BYTES_MAX: u64 = 1 << 30;
/// Most segments of a payload that are written without a copy (the kernel's UIO_MAXIOV).
const SEGMENTS_MAX: usize = 1024;
/// How often an operation may be interrupted or make no progress before it fails.
const FUTILE_MAX: u32 = 1000;

/// What to write: one piece of memory, or several that lie behind one another on the disk.
#[derive(Clone, Debug)]
pub enum Payload {
    /// One piece.
    One(Bytes),
    /// Several pieces, in order. Empty pieces are allowed.
    Many(Vec<Bytes>),
}

impl Payload {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.len() as u64).sum()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces().iter().all(Bytes::is_empty)
    }

    fn pieces(&self) -> &[Bytes] {
        match self {
            Self::One(piece) => std::slice::from_ref(piece),
            Self::Many(pieces) => pieces,
        }
    }
}

impl From<Bytes> for Payload {
    fn from(piece: Bytes) -> Self {
        Self::One(piece)
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(pieces: Vec<Bytes>) -> Self {
        Self::Many(pieces)
    }
}

impl From<PoolBuf> for Payload {
    fn from(buf: PoolBuf) -> Self {
        Self::One(buf.freeze())
    }
}

/// An operation on a backing device. Offsets and lengths are bytes, multiples of the device's logical block size.
/// Operations in flight at the same time are not ordered, even where they overlap.
#[derive(Debug)]
pub enum DiskOp {
    /// Reads `len` bytes, 1 to [`BUF_LEN_MAX`].
    Read {
        /// The device.
        dev: BackingDevice,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
        /// Where to: a buffer with a capacity of at least `len`. `None`: one from the ring's pool; while that is empty the
        /// read waits, and later reads without a buffer behind it.
        buf: Option<PoolBuf>,
    },
    /// Writes `data`, at most [`WRITE_BYTES_MAX`] bytes. Memory that is not aligned for the device is copied.
    Write {
        /// The device.
        dev: BackingDevice,
        /// First byte.
        offset: u64,
        /// What to write.
        data: Payload,
        /// Complete only when the data is durable (RWF_DSYNC).
        fua: bool,
    },
    /// Makes every write that completed before this operation was submitted durable (fdatasync).
    Flush {
        /// The device.
        dev: BackingDevice,
    },
    /// Gives a range back to the device. What a block device's whole granules read as afterwards only the geometry says; what
    /// lies beside them is zeroed, and a regular file reads as zeroes. Fails with `Unsupported` where the device cannot.
    Discard {
        /// The device.
        dev: BackingDevice,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Makes a range read as zeroes; zeroes are transferred only if the device has no better way.
    WriteZeroes {
        /// The device.
        dev: BackingDevice,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Whether the space may be given back to the device.
        may_unmap: bool,
    },
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The caller's token of the submission.
    pub token: u64,
    /// How it went. After an error the range of a write holds old data, new data or any mixture.
    pub result: Result<(), DiskError>,
    /// The data of a read that succeeded, exactly as long as asked for; `None` for everything else.
    pub buf: Option<PoolBuf>,
}

/// The next system call of an operation.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Read {
        into: &'a mut [u8],
        offset: u64,
    },
    Write {
        from: SmallVec<[IoSlice<'a>; 4]>,
        offset: u64,
        dsync: bool,
    },
    DataSync,
    Fallocate {
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
    /// Has no asynchronous form that all supported kernels know.
    BlkDiscard {
        offset: u64,
        len: u64,
    },
}

/// What follows from the result of a step.
#[derive(Debug)]
pub(super) enum Next {
    /// There is another step.
    Step,
    /// The operation is over.
    Done(Result<(), DiskError>),
}

/// What an operation does to its device, for the model of a medium.
#[cfg(any(test, feature = "sim"))]
pub(super) enum Effect<'a> {
    Read,
    /// Without pieces: zeroes.
    Write {
        offset: u64,
        len: u64,
        pieces: &'a [Bytes],
        fua: bool,
    },
    Flush,
}

/// Memory that an operation still needs before its first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The buffer of a read, from the ring's pool.
    ReadBuffer(usize),
    /// Aligned memory for a copy of the payload, from the ring's reserve.
    Bounce(usize),
}

/// An accepted operation with everything that it owns.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) token: u64,
    pub(super) dev: BackingDevice,
    work: Work,
    offset: u64,
    len: u64,
    done: u64,
    futile: u32,
}

/// Longest operation on a file in memory that is done at once, in bytes: some 10 us of copying.
const INLINE_BYTES_MAX: u64 = 128 << 10;

#[derive(Debug)]
enum Work {
    Read { buf: Option<PoolBuf> },
    Write { data: Payload, fua: bool, copy: bool, bounce: Option<PoolBuf> },
    Flush,
    Erase(Erase),
}

impl Active {
    /// Checks an operation and takes it over.
    pub(super) fn accept(op: DiskOp, token: u64) -> Result<Self, Completion> {
        let refused = |error| Completion { token, result: Err(error), buf: None };
        let active = |dev, work, offset, len| Self { token, dev, work, offset, len, done: 0, futile: 0 };
        let too_long = |dev: &BackingDevice, action, offset, len, max: u64| {
            let text = format!("longer than the {max} bytes that one operation may have");
            DiskError::refused(action, dev.path(), DiskErrorKind::OutOfRange, text).at(offset, len)
        };
        match op {
            DiskOp::Read { dev, offset, len, mut buf } => {
                dev.check(DiskAction::Read, offset, len as u64).map_err(refused)?;
                if len > BUF_LEN_MAX || buf.as_mut().is_some_and(|buf| !buf.set_len(len)) {
                    let max = buf.map_or(BUF_LEN_MAX, |buf| buf.capacity()) as u64;
                    return Err(refused(too_long(&dev, DiskAction::Read, offset, len as u64, max)));
                }
                Ok(active(dev, Work::Read { buf }, offset, len as u64))
            }
            DiskOp::Write { dev, offset, data, fua } => {
                let len = data.len();
                dev.check(DiskAction::Write, offset, len).map_err(refused)?;
                if len > WRITE_BYTES_MAX {
                    return Err(refused(too_long(&dev, DiskAction::Write, offset, len, WRITE_BYTES_MAX)));
                }
                let align = dev.geometry_at_open().memory_align_bytes as usize;
                let pieces = data.pieces();
                let copy = pieces.len() > SEGMENTS_MAX
                    || pieces
                        .iter()
                        .any(|p| !(p.as_ptr() as usize).is_multiple_of(align) || !p.len().is_multiple_of(align));
                Ok(active(dev, Work::Write { data, fua, copy, bounce: None }, offset, len))
            }
            DiskOp::Flush { dev } => {
                dev.check_flush().map_err(refused)?;
                Ok(active(dev, Work::Flush, 0, 0))
            }
            DiskOp::Discard { dev, offset, len } => {
                dev.check(DiskAction::Discard, offset, len).map_err(refused)?;
                let geometry = dev.geometry_at_open();
                let Some(limits) = geometry.discard else {
                    let text = "the device or its file system cannot discard";
                    let error = DiskError::refused(DiskAction::Discard, dev.path(), DiskErrorKind::Unsupported, text);
                    return Err(refused(error.at(offset, len)));
                };
                let block = geometry.logical_block_bytes;
                let erase = Erase::discard(geometry.block_device, block, &limits, offset..offset + len);
                Ok(active(dev, Work::Erase(erase), offset, len))
            }
            DiskOp::WriteZeroes { dev, offset, len, may_unmap } => {
                dev.check(DiskAction::WriteZeroes, offset, len).map_err(refused)?;
                Ok(active(dev, Work::Erase(Erase::zero(may_unmap)), offset, len))
            }
        }
    }

    /// Memory that [`Active::give`] must bring before the first step.
    pub(super) fn need(&self) -> Option<Need> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        match &self.work {
            Work::Read { buf: None } => Some(Need::ReadBuffer(len)),
            Work::Write { copy: true, bounce: None, .. } => Some(Need::Bounce(len.min(BUF_LEN_MAX))),
            _ => None,
        }
    }

    /// Brings the memory that [`Active::need`] asked for.
    pub(super) fn give(&mut self, memory: PoolBuf) {
        match &mut self.work {
            Work::Read { buf } => *buf = Some(memory),
            Work::Write { bounce, .. } => *bounce = Some(memory),
            _ => {}
        }
    }

    /// What it does to its device.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn effect(&self) -> Effect<'_> {
        let Self { offset, len, .. } = *self;
        match &self.work {
            Work::Read { .. } => Effect::Read,
            Work::Write { data, fua, .. } => Effect::Write { offset, len, pieces: data.pieces(), fua: *fua },
            Work::Erase(_) => Effect::Write { offset, len, pieces: &[], fua: false },
            Work::Flush => Effect::Flush,
        }
    }

    /// Takes the payload of a write away, if it is one piece that is not copied.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn take_payload(&mut self) -> Option<Bytes> {
        match &mut self.work {
            Work::Write { data: Payload::One(piece), copy: false, .. } => Some(std::mem::take(piece)),
            _ => None,
        }
    }

    /// Gives a write another payload, as long as the one before and aligned like memory of a pool.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn put_payload(&mut self, piece: Bytes) {
        if let Work::Write { data, .. } = &mut self.work {
            *data = Payload::One(piece);
        }
    }

    /// Whether it is quicker done here and now than handed to anybody: a short copy in memory. The kernel has no
    /// asynchronous way for such files; io_uring gives them to a thread of its own.
    pub(super) fn is_inline(&self) -> bool {
        self.len <= INLINE_BYTES_MAX && self.dev.geometry_at_open().in_memory
    }

    /// Whether there is a step that only a thread can do.
    pub(super) fn needs_thread(&self) -> bool {
        matches!(&self.work, Work::Erase(erase) if erase.needs_thread(self.dev.geometry_at_open().block_device))
    }

    /// The next system call. The slices in it stay valid, wherever `self` moves, until [`Active::advance`] or drop.
    pub(super) fn step(&mut self) -> io::Result<Step<'_>> {
        let offset = self.offset + self.done;
        // Lengths of memory fit into usize; only zeroing and discarding can be longer.
        let done = usize::try_from(self.done).unwrap_or(usize::MAX);
        match &mut self.work {
            Work::Read { buf } => match buf.as_mut().and_then(|buf| buf.get_mut(done..)) {
                Some(into) if !into.is_empty() => Ok(Step::Read { into, offset }),
                _ => Err(io::ErrorKind::OutOfMemory.into()),
            },
            Work::Write { data, fua, copy: false, .. } => {
                Ok(Step::Write { from: slices_behind(data.pieces(), done), offset, dsync: *fua })
            }
            Work::Write { data, fua, bounce, .. } => {
                let Some(bounce) = bounce else { return Err(io::ErrorKind::OutOfMemory.into()) };
                let mut filled = 0;
                for slice in slices_behind(data.pieces(), done) {
                    let room = bounce.get_mut(filled..).unwrap_or_default();
                    let take = room.len().min(slice.len());
                    room[..take].copy_from_slice(&slice[..take]);
                    filled += take;
                }
                let from = SmallVec::from_iter([IoSlice::new(&bounce[..filled])]);
                Ok(Step::Write { from, offset, dsync: *fua })
            }
            Work::Flush => Ok(Step::DataSync),
            Work::Erase(erase) => erase.step(&self.dev, offset, self.offset + self.len),
        }
    }

    /// Takes in the result of the last step: bytes transferred for a read or write, anything for the others.
    pub(super) fn advance(&mut self, result: io::Result<usize>) -> Next {
        let moved = match result {
            Ok(moved) => moved as u64,
            Err(error) => return self.after_error(error),
        };
        match &self.work {
            Work::Flush => Next::Done(Ok(())),
            Work::Read { .. } if moved == 0 => {
                let text = "the device ended early; it must have shrunk";
                Next::Done(Err(self.refuse(DiskErrorKind::UnexpectedEof, text)))
            }
            Work::Read { .. } | Work::Write { .. } | Work::Erase(_) => {
                // Direct I/O can only go on at a block boundary; a part of a block is transferred again.
                let block = u64::from(self.dev.geometry_at_open().logical_block_bytes);
                let end = match &self.work {
                    Work::Erase(erase) => {
                        erase.reached(self.offset + self.done, self.offset + self.len, moved) - self.offset
                    }
                    _ => (self.done + moved).min(self.len),
                };
                let end = end - end % block;
                if end == self.len {
                    return Next::Done(Ok(()));
                }
                if end == self.done {
                    return self.futile(io::ErrorKind::WriteZero.into());
                }
                self.done = end;
                self.futile = 0;
                Next::Step
            }
        }
    }

    /// The completion with `result`.
    pub(super) fn finish(self, result: Result<(), DiskError>) -> Completion {
        let buf = match self.work {
            Work::Read { buf } if result.is_ok() => buf,
            _ => None,
        };
        Completion { token: self.token, result, buf }
    }

    /// An error about this operation.
    pub(super) fn error(&self, source: io::Error) -> DiskError {
        DiskError::new(self.action(), self.dev.path(), source).at(self.offset, self.len)
    }

    fn refuse(&self, kind: DiskErrorKind, text: &str) -> DiskError {
        DiskError::refused(self.action(), self.dev.path(), kind, text).at(self.offset, self.len)
    }

    fn action(&self) -> DiskAction {
        match self.work {
            Work::Read { .. } => DiskAction::Read,
            Work::Write { .. } => DiskAction::Write,
            Work::Flush => DiskAction::Flush,
            Work::Erase(Erase { is_discard: true, .. }) => DiskAction::Discard,
            Work::Erase(_) => DiskAction::WriteZeroes,
        }
    }

    fn futile(&mut self, error: io::Error) -> Next {
        self.futile += 1;
        if self.futile > FUTILE_MAX { Next::Done(Err(self.error(error))) } else { Next::Step }
    }

    fn after_error(&mut self, error: io::Error) -> Next {
        let errno = error.raw_os_error();
        if matches!(errno, Some(libc::EINTR | libc::EAGAIN)) {
            return self.futile(error);
        }
        if let Work::Erase(erase) = &mut self.work
            && matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
            && erase.refused(self.dev.abilities(), self.offset + self.done)
        {
            return Next::Step;
        }
        Next::Done(Err(self.error(error)))
    }
}

/// The non-empty rests of `pieces` behind their first `skip` bytes.
fn slices_behind(pieces: &[Bytes], mut skip: usize) -> SmallVec<[IoSlice<'_>; 4]> {
    let mut slices = SmallVec::new();
    for piece in pieces {
        let passed = skip.min(piece.len());
        skip -= passed;
        if passed < piece.len() {
            slices.push(IoSlice::new(&piece[passed..]));
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use rustix::fs::FallocateFlags;

    use super::super::open::OpenOptions;
    use super::super::pool::Pool;
    use super::*;

    const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

    fn device() -> (tempfile::NamedTempFile, BackingDevice) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let dev = BackingDevice::open(file.path(), &OpenOptions::default()).unwrap();
        (file, dev)
    }

    fn written(step: Step<'_>) -> (u64, Vec<u8>) {
        match step {
            Step::Write { from, offset, .. } => (offset, from.iter().flat_map(|slice| slice.iter().copied()).collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_write_goes_on_at_the_last_whole_block() {
        let (_file, dev) = device();
        let block = usize::try_from(dev.geometry().logical_block_bytes).unwrap();
        let data = Bytes::from_iter((0..8u8).flat_map(|n| vec![n; block]));
        for pieces in [vec![data.clone()], vec![data.slice(..block * 3), Bytes::new(), data.slice(block * 3..)]] {
            let op = DiskOp::Write { dev: dev.clone(), offset: 0, data: pieces.into(), fua: false };
            let mut active = Active::accept(op, 1).unwrap();
            if active.need().is_some() {
                active.give(Pool::new(BUF_LEN_MAX).unwrap().try_alloc(BUF_LEN_MAX).unwrap());
            }
            assert_eq!(written(active.step().unwrap()), (0, data.to_vec()));
            assert!(matches!(active.advance(Ok(block * 2 + block / 2)), Next::Step));
            assert_eq!(written(active.step().unwrap()), ((block * 2) as u64, data[block * 2..].to_vec()));
            assert!(matches!(active.advance(Ok(block * 3)), Next::Step));
            assert_eq!(written(active.step().unwrap()), ((block * 5) as u64, data[block * 5..].to_vec()));
            assert!(matches!(active.advance(Ok(block * 3)), Next::Done(Ok(()))));
        }
    }

    #[test]
    fn a_short_read_goes_on_and_the_end_of_the_device_is_an_error() {
        let (_file, dev) = device();
        let buf = Pool::new(BUF_LEN_MAX).unwrap().try_alloc(8192);
        let mut active = Active::accept(DiskOp::Read { dev, offset: 4096, len: 8192, buf }, 1).unwrap();
        assert!(matches!(active.step().unwrap(), Step::Read { offset: 4096, into } if into.len() == 8192));
        assert!(matches!(active.advance(Ok(4096)), Next::Step));
        assert!(matches!(active.step().unwrap(), Step::Read { offset: 8192, into } if into.len() == 4096));
        let Next::Done(Err(error)) = active.advance(Ok(0)) else { panic!("not refused") };
        assert_eq!(error.kind(), DiskErrorKind::UnexpectedEof);
        assert!(active.finish(Err(error)).buf.is_none());
    }

    #[test]
    fn interrupted_steps_are_repeated_but_not_for_ever() {
        let (_file, dev) = device();
        let mut active = Active::accept(DiskOp::Flush { dev }, 1).unwrap();
        for _ in 0..FUTILE_MAX {
            assert!(matches!(active.advance(Err(io::Error::from_raw_os_error(libc::EINTR))), Next::Step));
        }
        assert!(matches!(active.advance(Err(io::Error::from_raw_os_error(libc::EAGAIN))), Next::Done(Err(_))));
    }

    #[test]
    fn other_errors_end_the_operation_at_once() {
        let (_file, dev) = device();
        let mut active = Active::accept(DiskOp::Flush { dev }, 7).unwrap();
        let Next::Done(result) = active.advance(Err(io::Error::from_raw_os_error(libc::EIO))) else {
            panic!("goes on")
        };
        assert!(result.as_ref().unwrap_err().is_device_failure());
        assert_eq!(active.finish(result).token, 7);
    }

    #[test]
    fn refused_zeroing_ends_in_a_transfer_and_is_remembered() {
        let (_file, dev) = device();
        let op = || DiskOp::WriteZeroes { dev: dev.clone(), offset: 0, len: 8192, may_unmap: true };
        let refused = || Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        let mut active = Active::accept(op(), 1).unwrap();
        assert!(matches!(active.step().unwrap(), Step::Fallocate { mode: PUNCH, .. }));
        assert!(matches!(active.advance(refused()), Next::Step));
        assert!(matches!(active.step().unwrap(), Step::Fallocate { mode, .. } if mode != PUNCH));
        assert!(matches!(active.advance(refused()), Next::Step));
        assert_eq!(written(active.step().unwrap()), (0, vec![0; 8192]));
        let Next::Done(Err(error)) = active.advance(refused()) else { panic!("goes on") };
        assert_eq!(error.kind(), DiskErrorKind::Unsupported);
        let mut next = Active::accept(op(), 2).unwrap();
        assert!(matches!(next.step().unwrap(), Step::Write { .. }));
    }
}
