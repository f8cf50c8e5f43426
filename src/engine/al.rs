//! The activity log (AL): which 4 MiB extents may differ between the nodes because writes may be in flight.
//!
//! Owns the slots, the references of requests, the queue of requests that wait for a transaction, and the position in the
//! on-disk ring. Takes in requests by key and extent span, and the fate of transactions. Gives out transactions as data;
//! the caller encodes and writes them.
//! Order on the medium that the caller keeps: data flush if [`Transaction::evicts_unflushed`], bitmap pages of
//! [`Transaction::evicted`], then the AL block (flush, FUA), then [`ActivityLog::transaction_done`].
//! Invariants: a request is let through only when every extent it touches is committed; an extent with a reference is never
//! evicted; one transaction is in flight at a time; its context shows the set as it was before its own updates, so that any
//! prefix of the written blocks recovers a superset of the extents that were let through.
//! Source: behaviour.md 5.1 and 5.2, metadata.md 4.

use std::collections::VecDeque;

use super::lru::{CacheStats, FREE_LABEL, Found, LruCache};
use crate::units::{AlExtent, AlSlot};

mod shape;
#[cfg(test)]
mod tests;

pub use shape::{AL_CONTEXT_ENTRIES, AL_EXTENTS_MAX, AL_EXTENTS_MIN, AL_FREE, AL_UPDATES_MAX, AlLayout, ExtentSpan};

/// The engine's name for a request that wants to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey(pub u64);

/// What became of [`ActivityLog::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Begin {
    /// References are taken, the request may go. [`ActivityLog::end`] drops them.
    Hot,
    /// Queued; comes back from `transaction_done` or `take_ready` with its references taken.
    Pending,
    /// A resync holds one of the extents; set aside until [`ActivityLog::retry_blocked`].
    Blocked,
    /// The log is suspended: the request may go without references; `end` must not be called for it.
    NotLogged,
}

/// One activity-log transaction, to be written as one 4 KiB block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Running number, wraps around; says which block of the ring it goes to ([`Layout::al_block_byte`](crate::meta::Layout)).
    pub tr_number: u32,
    /// Slot changes, at most 64; none in a pure context transaction.
    pub updates: Vec<(AlSlot, AlExtent)>,
    /// Extents forgotten with this transaction: their changed bitmap pages must be written before it.
    pub evicted: Vec<AlExtent>,
    /// One of them has writes that no data flush covers: flush the data device first (the pre-flush of the block does
    /// it where data and metadata share a device).
    pub evicts_unflushed: bool,
    /// Number of slots of the whole set.
    pub context_size: u16,
    /// Slot of the first entry of `context`.
    pub context_start: u16,
    /// 919 extent numbers as they were before `updates`; [`AL_FREE`] for free slots and beyond the set.
    pub context: Vec<u32>,
}

/// A point up to which writes are covered by a data flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushMark(u64);

/// The log is in use and cannot change its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("activity log: cannot change its size, extents are in use; wait until writes have finished")]
pub struct AlBusy;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: RequestKey,
    span: ExtentSpan,
}

#[derive(Debug)]
struct InFlight {
    tr_number: u32,
    slots: Vec<u16>,
    evicted: Vec<AlExtent>,
    evicted_gen: u64,
    requests: Vec<Waiting>,
}

/// See the module.
#[derive(Debug)]
pub struct ActivityLog {
    layout: AlLayout,
    cache: LruCache,
    /// Per slot: the flush generation in which its last write ended; 0 is never.
    write_gens: Vec<u64>,
    write_gen: u64,
    flushed_gen: u64,
    queue: VecDeque<Waiting>,
    blocked: Vec<Waiting>,
    ready: Vec<RequestKey>,
    in_flight: Option<InFlight>,
    starving: bool,
    disabled: bool,
    /// Updates were switched on again and the ring is not rewritten yet.
    ring_stale: bool,
    suspended: bool,
    tr_number: u32,
    context_start: u16,
    context_due: u32,
    /// Forgotten in memory without a transaction; their bitmap pages must precede the next one.
    carried: Vec<AlExtent>,
    carried_gen: u64,
    written: u64,
    stats: CacheStats,
}

