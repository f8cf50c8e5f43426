//! Keeps resync I/O and application writes apart, per resync extent (16 MiB = 4 AL extents).
//!
//! Owns a small cache of resync extents with their marks, and the queue of resync requests of the peer that wait. Takes in
//! attempts to begin, ends, and queries whether an AL extent is referenced (asked of the activity log); gives out who may
//! go. Nothing blocks: who has to wait is told later by [`ExtentLocks::wake`], and set-aside application writes are to be
//! retried when [`ExtentLocks::take_write_wake`] says so.
//! Invariants: a locked extent has no application write that was let through before the lock, and lets none through; every
//! granted begin holds one reference, and the last one to go clears all marks; at most one extent is half-locked (marked
//! no-writes by the target, still waiting for application writes to drain).
//! Source: behaviour.md 5.3, 7.5.

use std::collections::VecDeque;

use super::al::ExtentSpan;
use super::lru::{CacheStats, FREE_LABEL, LruCache};
use crate::limits::{AL_EXTENT_SECTORS, RESYNC_EXTENT_SECTORS};
use crate::units::{AlExtent, Sector};

#[cfg(test)]
mod tests;

/// Extents in the cache. DRBD 8.4.
pub const RESYNC_SLOTS: u16 = 61;
/// The target begins no further extent while more than this many are held.
const TARGET_HELD_MAX: u16 = RESYNC_SLOTS - 3;
/// The source begins no further extent while more than this many are held.
const SOURCE_HELD_MAX: u16 = RESYNC_SLOTS / 2;
/// AL extents in a resync extent.
const AL_PER_RESYNC: u32 = 4;
const _: () = assert!(RESYNC_EXTENT_SECTORS == AL_EXTENT_SECTORS * AL_PER_RESYNC as u64);

/// Number of a resync extent: extent `n` covers the 16 MiB at sector `32768 * n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResyncExtent(pub u32);

impl ResyncExtent {
    /// The extent that holds a sector; `None` beyond the largest device.
    #[must_use]
    pub fn of(sector: Sector) -> Option<Self> {
        u32::try_from(sector.0 / RESYNC_EXTENT_SECTORS)
            .ok()
            .filter(|&extent| extent <= u32::MAX / AL_PER_RESYNC)
            .map(Self)
    }

    /// The resync extent of an AL extent.
    #[must_use]
    pub const fn of_al(extent: AlExtent) -> Self {
        Self(extent.0 / AL_PER_RESYNC)
    }

    /// Its AL extents.
    pub fn al_extents(self) -> impl Iterator<Item = AlExtent> {
        let first = self.0.saturating_mul(AL_PER_RESYNC);
        (0..AL_PER_RESYNC).map(move |i| AlExtent(first.saturating_add(i)))
    }
}

/// The engine's name for a resync or verify request of the peer that waits for its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterKey(pub u64);

/// What became of a waiting resync request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Woken {
    /// The extent is locked for it; [`ExtentLocks::end`] releases it.
    Granted(WaiterKey),
    /// It gave way to an application write under the throttle: call `begin_source` for it again after 100 ms.
    Backoff(WaiterKey),
}

/// Outcome of [`ExtentLocks::begin_source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BeginSource {
    /// Locked; `end` releases it.
    Granted,
    /// Queued; `wake` tells.
    Wait,
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// No new application write may start.
    no_writes: bool,
    /// No application write is active: resync I/O may run.
    locked: bool,
    /// An application write waits for this extent.
    priority: bool,
    rs_left: u32,
    rs_failed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    key: WaiterKey,
    extent: ResyncExtent,
    throttled: bool,
    /// It holds a reference and the no-writes mark.
    holds: bool,
}

enum Step {
    Granted,
    Backoff,
    Wait,
}

/// See the module.
#[derive(Debug)]
pub struct ExtentLocks {
    cache: LruCache,
    marks: Vec<Marks>,
    /// Extents with the no-writes mark.
    held: u16,
    half_locked: Option<ResyncExtent>,
    waiters: VecDeque<Waiter>,
    write_wake: bool,
    stats: CacheStats,
}

impl Default for ExtentLocks {
    fn default() -> Self {
        Self::new()
    }
}

