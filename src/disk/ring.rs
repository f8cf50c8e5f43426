//! The shard's interface to its disks: submit in batches, wait, drain.
//!
//! Owns: [`Ring`], which puts a queue and the memory rules in front of io_uring or the thread pool. Invariants: every
//! accepted submission yields exactly one completion, unless the ring is dropped first; at most `depth` operations are
//! with the kernel or the threads, the rest waits here in order; an operation that waits for memory holds back only
//! operations that need the same kind of memory.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::EventfdFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::error::{DiskAction, DiskError, DiskErrorKind};
#[cfg(any(test, feature = "sim"))]
use super::fault::{Gate, Mistake};
use super::op::{Active, Completion, DiskOp, Need};
use super::pool::Pool;
use super::portable::{self, Portable};
use super::sys::watch;
use super::uring::Uring;

/// Default number of operations with the kernel at a time.
pub const DEPTH_DEFAULT: u32 = 256;
/// Largest depth.
pub const DEPTH_MAX: u32 = 4096;
/// Default number of threads of the portable ring.
pub const THREADS_DEFAULT: usize = 8;
/// Memory for copies of unaligned payloads, in bytes. It is only held by operations in flight, so it always comes back.
const BOUNCE_BYTES: usize = 4 << 20;
/// How many times [`Ring::drain`] goes round before it lets others run.
const ROUNDS_MAX: usize = 8;

/// Which ring to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingChoice {
    /// io_uring where the host allows it, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads.
    Portable,
}

/// Which ring is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingKind {
    /// io_uring.
    Uring,
    /// Threads with pread and pwrite.
    Portable,
}

/// How to set up a [`Ring`].
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Which kind.
    pub choice: RingChoice,
    /// Operations with the kernel or the threads at a time, 1 to [`DEPTH_MAX`]; io_uring rounds up to a power of two.
    pub depth: u32,
    /// Most threads of the portable ring, at least 1. With io_uring one thread is started if a block device is discarded.
    pub threads: usize,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { choice: RingChoice::Auto, depth: DEPTH_DEFAULT, threads: THREADS_DEFAULT }
    }
}

/// Disk I/O of one shard. All of it happens on the thread that created it. Use as: [`Ring::submit`] any number of
/// operations, [`Ring::flush_submissions`], then [`Ring::wait`] and [`Ring::drain`].
///
/// Bring it to rest with [`Ring::quiesce`] before dropping it. A ring that is dropped with operations in flight waits up
/// to two seconds for them and then leaks their memory (at once if the thread is panicking); operations that the kernel
/// or a thread has not begun are dropped unexecuted, and nobody gets a completion.
pub struct Ring {
    core: RefCell<Core>,
    event: AsyncFd<Arc<OwnedFd>>,
    /// Something became ready, or began to wait for memory, without the kernel's doing.
    wake: Notify,
    pool: Pool,
    kind: RingKind,
    reason: String,
    /// io_uring serves one thread only.
    _not_send: PhantomData<Rc<()>>,
}

struct Core {
    uring: Option<Uring>,
    threads: Portable,
    pool: Pool,
    bounce: Pool,
    /// Done in this thread at the next kick: short operations on files in memory.
    inline: VecDeque<Active>,
    /// Behind the depth limit.
    overflow: VecDeque<Active>,
    /// Reads without a buffer.
    for_pool: VecDeque<Active>,
    /// Writes that need a copy.
    for_bounce: VecDeque<Active>,
    ready: Vec<Completion>,
    depth: usize,
    // Behind the back ends: what is with the kernel has ended before what the gate holds.
    #[cfg(any(test, feature = "sim"))]
    gate: Gate,
}

