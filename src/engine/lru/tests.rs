use proptest::prelude::*;

use super::*;

impl LruCache {
    /// Every invariant of the module text.
    fn assert_invariants(&self) {
        let mut seen = std::collections::BTreeSet::new();
        let mut used = 0;
        let mut places = [0_u16; 2];
        for (index, slot) in self.slots.iter().enumerate() {
            used += u16::from(slot.refs > 0);
            if slot.next_label == FREE_LABEL {
                assert_eq!((slot.place, slot.label), (Place::Free, FREE_LABEL));
            } else {
                assert!(seen.insert(slot.next_label), "label {} twice", slot.next_label);
                assert_eq!(usize::from(self.find(slot.next_label).expect("labelled slots are found").slot), index);
            }
            match slot.place {
                Place::Free => {
                    places[0] += 1;
                    assert_eq!(slot.refs, 0);
                }
                Place::Lru => {
                    places[1] += 1;
                    assert_eq!(slot.refs, 0);
                    assert_eq!(slot.label, slot.next_label);
                }
                Place::InUse => assert!(slot.refs > 0 && slot.label == slot.next_label),
                Place::Changing => {}
            }
        }
        assert_eq!(used, self.used);
        for (list, count) in [(&self.free, places[0]), (&self.lru, places[1])] {
            assert_eq!(list.len, count);
            let (mut at, mut before, mut walked) = (list.head, NIL, 0);
            while at != NIL {
                assert_eq!(self.slots[usize::from(at)].prev, before);
                (before, at) = (at, self.slots[usize::from(at)].next);
                walked += 1;
            }
            assert_eq!((before, walked), (list.tail, count));
        }
    }
}

/// What the cache should be, in the plainest form: slots by number, idle ones in order of use, free ones as a stack.
#[derive(Debug, Default)]
struct Naive {
    slots: Vec<Option<(u32, u32)>>,
    idle: Vec<u16>,
    free: Vec<u16>,
}

impl Naive {
    fn new(slots: u16) -> Self {
        Self { slots: vec![None; usize::from(slots)], idle: Vec::new(), free: (0..slots).collect() }
    }

    fn get(&mut self, label: u32) -> Option<(u16, u32)> {
        if let Some(slot) = self.slots.iter().position(|slot| slot.is_some_and(|(have, _)| have == label)) {
            let slot = u16::try_from(slot).expect("small");
            self.idle.retain(|&idle| idle != slot);
            self.slots[usize::from(slot)].as_mut().expect("found").1 += 1;
            return Some((slot, label));
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.idle.is_empty() => return None,
            None => self.idle.remove(0),
        };
        let old = self.slots[usize::from(slot)].map_or(FREE_LABEL, |(old, _)| old);
        self.slots[usize::from(slot)] = Some((label, 1));
        Some((slot, old))
    }

    fn put(&mut self, label: u32) {
        let slot = self.slots.iter().position(|slot| slot.is_some_and(|(have, _)| have == label)).expect("referenced");
        let entry = self.slots[slot].as_mut().expect("labelled");
        entry.1 -= 1;
        if entry.1 == 0 {
            self.idle.push(u16::try_from(slot).expect("small"));
        }
    }
}

#[test]
fn a_fresh_cache_is_filled_from_the_highest_slot_down() {
    let mut cache = LruCache::new(67);
    assert_eq!(cache.take_for(1), Some((66, FREE_LABEL)));
    assert_eq!(cache.take_for(2), Some((65, FREE_LABEL)));
    assert_eq!(cache.available(), 65);
    cache.assert_invariants();
}

#[test]
fn a_label_being_changed_is_found_but_not_committed_and_the_old_one_is_gone() {
    let mut cache = LruCache::new(1);
    assert_eq!(cache.take_for(7), Some((0, FREE_LABEL)));
    cache.commit(0);
    cache.release(0);
    assert_eq!(cache.take_for(8), Some((0, 7)));
    assert_eq!(cache.find(8), Some(Found { slot: 0, committed: false }));
    assert_eq!(cache.find(7), None);
    assert_eq!(cache.label(0), 7, "the committed label is what a transaction's context shows");
    assert_eq!(cache.take_for(9), None);
    cache.abort(0);
    assert_eq!((cache.find(8), cache.used(), cache.available()), (None, 0, 1));
    cache.assert_invariants();
}

#[test]
#[should_panic(expected = "released without a reference")]
fn one_release_too_many_is_noticed() {
    let mut cache = LruCache::new(2);
    assert!(cache.preset(1, 5));
    cache.release(1);
}

proptest! {
    #[test]
    fn it_behaves_as_the_naive_cache(
        slots in 1_u16..12,
        ops in prop::collection::vec((any::<bool>(), 0_u32..20), 1..300),
    ) {
        let mut cache = LruCache::new(slots);
        let mut naive = Naive::new(slots);
        let mut held: Vec<u32> = Vec::new();
        for (get, pick) in ops {
            if get || held.is_empty() {
                let ours = match cache.find(pick) {
                    Some(found) => {
                        cache.acquire(found.slot);
                        Some((found.slot, pick))
                    }
                    None => cache.take_for(pick).inspect(|&(slot, _)| cache.commit(slot)),
                };
                prop_assert_eq!(ours, naive.get(pick));
                held.extend(ours.map(|_| pick));
            } else {
                let label = held.swap_remove(usize::try_from(pick).expect("small") % held.len());
                let slot = cache.find(label).expect("held labels stay").slot;
                cache.release(slot);
                naive.put(label);
            }
            cache.assert_invariants();
        }
    }
}
