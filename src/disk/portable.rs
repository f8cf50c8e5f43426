//! Disk operations on a few threads: pread, pwrite, fdatasync. For hosts without io_uring, and for the operations that
//! io_uring does not know.
//!
//! Takes in: accepted operations, collected and handed over as a batch. Gives out: finished ones, announced on an
//! eventfd. Invariants: an operation in flight is owned by exactly one thread, so nothing that happens to the ring can
//! free its memory; threads end when the ring is dropped and their current operation is done. Threads inherit the
//! PR_SET_IO_FLUSHER setting of the thread that owns the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::io::ReadWriteFlags;

use super::op::{Active, Completion, Next, Step};
use super::pool::PoolBuf;
use super::sys::blk_discard;

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Completion>>,
    event: Arc<OwnedFd>,
}

struct Queue {
    jobs: VecDeque<Active>,
    idle: usize,
    stop: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data consistent at each point where it could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread pool for disk operations; owned by one thread.
pub(super) struct Portable {
    shared: Arc<Shared>,
    staged: Vec<Active>,
    threads: usize,
    threads_max: usize,
    in_flight: usize,
}

impl Portable {
    /// At most `threads_max` threads, started as they are needed; completions are announced on `event`.
    pub(super) fn new(threads_max: usize, event: Arc<OwnedFd>) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), idle: 0, stop: false }),
            work: Condvar::new(),
            done: Mutex::new(Vec::new()),
            event,
        });
        Self { shared, staged: Vec::new(), threads: 0, threads_max: threads_max.max(1), in_flight: 0 }
    }

    /// Starts the first thread now, to learn early whether that is possible.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if self.threads == 0 { self.spawn() } else { Ok(()) }
    }

    fn spawn(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("udrbd-disk".to_owned()).spawn(move || serve(&shared))?;
        self.threads += 1;
        Ok(())
    }

    /// Operations taken and not yet collected.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether a batch waits for [`Portable::submit`].
    pub(super) fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Puts an operation into the next batch.
    pub(super) fn push(&mut self, active: Active) {
        self.staged.push(active);
        self.in_flight += 1;
    }

    /// Hands the batch over. An operation that no thread can be started for completes with that error.
    pub(super) fn submit(&mut self, out: &mut Vec<Completion>) {
        if self.staged.is_empty() {
            return;
        }
        let count = self.staged.len();
        let unserved = {
            let mut queue = lock(&self.shared.queue);
            queue.jobs.extend(self.staged.drain(..));
            queue.jobs.len().saturating_sub(queue.idle)
        };
        for _ in 0..unserved.min(self.threads_max - self.threads) {
            // With at least one thread the work gets done; more would only be faster.
            if let Err(error) = self.spawn()
                && self.threads == 0
            {
                let kind = error.kind();
                let jobs = std::mem::take(&mut lock(&self.shared.queue).jobs);
                self.in_flight -= jobs.len();
                out.extend(jobs.into_iter().map(|job| {
                    let error = job.error(io::Error::from(kind));
                    job.finish(Err(error))
                }));
                return;
            }
        }
        if count == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
    }

    /// Whether [`Portable::collect`] would give something.
    pub(super) fn has_done(&self) -> bool {
        self.in_flight > 0 && !lock(&self.shared.done).is_empty()
    }

    /// Appends what has finished.
    pub(super) fn collect(&mut self, out: &mut Vec<Completion>) {
        if self.in_flight > 0 {
            let mut done = lock(&self.shared.done);
            self.in_flight -= done.len();
            out.append(&mut done);
        }
    }
}

impl Drop for Portable {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.stop = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.work.notify_all();
    }
}

fn serve(shared: &Shared) {
    loop {
        let mut queue = lock(&shared.queue);
        let job = loop {
            if queue.stop {
                return;
            }
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            queue.idle += 1;
            queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        };
        drop(queue);
        let completion = run(job);
        let mut done = lock(&shared.done);
        let announce = done.is_empty();
        done.push(completion);
        drop(done);
        if announce {
            // Fails only if the counter is full, and then the owner has plenty of announcements to see.
            let _ = rustix::io::write(&*shared.event, &1u64.to_ne_bytes());
        }
    }
}

/// Runs an operation to its end in the calling thread. It must have its memory already.
pub(super) fn run(mut active: Active) -> Completion {
    loop {
        let fd = active.dev.clone();
        let result = active.step().and_then(|step| execute(&fd, step));
        if let Next::Done(result) = active.advance(result) {
            return active.finish(result);
        }
    }
}

fn execute(dev: &super::open::BackingDevice, step: Step<'_>) -> io::Result<usize> {
    let fd = dev.fd();
    match step {
        Step::Read { into, offset } => Ok(rustix::io::pread(fd, into, offset)?),
        Step::Write { from, offset, dsync: false } if from.len() == 1 => Ok(rustix::io::pwrite(fd, &from[0], offset)?),
        Step::Write { from, offset, dsync } => {
            let flags = if dsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
            Ok(rustix::io::pwritev2(fd, &from, offset, flags)?)
        }
        Step::DataSync => Ok(rustix::fs::fdatasync(fd).map(|()| 0)?),
        Step::Fallocate { mode, offset, len } => Ok(rustix::fs::fallocate(fd, mode, offset, len).map(|()| 0)?),
        Step::BlkDiscard { offset, len } => blk_discard(fd, offset, len).map(|()| 0),
    }
}

// Operations cross threads with everything that they own.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Active>();
    is_send::<PoolBuf>();
};
