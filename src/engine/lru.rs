//! The slot cache behind the activity log and the resync extents: a fixed number of slots, each free or labelled with an
//! extent number and reference counted.
//!
//! Owns slots, their order of use and a small hash from label to slot. Takes in labels, gives out slot numbers. Invariants
//! (checked by `assert_invariants` in tests): a label is in at most one slot; only slots without a reference are given
//! away, free ones first (the last one freed first, so a fresh cache is filled from the highest slot down), then the least
//! recently used; a slot being changed is in no list that gives slots away until `commit` or `abort`.
//! Nothing allocates after `new`. Source: metadata.md 4.3 (slot assignment), behaviour.md 5.2.

#[cfg(test)]
mod tests;

/// Label of a slot that holds no extent; the on-disk value too.
pub const FREE_LABEL: u32 = u32::MAX;
/// Most slots a cache may have: DRBD's limit for activity-log slots.
pub const SLOTS_MAX: u16 = 65534;

const NIL: u16 = u16::MAX;

/// Counters of a cache; `Display` is DRBD's statistics line without its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Slots with references.
    pub used: u16,
    /// All slots.
    pub slots: u16,
    /// Extents found.
    pub hits: u64,
    /// Extents that had to be brought in.
    pub misses: u64,
    /// Times that no slot was to be had.
    pub starving: u64,
    /// Times that a change had to wait for the one under way.
    pub locked: u64,
    /// Extents brought in for good.
    pub changed: u64,
}

impl std::fmt::Display for CacheStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { used, slots, hits, misses, starving, locked, changed } = self;
        write!(
            f,
            "used:{used}/{slots} hits:{hits} misses:{misses} starving:{starving} locked:{locked} changed:{changed}"
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Lru,
    InUse,
    Changing,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// What is committed; `FREE_LABEL` when nothing.
    label: u32,
    /// What the slot will hold after `commit`; equal to `label` otherwise.
    next_label: u32,
    refs: u32,
    prev: u16,
    next: u16,
    /// Next slot in the same hash bucket.
    chain: u16,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u16,
    tail: u16,
    len: u16,
}

const EMPTY: List = List { head: NIL, tail: NIL, len: 0 };

/// Where a label was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The slot.
    pub slot: u16,
    /// False while the change that brings the label in is not committed.
    pub committed: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct LruCache {
    slots: Vec<Slot>,
    buckets: Vec<u16>,
    /// Right shift that turns the hash product into a bucket number.
    shift: u32,
    free: List,
    lru: List,
    used: u16,
}

impl LruCache {
    /// A cache of `slots` free slots, 1..=65534 (clamped).
    #[must_use]
    pub fn new(slots: u16) -> Self {
        let slots = slots.clamp(1, SLOTS_MAX);
        let buckets = usize::from(slots).next_power_of_two().max(2);
        let mut cache = Self {
            slots: vec![
                Slot {
                    label: FREE_LABEL,
                    next_label: FREE_LABEL,
                    refs: 0,
                    prev: NIL,
                    next: NIL,
                    chain: NIL,
                    place: Place::Free
                };
                usize::from(slots)
            ],
            buckets: vec![NIL; buckets],
            shift: 32 - buckets.trailing_zeros(),
            free: EMPTY,
            lru: EMPTY,
            used: 0,
        };
        for slot in 0..slots {
            cache.push_front(slot, Place::Free);
        }
        cache
    }

    /// Number of slots.
    #[must_use]
    pub fn capacity(&self) -> u16 {
        u16::try_from(self.slots.len()).unwrap_or(SLOTS_MAX)
    }

    /// Slots with at least one reference.
    #[must_use]
    pub const fn used(&self) -> u16 {
        self.used
    }

    /// Slots that could be given to a new label.
    #[must_use]
    pub const fn available(&self) -> u16 {
        self.free.len + self.lru.len
    }

    /// The slot that holds `label`, or will after its commit.
    #[must_use]
    pub fn find(&self, label: u32) -> Option<Found> {
        let mut at = self.buckets[self.bucket(label)];
        while at != NIL {
            let slot = &self.slots[usize::from(at)];
            if slot.next_label == label {
                return Some(Found { slot: at, committed: slot.place != Place::Changing });
            }
            at = slot.chain;
        }
        None
    }

