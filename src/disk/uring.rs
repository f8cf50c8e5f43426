//! Disk operations through io_uring, one ring per shard.
//!
//! Takes in: accepted operations, at most `depth` at a time. Gives out: finished ones; the kernel announces completions
//! on an eventfd. Invariants: a slot owns the operation (buffers, descriptor, segment list) from the moment its entry is
//! queued until its completion is seen; a ring that goes away with operations in flight waits for them a moment and
//! leaks what remains, because the kernel may still write there. Only the creating thread may use the ring
//! (IORING_SETUP_SINGLE_ISSUER).
#![expect(unsafe_code, reason = "gives addresses of owned buffers to the kernel")]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue, types};
use slab::Slab;
use smallvec::SmallVec;

use super::op::{Active, Completion, Next, Step};

/// How long dropping a ring waits for operations in flight.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Marks the entry of the self-test.
const PING: u64 = u64::MAX;

struct Slot {
    active: Active,
    /// What a vectored write points to; here because the entry must not move while the kernel may read it.
    segments: Vec<libc::iovec>,
}

/// An io_uring with the operations that it works on.
pub(super) struct Uring {
    ring: ManuallyDrop<IoUring>,
    slots: ManuallyDrop<Slab<Slot>>,
    /// Slots whose entries the kernel has not taken yet, in submission order.
    unsubmitted: VecDeque<usize>,
    depth: usize,
    broken: Option<i32>,
    /// Keeps the registered eventfd open.
    _event: Arc<OwnedFd>,
    /// What the kernel granted, for people.
    pub(super) mode: &'static str,
}

fn build(depth: u32) -> io::Result<(IoUring, &'static str)> {
    let builder = IoUring::builder;
    let single =
        builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all().build(depth);
    match single {
        Ok(ring) => return Ok((ring, "single issuer, deferred task work")),
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        Err(_) => {}
    }
    match builder().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all().build(depth) {
        Ok(ring) => return Ok((ring, "cooperative task work")),
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        Err(_) => {}
    }
    Ok((builder().build(depth)?, "plain"))
}