impl ActivityLog {
    /// An empty log for a ring that holds no older transactions. `tr_number` is the number of the first one (0 after the
    /// ring was re-initialised).
    #[must_use]
    pub fn new(layout: AlLayout, tr_number: u32) -> Self {
        Self {
            layout,
            cache: LruCache::new(layout.slots()),
            write_gens: vec![0; usize::from(layout.slots())],
            write_gen: 1,
            flushed_gen: 0,
            queue: VecDeque::new(),
            blocked: Vec::new(),
            ready: Vec::new(),
            in_flight: None,
            starving: false,
            disabled: false,
            ring_stale: false,
            suspended: false,
            tr_number,
            context_start: 0,
            context_due: 0,
            carried: Vec::new(),
            carried_gen: 0,
            written: 0,
            stats: CacheStats::default(),
        }
    }

    /// Takes over a set recovered from disk without re-initialising the ring; only for a fresh log, before any request.
    /// Returns extents for which there is no slot (their bits must be set in the bitmap instead).
    #[must_use]
    pub fn load_recovered(&mut self, slots: impl IntoIterator<Item = (AlSlot, AlExtent)>) -> Vec<AlExtent> {
        let mut left_over = Vec::new();
        for (slot, extent) in slots {
            if !self.cache.preset(slot.0, extent.0) && self.cache.find(extent.0).is_none() {
                left_over.push(extent);
            }
        }
        left_over
    }

    /// A request wants to write. `held` says whether a resync holds an extent of the span against new writes (and marks
    /// it as wanted when it does).
    pub fn begin(&mut self, key: RequestKey, span: ExtentSpan, mut held: impl FnMut(ExtentSpan) -> bool) -> Begin {
        if self.suspended {
            return Begin::NotLogged;
        }
        if held(span) {
            self.blocked.push(Waiting { key, span });
            return Begin::Blocked;
        }
        if !self.starving && self.try_hot(span) {
            return Begin::Hot;
        }
        if self.disabled && !self.starving && self.queue.is_empty() && self.in_flight.is_none() && self.fits(span, 0) {
            self.take_in_core(span);
            return Begin::Hot;
        }
        if self.in_flight.is_some() {
            self.stats.locked += 1;
        }
        self.queue.push_back(Waiting { key, span });
        Begin::Pending
    }

    /// More references of extents that are held already.
    pub fn share(&mut self, span: ExtentSpan) {
        for extent in span.iter() {
            if let Some(found) = self.cache.find(extent.0) {
                self.cache.acquire(found.slot);
            }
        }
    }

    /// The request of `span` is completely done (both nodes, bitmap updated): drops its references. When this was the
    /// last reference of an extent (returns true), requests and resync that wait for it should be retried.
    ///
    /// # Panics
    /// When the references were not held: the engine's book-keeping is broken.
    pub fn end(&mut self, span: ExtentSpan) -> bool {
        let mut idle = false;
        for extent in span.iter() {
            let found = self.cache.find(extent.0);
            assert!(found.is_some(), "write to extent {extent} ended, but it is not in the activity log");
            if let Some(Found { slot, .. }) = found {
                self.write_gens[usize::from(slot)] = self.write_gen;
                idle |= self.cache.release(slot) == 0;
            }
        }
        if idle {
            self.starving = false;
        }
        idle
    }

    /// Requests set aside because of a resync go back to the front of the queue, in their order; call
    /// `next_transaction` and `take_ready` next. Returns whether there were any.
    pub fn retry_blocked(&mut self) -> bool {
        let any = !self.blocked.is_empty();
        for waiting in self.blocked.drain(..).rev() {
            self.queue.push_front(waiting);
        }
        any
    }

