//! The seam between a frontend and the resource that serves it: requests, completions, buffers.
//!
//! Owns: the request types, [`Completer`], and the two traits that the node implements ([`Backend`], [`BufferSource`]).
//! Takes in: nothing. Gives out: requests whose range is sector-aligned, not empty and inside the export.
//! Invariants: every submitted request is completed exactly once; a [`Completer`] that is dropped completes with
//! [`Errno::Io`]. Everything here stays in one thread (the resource's shard), so nothing is locked.
//! Hot path: one request makes no allocation and no lock here; [`Payload`] holds one piece inline.

use std::fmt;
use std::future::Future;
use std::ops::DerefMut;
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::units::SectorRange;

/// What a frontend asks of a resource. Ranges are not empty and lie inside the export as it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientRequest {
    /// Read at most [`crate::limits::REQUEST_BYTES_MAX_V100`]; completes with exactly the range's bytes.
    Read {
        /// What to read.
        range: SectorRange,
    },
    /// Write at most [`crate::limits::REQUEST_BYTES_MAX_V100`].
    Write {
        /// Where to write; exactly as long as `data`.
        range: SectorRange,
        /// One contiguous buffer from the frontend's [`BufferSource`].
        data: Bytes,
        /// Complete only when the data is durable.
        fua: bool,
    },
    /// Complete when every write that completed before is durable.
    Flush,
    /// The client does not need the data any more. At most 4 GiB less one sector, not split.
    Trim {
        /// What may be forgotten.
        range: SectorRange,
        /// Complete only when the effect is durable.
        fua: bool,
    },
    /// The range must read as zeros. At most 4 GiB less one sector, not split.
    WriteZeroes {
        /// What becomes zero.
        range: SectorRange,
        /// Keep the space allocated: do not turn this into a discard.
        no_hole: bool,
        /// Complete only when the zeros are durable.
        fua: bool,
    },
}

/// The errors that a client can be told. The set is NBD's; the numbers are Linux's and NBD's alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Errno {
    /// Not permitted: a write to a read-only export.
    Perm,
    /// The request failed on every replica that could serve it.
    Io,
    /// No memory for it.
    NoMem,
    /// The request makes no sense: unaligned, outside of the export, unknown flag.
    Inval,
    /// A write behind the end of the export, or the medium is full.
    NoSpc,
    /// The answer would be larger than the client allowed.
    Overflow,
    /// Legal, but not done here.
    NotSup,
    /// The export is going away.
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// The C name, as logs and manuals spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Perm => "EPERM",
            Self::Io => "EIO",
            Self::NoMem => "ENOMEM",
            Self::Inval => "EINVAL",
            Self::NoSpc => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSup => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Data of a completed read, in order; empty for everything else.
pub type Payload = SmallVec<[Bytes; 1]>;

/// How a request ended.
pub type Outcome = Result<Payload, Errno>;

/// Where the completions of one client go; implemented by frontends.
pub trait CompletionSink {
    /// The request that was submitted under `tag` has ended. Must not call back into the [`Backend`].
    fn complete(&self, tag: u64, outcome: Outcome);
}

/// The right, and the duty, to complete one request. Dropping it completes with [`Errno::Io`].
#[must_use]
pub struct Completer {
    sink: Option<Rc<dyn CompletionSink>>,
    tag: u64,
}

impl Completer {
    /// A completer that reports to `sink` under the frontend's own `tag`.
    pub fn new(sink: Rc<dyn CompletionSink>, tag: u64) -> Self {
        Self { sink: Some(sink), tag }
    }

    /// Ends the request. May be called from inside [`Backend::submit`].
    pub fn complete(mut self, outcome: Outcome) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.tag, outcome);
        }
    }

    /// Ends a request that has no data to return.
    pub fn done(self) {
        self.complete(Ok(Payload::new()));
    }

    /// Ends a request with an error.
    pub fn fail(self, errno: Errno) {
        self.complete(Err(errno));
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.tag, Err(Errno::Io));
        }
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// A volume of a resource, as its clients use it.
pub trait Backend {
    /// Starts `request`; `done` is called once, at any time, from the same thread.
    fn submit(&self, request: ClientRequest, done: Completer);

    /// All requests that were ready in this turn have been submitted: start what was collected.
    fn batch_end(&self) {}
}

impl<B: Backend + ?Sized> Backend for Rc<B> {
    fn submit(&self, request: ClientRequest, done: Completer) {
        (**self).submit(request, done);
    }

    fn batch_end(&self) {
        (**self).batch_end();
    }
}

/// Where the payload of writes is received into: the resource's pool of aligned buffers.
pub trait BufferSource {
    /// A buffer being filled.
    type Buffer: DerefMut<Target = [u8]>;

    /// A buffer of exactly `len` bytes (512 bytes to 1 MiB, whole sectors), its contents unspecified; `None` when the
    /// budget is used up.
    fn try_alloc(&self, len: usize) -> Option<Self::Buffer>;

    /// The filled buffer as a cheap-to-clone handle; the memory returns to the source with the last clone.
    fn freeze(&self, buffer: Self::Buffer) -> Bytes;

    /// Ends when it is worth to call [`Self::try_alloc`] for `len` bytes again; waiters should be served in order.
    fn wait(&self, len: usize) -> impl Future<Output = ()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Log(RefCell<Vec<(u64, Outcome)>>);

    impl CompletionSink for Log {
        fn complete(&self, tag: u64, outcome: Outcome) {
            self.0.borrow_mut().push((tag, outcome));
        }
    }

    #[test]
    fn a_request_completes_exactly_once_even_if_dropped() {
        let log = Rc::new(Log::default());
        Completer::new(Rc::clone(&log) as Rc<dyn CompletionSink>, 1).done();
        drop(Completer::new(Rc::clone(&log) as Rc<dyn CompletionSink>, 2));
        Completer::new(Rc::clone(&log) as Rc<dyn CompletionSink>, 3).fail(Errno::NoSpc);
        assert_eq!(*log.0.borrow(), [(1, Ok(Payload::new())), (2, Err(Errno::Io)), (3, Err(Errno::NoSpc))]);
    }
}