impl Uring {
    /// A ring for up to `depth` operations, checked with a round trip.
    pub(super) fn new(depth: u32, event: Arc<OwnedFd>) -> io::Result<Self> {
        let (ring, mode) = build(depth.max(1))?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
        }
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let depth = usize::try_from(ring.params().sq_entries()).unwrap_or(1);
        let mut uring = Self {
            ring: ManuallyDrop::new(ring),
            slots: ManuallyDrop::new(Slab::with_capacity(depth)),
            unsubmitted: VecDeque::with_capacity(depth),
            depth,
            broken: None,
            _event: event,
            mode,
        };
        uring.self_test()?;
        Ok(uring)
    }

    /// A sandbox may allow the set-up and forbid the use.
    fn self_test(&mut self) -> io::Result<()> {
        let nop = opcode::Nop::new().build().user_data(PING);
        // SAFETY: a no-op refers to no memory.
        unsafe { self.ring.submission().push(&nop) }.map_err(|_| io::ErrorKind::Other)?;
        self.ring.submit_and_wait(1)?;
        match self.ring.completion().next() {
            Some(entry) if entry.user_data() == PING && entry.result() >= 0 => Ok(()),
            _ => Err(io::Error::other("io_uring does not complete a no-op")),
        }
    }

    /// Whether [`Uring::push`] may be called.
    pub(super) fn has_room(&self) -> bool {
        self.slots.len() < self.depth
    }

    /// Operations that the ring owns.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Whether entries wait for [`Uring::enter`].
    pub(super) fn has_unsubmitted(&self) -> bool {
        !self.unsubmitted.is_empty()
    }

    /// Whether everything that the ring owns waits for [`Uring::enter`], which the kernel did not take at the last try.
    pub(super) fn is_stuck(&self) -> bool {
        self.has_unsubmitted() && self.unsubmitted.len() == self.slots.len()
    }

    /// Whether [`Uring::reap`] may find something.
    pub(super) fn has_done(&mut self) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        !self.ring.completion().is_empty() || self.wants_enter()
    }

    /// Whether completions are held back in the kernel until the next [`Uring::enter`].
    fn wants_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Queues the first step of an operation. There must be room, and the operation must have its memory.
    pub(super) fn push(&mut self, active: Active, out: &mut Vec<Completion>) {
        debug_assert!(self.has_room());
        let key = self.slots.insert(Slot { active, segments: Vec::new() });
        self.queue_step(key, out);
    }

    fn queue_step(&mut self, key: usize, out: &mut Vec<Completion>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let failure = match self.broken {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => match slot.entry() {
                Ok(entry) => {
                    let entry = entry.user_data(key as u64);
                    // SAFETY: the entry points to memory that the operation in slot `key` owns (buffer, payload or
                    // segment list, none of which moves with the slot); the slot is removed, and the memory freed, only
                    // after the completion of this entry was seen, or leaked.
                    if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                        self.unsubmitted.push_back(key);
                        return;
                    }
                    // Cannot happen: there are as many entries as slots.
                    io::Error::from_raw_os_error(libc::EBUSY)
                }
                Err(error) => error,
            },
        };
        let Slot { active, .. } = self.slots.remove(key);
        let error = active.error(failure);
        out.push(active.finish(Err(error)));
    }

    /// Gives all queued entries to the kernel and lets it post completions; one system call as a rule. What the kernel
    /// has no memory for at the moment stays queued.
    pub(super) fn enter(&mut self, out: &mut Vec<Completion>) {
        while self.broken.is_none() && (self.has_unsubmitted() || self.wants_enter()) {
            let count = u32::try_from(self.unsubmitted.len()).unwrap_or(u32::MAX);
            match self.enter_kernel(count) {
                Ok(taken) => {
                    let before = self.unsubmitted.len();
                    self.unsubmitted.drain(..taken.min(before));
                    if self.unsubmitted.len() == before {
                        return;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Transient: completions must be reaped first, or memory is short.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => return,
                    errno => {
                        self.break_down(errno.unwrap_or(libc::EIO), out);
                        return;
                    }
                },
            }
        }
    }

    fn enter_kernel(&self, submit: u32) -> io::Result<usize> {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed, and every queued entry refers to memory that its slot keeps alive.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(submit, 0, flags, None) }
    }

    /// Waits for one completion without submitting anything.
    fn wait_kernel(&self, timeout: Duration) -> io::Result<usize> {
        let time = types::Timespec::from(timeout);
        let args = types::SubmitArgs::new().timespec(&time);
        let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
        // SAFETY: EXT_ARG takes exactly this structure, which lives for the call, as does the time that it points to.
        unsafe { self.ring.submitter().enter(0, 1, flags, Some(&args)) }
    }

    /// The kernel refuses to talk to us: every operation fails, and what it may still be working on is leaked.
    fn break_down(&mut self, errno: i32, out: &mut Vec<Completion>) {
        self.broken = Some(errno);
        for Slot { active, segments } in self.slots.drain() {
            let error = active.error(io::Error::from_raw_os_error(errno)).because("io_uring failed");
            let completion = Completion { token: active.token, result: Err(error), buf: None };
            std::mem::forget((active, segments));
            out.push(completion);
        }
        self.unsubmitted.clear();
    }

    /// Takes completions; an operation that needs another step gets it queued (see [`Uring::has_unsubmitted`]).
    pub(super) fn reap(&mut self, out: &mut Vec<Completion>) {
        loop {
            // Copied in batches: following up on a completion needs the ring.
            let batch: SmallVec<[(u64, i32); 64]> =
                self.ring.completion().take(64).map(|entry| (entry.user_data(), entry.result())).collect();
            for &(key, result) in &batch {
                self.complete(key, result, out);
            }
            if batch.len() < 64 {
                return;
            }
        }
    }

    fn complete(&mut self, key: u64, result: i32, out: &mut Vec<Completion>) {
        let Ok(key) = usize::try_from(key) else { return };
        let Some(slot) = self.slots.get_mut(key) else { return };
        let result = match usize::try_from(result) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        match slot.active.advance(result) {
            Next::Step => self.queue_step(key, out),
            Next::Done(result) => out.push(self.slots.remove(key).active.finish(result)),
        }
    }
}