    /// References on a slot.
    #[must_use]
    pub fn refs(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].refs
    }

    /// The committed label of a slot, `FREE_LABEL` if none.
    #[must_use]
    pub fn label(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].label
    }

    /// The committed labels by slot number, `FREE_LABEL` for none.
    pub fn labels(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().map(|slot| slot.label)
    }

    /// Takes a reference on a labelled slot.
    pub fn acquire(&mut self, slot: u16) {
        let at = usize::from(slot);
        self.slots[at].refs += 1;
        if self.slots[at].refs == 1 {
            self.used += 1;
            if self.slots[at].place == Place::Lru {
                self.unlink(slot);
                self.slots[at].place = Place::InUse;
            }
        }
    }

    /// Drops a reference; the slot becomes the most recently used one when it was the last. Returns the references left.
    ///
    /// # Panics
    /// When the slot has no reference: references and requests have come apart.
    pub fn release(&mut self, slot: u16) -> u32 {
        let at = usize::from(slot);
        assert!(self.slots[at].refs > 0, "slot {slot} released without a reference");
        self.slots[at].refs -= 1;
        let left = self.slots[at].refs;
        if left == 0 {
            self.used -= 1;
            if self.slots[at].place == Place::InUse {
                self.push_front(slot, Place::Lru);
            }
        }
        left
    }

    /// Gives a slot to `label`, which must not be in the cache, with one reference. It counts as not committed until
    /// `commit`. Returns the slot and the label that it forgets (`FREE_LABEL` if none); `None` when every slot is in use.
    pub fn take_for(&mut self, label: u32) -> Option<(u16, u32)> {
        debug_assert!(self.find(label).is_none() && label != FREE_LABEL);
        let slot = if self.free.len > 0 { self.free.head } else { self.lru.tail };
        if slot == NIL {
            return None;
        }
        let at = usize::from(slot);
        let old = self.slots[at].label;
        self.unlink(slot);
        if old != FREE_LABEL {
            self.unhash(slot);
        }
        self.slots[at].next_label = label;
        self.slots[at].refs = 1;
        self.slots[at].place = Place::Changing;
        self.used += 1;
        self.hash(slot);
        Some((slot, old))
    }

    /// Makes the change of a slot valid.
    pub fn commit(&mut self, slot: u16) {
        let at = usize::from(slot);
        debug_assert_eq!(self.slots[at].place, Place::Changing);
        self.slots[at].label = self.slots[at].next_label;
        if self.slots[at].refs > 0 {
            self.slots[at].place = Place::InUse;
        } else {
            self.push_front(slot, Place::Lru);
        }
    }

    /// Gives up the change of a slot: it becomes free, whatever it held before is forgotten too.
    pub fn abort(&mut self, slot: u16) {
        let at = usize::from(slot);
        debug_assert_eq!(self.slots[at].place, Place::Changing);
        if self.slots[at].refs > 0 {
            self.used -= 1;
        }
        self.make_free(slot);
    }

    /// Forgets the label of an unreferenced, committed slot. Returns false (and does nothing) for any other slot.
    pub fn forget(&mut self, slot: u16) -> bool {
        if self.slots[usize::from(slot)].place != Place::Lru {
            return false;
        }
        self.unlink(slot);
        self.make_free(slot);
        true
    }

    /// Labels a free slot as committed and unreferenced. Returns false if the slot is not free or the label is known.
    pub fn preset(&mut self, slot: u16, label: u32) -> bool {
        let at = usize::from(slot);
        if at >= self.slots.len()
            || self.slots[at].place != Place::Free
            || label == FREE_LABEL
            || self.find(label).is_some()
        {
            return false;
        }
        self.unlink(slot);
        self.slots[at].label = label;
        self.slots[at].next_label = label;
        self.hash(slot);
        self.push_front(slot, Place::Lru);
        true
    }

    fn make_free(&mut self, slot: u16) {
        let at = usize::from(slot);
        self.unhash(slot);
        self.slots[at].label = FREE_LABEL;
        self.slots[at].next_label = FREE_LABEL;
        self.slots[at].refs = 0;
        self.push_front(slot, Place::Free);
    }

    fn bucket(&self, label: u32) -> usize {
        // Multiplicative hash: spreads runs of neighbouring extents evenly, and is the same on every run.
        usize::try_from(label.wrapping_mul(0x9e37_79b1) >> self.shift).unwrap_or(0)
    }

    fn hash(&mut self, slot: u16) {
        let bucket = self.bucket(self.slots[usize::from(slot)].next_label);
        self.slots[usize::from(slot)].chain = self.buckets[bucket];
        self.buckets[bucket] = slot;
    }

    fn unhash(&mut self, slot: u16) {
        let bucket = self.bucket(self.slots[usize::from(slot)].next_label);
        let after = self.slots[usize::from(slot)].chain;
        if self.buckets[bucket] == slot {
            self.buckets[bucket] = after;
            return;
        }
        let mut at = self.buckets[bucket];
        while at != NIL {
            let next = self.slots[usize::from(at)].chain;
            if next == slot {
                self.slots[usize::from(at)].chain = after;
                return;
            }
            at = next;
        }
    }

    fn push_front(&mut self, slot: u16, place: Place) {
        let list = if place == Place::Free { &mut self.free } else { &mut self.lru };
        let head = list.head;
        list.head = slot;
        list.len += 1;
        if head == NIL {
            list.tail = slot;
        } else {
            self.slots[usize::from(head)].prev = slot;
        }
        let entry = &mut self.slots[usize::from(slot)];
        entry.prev = NIL;
        entry.next = head;
        entry.place = place;
    }

    fn unlink(&mut self, slot: u16) {
        let Slot { prev, next, place, .. } = self.slots[usize::from(slot)];
        let list = match place {
            Place::Free => &mut self.free,
            Place::Lru => &mut self.lru,
            Place::InUse | Place::Changing => return,
        };
        list.len -= 1;
        if prev == NIL {
            list.head = next;
        } else {
            self.slots[usize::from(prev)].next = next;
        }
        if next == NIL {
            list.tail = prev;
        } else {
            self.slots[usize::from(next)].prev = prev;
        }
    }
}