    /// Serves waiting requests, as many as fit, and returns the transaction that they need. `None` when one is in flight
    /// already or nothing has to be written; requests that need none are in `take_ready`. Call it after `begin` said
    /// Pending, after `transaction_done`, after `end` said true and after `retry_blocked`.
    #[must_use]
    pub fn next_transaction(&mut self, mut held: impl FnMut(ExtentSpan) -> bool) -> Option<Transaction> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut batch = Batch::default();
        while let Some(&waiting) = self.queue.front() {
            if held(waiting.span) {
                self.queue.pop_front();
                self.blocked.push(waiting);
                continue;
            }
            if !self.fits(waiting.span, batch.slots.len()) {
                if batch.slots.is_empty() && !self.starving {
                    self.starving = true;
                    self.stats.starving += 1;
                }
                break;
            }
            self.queue.pop_front();
            if self.disabled {
                self.take_in_core(waiting.span);
                self.ready.push(waiting.key);
            } else if self.take_all(waiting.span, &mut batch) {
                batch.requests.push(waiting);
            } else {
                self.ready.push(waiting.key);
            }
        }
        if self.disabled || (batch.slots.is_empty() && self.context_due == 0) {
            return None;
        }
        Some(self.emit(batch))
    }

    /// The block of the transaction in flight is durable. Returns the requests that may go, in the order they came.
    ///
    /// # Panics
    /// When `tr_number` is not in flight.
    pub fn transaction_done(&mut self, tr_number: u32) -> Vec<RequestKey> {
        let flight = self.take_in_flight(tr_number);
        self.commit(&flight.slots);
        self.written += 1;
        self.stats.changed += u64::try_from(flight.slots.len()).unwrap_or(0);
        self.tr_number = self.tr_number.wrapping_add(1);
        self.context_start = match self.context_start.checked_add(AL_CONTEXT_ENTRIES) {
            Some(next) if next < self.layout.slots() => next,
            _ => 0,
        };
        self.context_due = self.context_due.saturating_sub(1);
        self.ring_stale &= self.context_due > 0;
        flight.requests.iter().map(|waiting| waiting.key).collect()
    }

    /// The transaction in flight, or a bitmap page before it, could not be written (normally the disk is detached now).
    /// Returns its requests; they hold no references and must not go to the disk. Nothing it changed counts as hot
    /// afterwards; what it would have evicted is evicted by the next transaction, which has the same number and block.
    ///
    /// # Panics
    /// When `tr_number` is not in flight.
    pub fn transaction_failed(&mut self, tr_number: u32) -> Vec<RequestKey> {
        let flight = self.take_in_flight(tr_number);
        for waiting in &flight.requests {
            for extent in waiting.span.iter() {
                if let Some(Found { slot, .. }) = self.cache.find(extent.0) {
                    self.cache.release(slot);
                }
            }
        }
        for &slot in &flight.slots {
            self.cache.abort(slot);
            self.write_gens[usize::from(slot)] = 0;
        }
        self.carried = flight.evicted;
        self.carried_gen = flight.evicted_gen;
        self.starving = false;
        flight.requests.iter().map(|waiting| waiting.key).collect()
    }

    /// Requests that came from the queue without (or before) a transaction and may go.
    #[must_use]
    pub fn take_ready(&mut self) -> Vec<RequestKey> {
        std::mem::take(&mut self.ready)
    }

    /// Takes every queued and set-aside request out (disk lost); they hold no references.
    #[must_use]
    pub fn drain_waiting(&mut self) -> Vec<RequestKey> {
        self.starving = false;
        let queued = self.queue.drain(..);
        self.blocked.drain(..).chain(queued).map(|waiting| waiting.key).collect()
    }

    /// A data flush is about to be submitted: it covers the writes that have ended by now.
    #[must_use]
    pub fn data_flush_started(&mut self) -> FlushMark {
        let mark = FlushMark(self.write_gen);
        self.write_gen += 1;
        mark
    }

    /// That data flush succeeded.
    pub fn note_data_flush(&mut self, mark: FlushMark) {
        self.flushed_gen = self.flushed_gen.max(mark.0);
    }

    /// Asks for `count` transactions in a row even if nothing changes, so that the whole ring is rewritten (size or
    /// layout change, first attach: as many as the ring has blocks).
    pub fn rewrite_ring(&mut self, count: u32) {
        self.context_due = self.context_due.max(count);
    }

    /// The ring has moved, and has so many blocks now: all of it is written anew, and the set on disk is stale until then.
    pub fn move_ring(&mut self, blocks: u32) {
        self.layout = self.layout.with_blocks(blocks);
        self.rewrite_ring(blocks);
        self.ring_stale = true;
    }

    /// `al-updates`: with false no transactions are written from the next one on, references are still kept. When
    /// switched on again the whole ring is rewritten, because the set on disk is stale: the caller takes the AL-disabled
    /// flag off the superblock only when the changed bitmap pages and then those transactions are durable.
    pub fn set_updates(&mut self, on: bool) {
        if on && self.disabled {
            self.rewrite_ring(self.layout.blocks());
            self.ring_stale = true;
        }
        self.disabled = !on;
    }

    /// Whether the set on disk is not the one in use: updates are off, or were until just now.
    #[must_use]
    pub const fn ring_is_stale(&self) -> bool {
        self.disabled || self.ring_stale
    }

    /// Suspends the log (all bits set, no peer). Returns the waiting requests; they may go as `NotLogged`.
    #[must_use]
    pub fn suspend(&mut self) -> Vec<RequestKey> {
        self.suspended = true;
        self.drain_waiting()
    }

    /// Ends the suspension. Requests let through as `NotLogged` before stay outside the log: their bits must not be
    /// cleared before they have ended.
    pub const fn resume(&mut self) {
        self.suspended = false;
    }

    /// Changes the number of slots or the ring. Every idle extent is forgotten; the next transaction evicts them all.
    ///
    /// # Errors
    /// While an extent is referenced or a transaction is in flight.
    pub fn reconfigure(&mut self, layout: AlLayout) -> Result<(), AlBusy> {
        if self.in_flight.is_some() || self.cache.used() > 0 {
            return Err(AlBusy);
        }
        self.carried.extend(self.cache.labels().filter(|&label| label != FREE_LABEL).map(AlExtent));
        self.carried_gen = self.write_gens.iter().copied().fold(self.carried_gen, u64::max);
        self.layout = layout;
        self.cache = LruCache::new(layout.slots());
        self.write_gens = vec![0; usize::from(layout.slots())];
        self.context_start = 0;
        self.starving = false;
        Ok(())
    }

    /// Whether a request holds the extent, or will when its transaction is written.
    #[must_use]
    pub fn referenced(&self, extent: AlExtent) -> bool {
        self.cache.find(extent.0).is_some_and(|found| self.cache.refs(found.slot) > 0)
    }

    /// The extents of the committed set, by slot.
    pub fn hot_extents(&self) -> impl Iterator<Item = (AlSlot, AlExtent)> + '_ {
        (0..self.layout.slots())
            .map(|slot| (AlSlot(slot), self.cache.label(slot)))
            .filter_map(|(slot, label)| (label != FREE_LABEL).then_some((slot, AlExtent(label))))
    }

    /// Extents whose last writes no data flush covers, or that have writes under way.
    #[must_use]
    pub fn unflushed_extents(&self) -> Vec<AlExtent> {
        self.hot_extents()
            .filter(|(slot, _)| {
                self.cache.refs(slot.0) > 0
                    || self.write_gens.get(usize::from(slot.0)).is_some_and(|written| *written > self.flushed_gen)
            })
            .map(|(_, extent)| extent)
            .collect()
    }

    /// Extents with references (what congestion-extents counts).
    #[must_use]
    pub const fn used(&self) -> u16 {
        self.cache.used()
    }

    /// Requests that wait for the log or for a resync.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.blocked.len() + self.in_flight.as_ref().map_or(0, |flight| flight.requests.len())
    }

    /// Whether `next_transaction` has something to look at.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.in_flight.is_none() && (!self.queue.is_empty() || (self.context_due > 0 && !self.disabled))
    }

    /// Number of the transaction in flight.
    #[must_use]
    pub fn in_flight(&self) -> Option<u32> {
        self.in_flight.as_ref().map(|flight| flight.tr_number)
    }

    /// Number of the next transaction.
    #[must_use]
    pub const fn tr_number(&self) -> u32 {
        self.tr_number
    }

    /// Whether the log is suspended.
    #[must_use]
    pub const fn suspended(&self) -> bool {
        self.suspended
    }

    /// Shape in effect.
    #[must_use]
    pub const fn layout(&self) -> AlLayout {
        self.layout
    }

    /// Transactions written since creation (`al:` in status).
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Fill and counters since creation, for the `act_log:` line.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats { used: self.cache.used(), slots: self.layout.slots(), ..self.stats }
    }

    /// The fast path: takes all references if every extent is committed.
    fn try_hot(&mut self, span: ExtentSpan) -> bool {
        let committed = |cache: &LruCache, extent: AlExtent| cache.find(extent.0).filter(|found| found.committed);
        if span.first() == span.last() {
            let Some(found) = committed(&self.cache, span.first()) else { return false };
            self.cache.acquire(found.slot);
            self.stats.hits += 1;
            return true;
        }
        if !span.iter().all(|extent| committed(&self.cache, extent).is_some()) {
            return false;
        }
        for extent in span.iter() {
            if let Some(found) = self.cache.find(extent.0) {
                self.cache.acquire(found.slot);
                self.stats.hits += 1;
            }
        }
        true
    }

    /// Whether the span can be taken, with `pending` updates collected so far.
    fn fits(&self, span: ExtentSpan, pending: usize) -> bool {
        let (mut cold, mut idle) = (0_usize, 0_usize);
        for extent in span.iter() {
            match self.cache.find(extent.0) {
                None => cold += 1,
                Some(found) if self.cache.refs(found.slot) == 0 => idle += 1,
                Some(_) => {}
            }
        }
        cold + pending <= AL_UPDATES_MAX && (cold == 0 || cold + idle <= usize::from(self.cache.available()))
    }

    /// Takes every reference of a span that `fits`; changes go into the batch. Returns whether any extent of the span is
    /// not committed.
    fn take_all(&mut self, span: ExtentSpan, batch: &mut Batch) -> bool {
        let mut uncommitted = false;
        // Known extents first: they must be referenced before the search for a victim.
        let mut cold = Vec::new();
        for extent in span.iter() {
            match self.cache.find(extent.0) {
                Some(found) => {
                    self.cache.acquire(found.slot);
                    self.stats.hits += 1;
                    uncommitted |= !found.committed;
                }
                None => cold.push(extent),
            }
        }
        for extent in cold {
            let taken = self.cache.take_for(extent.0);
            assert!(taken.is_some(), "activity log: no slot for extent {extent} though one was counted");
            if let Some((slot, old)) = taken {
                self.stats.misses += 1;
                uncommitted = true;
                batch.slots.push(slot);
                batch.extents.push(extent);
                if old != FREE_LABEL {
                    batch
                        .evicted
                        .push(Evicted { extent: AlExtent(old), write_gen: self.write_gens[usize::from(slot)] });
                }
            }
        }
        uncommitted
    }

    /// Takes a span that `fits` without a transaction.
    fn take_in_core(&mut self, span: ExtentSpan) {
        let mut batch = Batch::default();
        self.take_all(span, &mut batch);
        self.commit(&batch.slots);
    }

    fn commit(&mut self, slots: &[u16]) {
        for &slot in slots {
            self.cache.commit(slot);
            self.write_gens[usize::from(slot)] = 0;
        }
    }

    fn emit(&mut self, batch: Batch) -> Transaction {
        let mut evicted = std::mem::take(&mut self.carried);
        let evicted_gen = batch.evicted.iter().map(|old| old.write_gen).fold(self.carried_gen, u64::max);
        self.carried_gen = 0;
        evicted.extend(batch.evicted.iter().map(|old| old.extent));
        let updates = batch.slots.iter().zip(&batch.extents).map(|(&slot, &extent)| (AlSlot(slot), extent)).collect();
        let end = self.context_start.saturating_add(AL_CONTEXT_ENTRIES).min(self.layout.slots());
        let mut context: Vec<u32> = (self.context_start..end).map(|slot| self.cache.label(slot)).collect();
        context.resize(usize::from(AL_CONTEXT_ENTRIES), AL_FREE);
        let transaction = Transaction {
            tr_number: self.tr_number,
            updates,
            evicts_unflushed: evicted_gen > self.flushed_gen,
            evicted: evicted.clone(),
            context_size: self.layout.slots(),
            context_start: self.context_start,
            context,
        };
        self.in_flight = Some(InFlight {
            tr_number: self.tr_number,
            slots: batch.slots,
            evicted,
            evicted_gen,
            requests: batch.requests,
        });
        transaction
    }

    fn take_in_flight(&mut self, tr_number: u32) -> InFlight {
        match self.in_flight.take() {
            Some(flight) if flight.tr_number == tr_number => flight,
            other => {
                panic!("activity log: transaction {tr_number} is not in flight, {:?} is", other.map(|f| f.tr_number))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Evicted {
    extent: AlExtent,
    write_gen: u64,
}

/// What one transaction collects.
#[derive(Debug, Default)]
struct Batch {
    slots: Vec<u16>,
    extents: Vec<AlExtent>,
    evicted: Vec<Evicted>,
    requests: Vec<Waiting>,
}