impl Ring {
    /// A ring whose reads take their buffers from `pool`. Call it on the shard's thread, inside its tokio runtime.
    ///
    /// # Errors
    /// `Unsupported` outside a runtime or where io_uring is asked for and not available; `OutOfRange` for an impossible
    /// depth; the system's error when it lacks descriptors, memory or threads.
    ///
    /// # Panics
    /// When the runtime was built without its I/O driver.
    pub fn new(options: &RingOptions, pool: Pool) -> Result<Self, DiskError> {
        let name = Path::new("disk ring");
        let failed = |error: io::Error| DiskError::new(DiskAction::Setup, name, error);
        let refused = |kind, text: String| DiskError::refused(DiskAction::Setup, name, kind, text);
        if options.depth == 0 || options.depth > DEPTH_MAX {
            return Err(refused(DiskErrorKind::OutOfRange, format!("the depth must be 1 to {DEPTH_MAX}")));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(refused(DiskErrorKind::Unsupported, "there is no tokio runtime in this thread".to_owned()));
        }
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = Arc::new(event.map_err(|error| failed(error.into()))?);
        let (uring, reason) = match options.choice {
            RingChoice::Portable => (None, "asked for".to_owned()),
            RingChoice::Uring | RingChoice::Auto => match Uring::new(options.depth, Arc::clone(&event)) {
                Ok(uring) => {
                    let reason = uring.mode.to_owned();
                    (Some(uring), reason)
                }
                Err(error) if options.choice == RingChoice::Auto => {
                    (None, format!("io_uring is not available: {error}"))
                }
                Err(error) => {
                    let text = format!("io_uring is not available: {error}");
                    return Err(refused(DiskErrorKind::Unsupported, text));
                }
            },
        };
        let kind = if uring.is_some() { RingKind::Uring } else { RingKind::Portable };
        let mut threads = Portable::new(if uring.is_some() { 1 } else { options.threads }, Arc::clone(&event));
        if uring.is_none() {
            threads.start().map_err(failed)?;
        }
        #[cfg(any(test, feature = "sim"))]
        let gate = Gate::new(Arc::clone(&event));
        let core = Core {
            #[cfg(any(test, feature = "sim"))]
            gate,
            uring,
            threads,
            pool: pool.clone(),
            bounce: Pool::new(BOUNCE_BYTES).map_err(failed)?,
            inline: VecDeque::new(),
            overflow: VecDeque::new(),
            for_pool: VecDeque::new(),
            for_bounce: VecDeque::new(),
            ready: Vec::new(),
            depth: usize::try_from(options.depth).unwrap_or(1),
        };
        let event = watch(event).map_err(failed)?;
        tracing::debug!(?kind, reason, "disk ring ready");
        Ok(Self { core: RefCell::new(core), event, wake: Notify::new(), pool, kind, reason, _not_send: PhantomData })
    }

    /// Which kind of ring this is.
    #[must_use]
    pub fn kind(&self) -> RingKind {
        self.kind
    }

    /// Why it is that kind, or how it was set up, for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The pool that reads take their buffers from.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Queues an operation; `token` comes back in its completion. An operation that is refused completes with the reason.
    /// Nothing reaches the kernel before [`Ring::flush_submissions`], [`Ring::wait`] or [`Ring::drain`].
    pub fn submit(&self, op: DiskOp, token: u64) {
        let mut core = self.core();
        match Active::accept(op, token) {
            Ok(active) => {
                #[cfg(any(test, feature = "sim"))]
                let active = core.announce(active);
                if !core.start(active) {
                    self.wake.notify_one();
                }
            }
            Err(completion) => {
                core.ready.push(completion);
                self.wake.notify_one();
            }
        }
    }

    /// Hands everything that was queued, up to the depth, to the kernel (one system call) or the threads.
    pub fn flush_submissions(&self) {
        self.core().kick();
    }

    /// Completes when [`Ring::drain`] has something to do, which may at times give nothing; hands queued submissions over
    /// first. For one waiter at a time. Cancel safe. Never completes while nothing is submitted.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn wait(&self) -> io::Result<()> {
        loop {
            let returned = self.pool.returned();
            tokio::pin!(returned);
            let (starving, stuck) = {
                let mut core = self.core();
                // Registered before the attempt, so that memory that comes back in between wakes us.
                let starving = !core.for_pool.is_empty() && {
                    returned.as_mut().enable();
                    core.feed();
                    !core.for_pool.is_empty()
                };
                core.kick();
                if core.has_done() {
                    return Ok(());
                }
                (starving, core.is_stuck())
            };
            if stuck {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                guard = self.event.readable() => guard?.clear_ready(),
                () = self.wake.notified() => {}
                () = &mut returned, if starving => {}
            }
        }
    }

    /// Appends all completions that are ready to `out`, in no particular order, and hands over what waited for them. Does
    /// not wait.
    pub fn drain(&self, out: &mut Vec<Completion>) {
        let mut core = self.core();
        for _ in 0..ROUNDS_MAX {
            core.kick();
            core.collect(out);
            core.feed();
            if !core.wants_kick() {
                break;
            }
        }
    }

    /// Waits until every submitted operation has completed. An operation that waits for memory that the caller holds would
    /// wait for ever.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn quiesce(&self, out: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            self.drain(out);
            if self.pending() == 0 {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Operations submitted whose completions have not been drained.
    #[must_use]
    pub fn pending(&self) -> usize {
        let core = self.core.borrow();
        core.in_flight() + core.queued() + core.ready.len()
    }

    /// Operations that wait for room or memory; part of [`Ring::pending`].
    #[must_use]
    pub fn queued(&self) -> usize {
        self.core.borrow().queued()
    }

    /// Makes this mistake from now on.
    #[cfg(any(test, feature = "sim"))]
    pub fn make_mistake(&self, mistake: Option<Mistake>) {
        self.core().gate.make_mistake(mistake);
    }

    /// The mistake that is to be made.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub fn mistake(&self) -> Option<Mistake> {
        self.core.borrow().gate.mistake()
    }

    fn core(&self) -> RefMut<'_, Core> {
        // Never held across an await or a call of foreign code.
        self.core.borrow_mut()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("kind", &self.kind)
            .field("reason", &self.reason)
            .field("pending", &self.pending())
            .finish()
    }
}