impl Slot {
    /// The submission entry for the operation's next step.
    fn entry(&mut self) -> io::Result<squeue::Entry> {
        let fd = types::Fd(self.active.dev.fd().as_fd().as_raw_fd());
        let too_long = |_| io::Error::from_raw_os_error(libc::EINVAL);
        let entry = match self.active.step()? {
            Step::Read { into, offset } => {
                let len = u32::try_from(into.len()).map_err(too_long)?;
                opcode::Read::new(fd, into.as_mut_ptr(), len).offset(offset).build()
            }
            Step::Write { from, offset, dsync } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                if let [slice] = &from[..] {
                    let len = u32::try_from(slice.len()).map_err(too_long)?;
                    opcode::Write::new(fd, slice.as_ptr(), len).offset(offset).rw_flags(flags).build()
                } else {
                    self.segments.clear();
                    self.segments.extend(from.iter().map(|slice| libc::iovec {
                        // The kernel only reads from it; iovec has no const form.
                        iov_base: slice.as_ptr().cast_mut().cast(),
                        iov_len: slice.len(),
                    }));
                    let count = u32::try_from(self.segments.len()).map_err(too_long)?;
                    opcode::Writev::new(fd, self.segments.as_ptr(), count).offset(offset).rw_flags(flags).build()
                }
            }
            Step::DataSync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Fallocate { mode, offset, len } => {
                let mode = i32::try_from(mode.bits()).map_err(too_long)?;
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
            }
            Step::BlkDiscard { .. } => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        };
        Ok(entry)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Entries that the kernel never saw die with the ring.
        let mut never_submitted = std::mem::take(&mut self.unsubmitted);
        for key in never_submitted.drain(..) {
            self.slots.try_remove(key);
        }
        let deadline = Instant::now() + DRAIN_MAX;
        // A panicking shard must not hang here; and a deferred ring gives nothing without waiting.
        while !self.slots.is_empty() && self.broken.is_none() && !std::thread::panicking() {
            while let Some(entry) = self.ring.completion().next() {
                if let Ok(key) = usize::try_from(entry.user_data()) {
                    self.slots.try_remove(key);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.slots.is_empty() || left.is_zero() {
                break;
            }
            let waited = self.wait_kernel(left);
            if waited.is_err_and(|error| !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME))) {
                break;
            }
        }
        if self.slots.is_empty() && self.broken.is_none() {
            // SAFETY: neither is used again; no operation is in the kernel's hands.
            unsafe {
                ManuallyDrop::drop(&mut self.slots);
                ManuallyDrop::drop(&mut self.ring);
            }
        } else {
            tracing::warn!(
                operations = self.slots.len(),
                "a disk ring ends with operations in flight; their memory is leaked"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::EventfdFlags;

    use super::super::op::DiskOp;
    use super::super::open::{BackingDevice, OpenOptions};
    use super::super::pool::Pool;
    use super::*;

    fn ring() -> Option<Uring> {
        let event = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        Uring::new(4, event).inspect_err(|error| println!("skipped: {error}")).ok()
    }

    #[test]
    fn a_ring_that_breaks_down_fails_everything_and_leaks_what_the_kernel_may_write() {
        let Some(mut ring) = ring() else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let dev = BackingDevice::open(file.path(), &OpenOptions::default()).unwrap();
        let pool = Pool::new(1 << 20).unwrap();
        let read = |token| {
            let buf = pool.try_alloc(4096);
            Active::accept(DiskOp::Read { dev: dev.clone(), offset: 0, len: 4096, buf }, token).unwrap()
        };
        let mut out = Vec::new();
        ring.push(read(1), &mut out);
        ring.enter(&mut out);
        ring.push(read(2), &mut out);
        ring.break_down(libc::EBADF, &mut out);
        ring.push(read(3), &mut out);
        let tokens: Vec<_> = out.iter().map(|c| (c.token, c.result.is_err(), c.buf.is_none())).collect();
        assert_eq!(tokens, [(1, true, true), (2, true, true), (3, true, true)]);
        assert!(out.iter().all(|c| c.result.as_ref().unwrap_err().is_device_failure()));
        drop(ring);
        assert_eq!(pool.free_bytes(), (1 << 20) - 2 * 4096);
    }

    #[test]
    fn what_the_kernel_never_saw_is_dropped_with_the_ring() {
        let Some(mut ring) = ring() else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let dev = BackingDevice::open(file.path(), &OpenOptions::default()).unwrap();
        let pool = Pool::new(1 << 20).unwrap();
        let mut out = Vec::new();
        let mut payload = pool.try_alloc(4096).unwrap();
        payload.fill(1);
        let data = payload.freeze();
        let op = DiskOp::Write { dev, offset: 0, data: data.into(), fua: false };
        ring.push(Active::accept(op, 1).unwrap(), &mut out);
        assert!(ring.has_unsubmitted() && ring.is_stuck());
        drop(ring);
        assert!(out.is_empty());
        assert_eq!(pool.free_bytes(), 1 << 20);
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![0; 1 << 20]);
    }
}