impl ExtentLocks {
    /// No extent is held.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cache: LruCache::new(RESYNC_SLOTS),
            marks: vec![Marks::default(); usize::from(RESYNC_SLOTS)],
            held: 0,
            half_locked: None,
            waiters: VecDeque::new(),
            write_wake: false,
            stats: CacheStats::default(),
        }
    }

    /// Target, before each resync or verify request: tries to lock the extent. `throttle`: resync should slow down
    /// now. `left` counts the set bits of the extent, `referenced` asks the activity log. False: try again at the next
    /// tick. True: one reference is held until `end`.
    #[must_use]
    pub fn try_begin(
        &mut self,
        extent: ResyncExtent,
        throttle: bool,
        left: impl FnOnce() -> u32,
        referenced: impl Fn(AlExtent) -> bool,
    ) -> bool {
        let was_half = self.half_locked == Some(extent);
        if throttle && !was_half {
            return false;
        }
        if !was_half && let Some(other) = self.half_locked.take() {
            self.end(other);
        }
        self.half_locked = None;
        let known = self.cache.find(extent.0).map(|found| found.slot);
        if known.is_none() && self.held > TARGET_HELD_MAX {
            return false;
        }
        // A half-locked extent keeps the reference of the attempt before.
        let slot = if was_half { known } else { self.hold(extent, left) };
        let Some(slot) = slot else { return false };
        if self.marks[usize::from(slot)].locked {
            return true;
        }
        if extent.al_extents().any(&referenced) {
            if throttle {
                self.release(slot);
            } else {
                self.half_locked = Some(extent);
            }
            return false;
        }
        self.marks[usize::from(slot)].locked = true;
        true
    }

    /// Source, for each resync, checksum or verify request of the peer: locks the extent or queues the request.
    /// `throttled`: the throttle says that resync should slow down, so the request gives way to an application write that
    /// comes to wait for the same extent.
    pub fn begin_source(
        &mut self,
        key: WaiterKey,
        extent: ResyncExtent,
        throttled: bool,
        left: impl Fn(ResyncExtent) -> u32,
        referenced: impl Fn(AlExtent) -> bool,
    ) -> BeginSource {
        if let Some(slot) = self.slot(extent)
            && self.marks[usize::from(slot)].locked
        {
            self.cache.acquire(slot);
            self.stats.hits += 1;
            return BeginSource::Granted;
        }
        let mut waiter = Waiter { key, extent, throttled, holds: false };
        // In order: only the first waiter may keep application writes off an extent that it does not have yet. Who has
        // just come does not back off (the application write was there before).
        if self.waiters.is_empty() && matches!(self.step(&mut waiter, &left, &referenced), Step::Granted) {
            return BeginSource::Granted;
        }
        self.waiters.push_back(waiter);
        BeginSource::Wait
    }

    /// Who of the waiting requests may go on. To be called after an AL extent lost its last reference, after `end` and
    /// after `holds_writes` marked an extent; a call without a reason is harmless.
    pub fn wake(&mut self, left: impl Fn(ResyncExtent) -> u32, referenced: impl Fn(AlExtent) -> bool) -> Vec<Woken> {
        let mut woken = Vec::new();
        while let Some(mut waiter) = self.waiters.pop_front() {
            match self.step(&mut waiter, &left, &referenced) {
                Step::Granted => woken.push(Woken::Granted(waiter.key)),
                Step::Backoff => woken.push(Woken::Backoff(waiter.key)),
                Step::Wait => {
                    self.waiters.push_front(waiter);
                    break;
                }
            }
        }
        woken
    }

    /// A granted request is done with its extent (target: written; source: answered).
    ///
    /// # Panics
    /// When the extent is not held: the engine's book-keeping is broken.
    pub fn end(&mut self, extent: ResyncExtent) {
        match self.slot(extent) {
            Some(slot) => self.release(slot),
            None => panic!("resync of extent {} ended, but it was not begun", extent.0),
        }
    }

    /// Forgets a waiting request. Returns whether it was waiting.
    pub fn cancel(&mut self, key: WaiterKey) -> bool {
        let Some(at) = self.waiters.iter().position(|waiter| waiter.key == key) else { return false };
        if let Some(waiter) = self.waiters.remove(at)
            && waiter.holds
        {
            self.end(waiter.extent);
        }
        true
    }

    /// Application side: whether a write to the span has to be set aside. Marks the extents in question as wanted; the
    /// caller then calls `wake`.
    #[must_use]
    pub fn holds_writes(&mut self, span: ExtentSpan) -> bool {
        if self.held == 0 {
            return false;
        }
        let mut held = false;
        for extent in ResyncExtent::of_al(span.first()).0..=ResyncExtent::of_al(span.last()).0 {
            if let Some(found) = self.cache.find(extent) {
                let marks = &mut self.marks[usize::from(found.slot)];
                marks.priority |= marks.no_writes;
                held |= marks.no_writes;
            }
        }
        held
    }

    /// Whether an extent was released since the last call, so that set-aside application writes should be retried.
    #[must_use]
    pub const fn take_write_wake(&mut self) -> bool {
        std::mem::replace(&mut self.write_wake, false)
    }

    /// Whether an application write waits for this extent: resync of it must not be slowed down.
    #[must_use]
    pub fn priority(&self, extent: ResyncExtent) -> bool {
        self.slot(extent).is_some_and(|slot| self.marks[usize::from(slot)].priority)
    }

    /// Bits of the extent were cleared. Returns true when only failed blocks are left in it (a lazy write of the
    /// bitmap is due). `left` counts its set bits, for an extent that is not cached.
    pub fn note_cleared(&mut self, extent: ResyncExtent, bits: u32, left: impl FnOnce() -> u32) -> bool {
        let Some(slot) = self.slot(extent) else { return left() == 0 };
        let marks = &mut self.marks[usize::from(slot)];
        marks.rs_left = marks.rs_left.saturating_sub(bits);
        let clean = marks.rs_left <= marks.rs_failed;
        if clean {
            marks.rs_failed = 0;
        }
        clean
    }

    /// Bits of the extent were set.
    pub fn note_set(&mut self, extent: ResyncExtent, bits: u32) {
        if let Some(slot) = self.slot(extent) {
            let marks = &mut self.marks[usize::from(slot)];
            marks.rs_left = marks.rs_left.saturating_add(bits);
        }
    }

    /// Blocks of the extent could not be synced; their bits stay set.
    pub fn note_failed(&mut self, extent: ResyncExtent, bits: u32) {
        if let Some(slot) = self.slot(extent) {
            let marks = &mut self.marks[usize::from(slot)];
            marks.rs_failed = marks.rs_failed.saturating_add(bits);
        }
    }

    /// Extents that are held by anyone, waiting ones included.
    #[must_use]
    pub const fn held(&self) -> u16 {
        self.held
    }

    /// Requests of the peer that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Counters and fill for status.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats { used: self.cache.used(), slots: self.cache.capacity(), ..self.stats }
    }

    /// Forgets every extent that nobody holds (start and end of a resync), the half-locked one included. Returns
    /// whether none is held any more.
    pub fn forget_idle(&mut self) -> bool {
        if let Some(extent) = self.half_locked.take() {
            self.end(extent);
        }
        for slot in 0..RESYNC_SLOTS {
            if self.cache.label(slot) != FREE_LABEL && self.cache.forget(slot) {
                self.marks[usize::from(slot)] = Marks::default();
            }
        }
        self.cache.used() == 0
    }

    /// Drops everything (connection or disk lost): references of granted requests are void, `end` must not be called for
    /// them. Returns the requests that were waiting.
    #[must_use]
    pub fn reset(&mut self) -> Vec<WaiterKey> {
        let waiters = self.waiters.drain(..).map(|waiter| waiter.key).collect();
        *self = Self { write_wake: self.write_wake || self.held > 0, stats: self.stats, ..Self::new() };
        waiters
    }

    fn slot(&self, extent: ResyncExtent) -> Option<u16> {
        self.cache.find(extent.0).map(|found| found.slot)
    }

    /// Takes a reference and the no-writes mark; `None` when every slot is in use.
    fn hold(&mut self, extent: ResyncExtent, left: impl FnOnce() -> u32) -> Option<u16> {
        let slot = if let Some(slot) = self.slot(extent) {
            self.cache.acquire(slot);
            self.stats.hits += 1;
            slot
        } else {
            let Some((slot, _)) = self.cache.take_for(extent.0) else {
                self.stats.starving += 1;
                return None;
            };
            self.cache.commit(slot);
            self.marks[usize::from(slot)] = Marks { rs_left: left(), ..Marks::default() };
            self.stats.misses += 1;
            self.stats.changed += 1;
            slot
        };
        let marks = &mut self.marks[usize::from(slot)];
        if !marks.no_writes {
            marks.no_writes = true;
            self.held += 1;
        }
        Some(slot)
    }

    fn release(&mut self, slot: u16) {
        if self.cache.release(slot) == 0 {
            let marks = &mut self.marks[usize::from(slot)];
            if marks.no_writes {
                self.held -= 1;
                self.write_wake = true;
            }
            *marks = Marks { no_writes: false, locked: false, priority: false, ..*marks };
        }
    }

    fn step(
        &mut self,
        waiter: &mut Waiter,
        left: impl Fn(ResyncExtent) -> u32,
        referenced: impl Fn(AlExtent) -> bool,
    ) -> Step {
        let extent = waiter.extent;
        if !waiter.holds {
            let marked = self.slot(extent).is_some_and(|slot| self.marks[usize::from(slot)].no_writes);
            if !marked && self.held > SOURCE_HELD_MAX {
                return Step::Wait;
            }
            waiter.holds = self.hold(extent, || left(extent)).is_some();
        }
        let Some(slot) = self.slot(extent).filter(|_| waiter.holds) else { return Step::Wait };
        let marks = &mut self.marks[usize::from(slot)];
        if marks.locked {
            return Step::Granted;
        }
        if !extent.al_extents().any(referenced) {
            marks.locked = true;
            return Step::Granted;
        }
        if waiter.throttled && marks.priority {
            waiter.holds = false;
            self.release(slot);
            return Step::Backoff;
        }
        Step::Wait
    }
}