impl Core {
    fn in_flight(&self) -> usize {
        #[cfg(any(test, feature = "sim"))]
        let held = self.gate.held();
        #[cfg(not(any(test, feature = "sim")))]
        let held = 0;
        self.uring.as_ref().map_or(0, Uring::in_flight) + self.threads.in_flight() + self.inline.len() + held
    }

    #[cfg(any(test, feature = "sim"))]
    fn announce(&mut self, mut active: Active) -> Active {
        self.gate.submitted(&mut active);
        active
    }

    fn queued(&self) -> usize {
        self.overflow.len() + self.for_pool.len() + self.for_bounce.len()
    }

    /// False if the operation has to wait for memory.
    fn start(&mut self, mut active: Active) -> bool {
        let (pool, waiting) = match active.need() {
            None => {
                self.place(active);
                return true;
            }
            Some(Need::ReadBuffer(len)) => ((&self.pool, len), &mut self.for_pool),
            Some(Need::Bounce(len)) => ((&self.bounce, len), &mut self.for_bounce),
        };
        let (pool, len) = pool;
        // Those that wait already come first, or a large one might wait for ever.
        if waiting.is_empty()
            && let Some(memory) = pool.try_alloc(len)
        {
            active.give(memory);
            self.place(active);
            return true;
        }
        waiting.push_back(active);
        false
    }

    /// Gives an operation with all its memory to a backend, or puts it behind those that wait for room.
    fn place(&mut self, active: Active) {
        if self.overflow.is_empty() && self.has_room() {
            self.hand_over(active);
        } else {
            self.overflow.push_back(active);
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight() < self.depth && self.uring.as_ref().is_none_or(Uring::has_room)
    }

    fn hand_over(&mut self, active: Active) {
        #[cfg(any(test, feature = "sim"))]
        let Some(active) = self.gate.hold(active, &mut self.ready) else { return };
        self.hand_to_back_end(active);
    }

    fn hand_to_back_end(&mut self, active: Active) {
        if active.is_inline() {
            return self.inline.push_back(active);
        }
        match &mut self.uring {
            Some(uring) if !active.needs_thread() => uring.push(active, &mut self.ready),
            _ => self.threads.push(active),
        }
    }

    /// Moves operations on that waited for room or memory.
    fn feed(&mut self) {
        while self.has_room()
            && let Some(active) = self.overflow.pop_front()
        {
            self.hand_over(active);
        }
        for bounced in [false, true] {
            loop {
                let (waiting, pool) =
                    if bounced { (&mut self.for_bounce, &self.bounce) } else { (&mut self.for_pool, &self.pool) };
                let Some(Need::ReadBuffer(len) | Need::Bounce(len)) = waiting.front().and_then(Active::need) else {
                    break;
                };
                let Some(memory) = pool.try_alloc(len) else { break };
                let Some(mut active) = waiting.pop_front() else { break };
                active.give(memory);
                self.place(active);
            }
        }
    }

    fn kick(&mut self) {
        #[cfg(any(test, feature = "sim"))]
        for active in self.gate.due(&mut self.ready) {
            self.hand_to_back_end(active);
        }
        while let Some(active) = self.inline.pop_front() {
            self.ready.push(portable::run(active));
        }
        self.threads.submit(&mut self.ready);
        if let Some(uring) = &mut self.uring {
            uring.enter(&mut self.ready);
        }
    }

    fn wants_kick(&mut self) -> bool {
        !self.inline.is_empty()
            || self.threads.has_staged()
            || self.uring.as_mut().is_some_and(|uring| uring.has_unsubmitted() || uring.has_done())
    }

    fn has_done(&mut self) -> bool {
        #[cfg(any(test, feature = "sim"))]
        if self.gate.has_due() {
            return true;
        }
        !self.ready.is_empty() || self.threads.has_done() || self.uring.as_mut().is_some_and(Uring::has_done)
    }

    /// Whether the kernel takes nothing for want of memory and owes us no completion that would wake us.
    fn is_stuck(&self) -> bool {
        self.uring.as_ref().is_some_and(Uring::is_stuck)
    }

    fn collect(&mut self, out: &mut Vec<Completion>) {
        if let Some(uring) = &mut self.uring {
            uring.reap(&mut self.ready);
        }
        self.threads.collect(&mut self.ready);
        #[cfg(any(test, feature = "sim"))]
        self.gate.completed(&mut self.ready);
        out.append(&mut self.ready);
    }
}

/// Runs one operation in the calling thread, which waits for it: for tools and for start-up, outside a ring. Memory that
/// it needs comes from `pool`.
#[must_use]
pub fn run_blocking(op: DiskOp, pool: &Pool) -> Completion {
    let mut active = match Active::accept(op, 0) {
        Ok(active) => active,
        Err(refused) => return refused,
    };
    if let Some(Need::ReadBuffer(len) | Need::Bounce(len)) = active.need() {
        match pool.try_alloc(len) {
            Some(memory) => active.give(memory),
            None => {
                let error = active.error(io::Error::from_raw_os_error(libc::ENOMEM)).because("the pool is exhausted");
                return active.finish(Err(error));
            }
        }
    }
    portable::run(active)
}
