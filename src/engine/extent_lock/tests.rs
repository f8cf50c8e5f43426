use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const IDLE: fn(AlExtent) -> bool = |_| false;

fn full(_: ResyncExtent) -> u32 {
    4096
}

fn extent(nr: u32) -> ResyncExtent {
    ResyncExtent(nr)
}

fn span(first: u32, last: u32) -> ExtentSpan {
    ExtentSpan::new(AlExtent(first), AlExtent(last)).expect("short")
}

fn key(key: u64) -> WaiterKey {
    WaiterKey(key)
}

fn busy(al: u32) -> impl Fn(AlExtent) -> bool {
    move |extent| extent.0 == al
}

impl ExtentLocks {
    fn assert_invariants(&self) {
        let mut held = 0;
        for slot in 0..RESYNC_SLOTS {
            let marks = self.marks[usize::from(slot)];
            held += u16::from(marks.no_writes);
            assert_eq!(marks.no_writes, self.cache.refs(slot) > 0, "marks live as long as references");
            assert!(marks.no_writes || !(marks.locked || marks.priority));
        }
        assert_eq!(held, self.held);
        if let Some(half) = self.half_locked {
            let slot = self.slot(half).expect("a half-locked extent is cached");
            assert!(self.cache.refs(slot) > 0);
        }
    }
}

#[test]
fn a_locked_extent_holds_writes_off_until_its_last_request_ends() {
    let mut locks = ExtentLocks::new();
    assert!(locks.try_begin(extent(2), false, || 4096, IDLE));
    assert!(locks.try_begin(extent(2), false, || 4096, IDLE), "a second request of the same extent");
    assert!(!locks.holds_writes(span(7, 7)) && !locks.holds_writes(span(12, 12)));
    assert!(locks.holds_writes(span(7, 8)) && locks.holds_writes(span(11, 30)));
    assert!(locks.priority(extent(2)));
    locks.end(extent(2));
    assert!(locks.holds_writes(span(9, 9)));
    assert!(!locks.take_write_wake());
    locks.end(extent(2));
    assert!(locks.take_write_wake() && !locks.take_write_wake());
    assert!(!locks.holds_writes(span(9, 9)) && !locks.priority(extent(2)));
    locks.assert_invariants();
}

#[test]
fn a_busy_extent_is_half_locked_so_that_writes_drain_and_the_next_try_succeeds() {
    let mut locks = ExtentLocks::new();
    assert!(!locks.try_begin(extent(2), false, || 4096, busy(11)));
    assert!(locks.holds_writes(span(8, 8)), "no new write meanwhile");
    assert!(!locks.try_begin(extent(2), false, || 4096, busy(11)));
    assert_eq!(locks.held(), 1);
    assert!(locks.try_begin(extent(2), false, || 4096, IDLE));
    locks.end(extent(2));
    assert_eq!(locks.held(), 0, "the tries before left no reference behind");
    locks.assert_invariants();
}

#[test]
fn only_one_extent_is_half_locked() {
    let mut locks = ExtentLocks::new();
    assert!(!locks.try_begin(extent(2), false, || 4096, busy(8)));
    assert!(locks.try_begin(extent(3), false, || 4096, busy(8)));
    assert!(!locks.holds_writes(span(8, 8)));
    assert!(locks.take_write_wake());
    locks.assert_invariants();
}

#[test]
fn under_the_throttle_only_the_half_locked_extent_may_go_on_and_gives_way_if_it_cannot() {
    let mut locks = ExtentLocks::new();
    assert!(!locks.try_begin(extent(2), true, || 4096, IDLE));
    assert_eq!(locks.held(), 0);
    assert!(!locks.try_begin(extent(2), false, || 4096, busy(8)));
    assert!(!locks.try_begin(extent(3), true, || 4096, IDLE), "another extent is refused and leaves it alone");
    assert_eq!(locks.held(), 1);
    assert!(!locks.try_begin(extent(2), true, || 4096, busy(8)));
    assert_eq!(locks.held(), 0);
    assert!(!locks.try_begin(extent(2), false, || 4096, busy(8)));
    assert!(locks.try_begin(extent(2), true, || 4096, IDLE));
    locks.assert_invariants();
}

#[test]
fn the_target_keeps_three_slots_free_and_the_source_half() {
    let mut target = ExtentLocks::new();
    let taken = (0..100).take_while(|&nr| target.try_begin(extent(nr), false, || 1, IDLE)).count();
    assert_eq!(taken, 59, "begun while at most 58 are held");
    assert!(target.try_begin(extent(0), false, || 1, IDLE), "a locked one goes on");
    let mut source = ExtentLocks::new();
    let taken =
        (0..100).take_while(|&nr| source.begin_source(key(0), extent(nr), false, full, IDLE) == BeginSource::Granted);
    assert_eq!(taken.count(), 31, "begun while at most half are held");
    assert!(source.wake(full, IDLE).is_empty());
    source.end(extent(5));
    assert_eq!(source.wake(full, IDLE), [Woken::Granted(key(0))]);
    source.assert_invariants();
}

#[test]
fn a_source_request_waits_for_the_writes_of_its_extent_in_order() {
    let mut locks = ExtentLocks::new();
    assert_eq!(locks.begin_source(key(1), extent(2), false, full, busy(9)), BeginSource::Wait);
    assert_eq!(locks.begin_source(key(2), extent(3), false, full, busy(9)), BeginSource::Wait);
    assert!(locks.holds_writes(span(8, 8)), "writes to the first one's extent are held off");
    assert!(!locks.holds_writes(span(12, 12)), "writes to the second one's are not yet");
    assert!(locks.wake(full, busy(9)).is_empty());
    assert_eq!(locks.wake(full, IDLE), [Woken::Granted(key(1)), Woken::Granted(key(2))]);
    assert_eq!(locks.begin_source(key(3), extent(2), true, full, busy(9)), BeginSource::Granted, "locked already");
    for nr in [2, 3, 2] {
        locks.end(extent(nr));
    }
    assert_eq!((locks.held(), locks.waiting()), (0, 0));
    locks.assert_invariants();
}

#[test]
fn a_throttled_source_request_gives_way_to_a_write_that_comes_meanwhile() {
    let mut locks = ExtentLocks::new();
    assert_eq!(locks.begin_source(key(1), extent(2), true, full, busy(9)), BeginSource::Wait);
    assert_eq!(locks.begin_source(key(2), extent(4), false, full, busy(9)), BeginSource::Wait);
    assert!(locks.wake(full, busy(9)).is_empty());
    assert!(locks.holds_writes(span(8, 8)));
    assert_eq!(locks.wake(full, busy(9)), [Woken::Backoff(key(1)), Woken::Granted(key(2))]);
    assert!(locks.take_write_wake());
    assert!(!locks.holds_writes(span(8, 8)));
    assert_eq!(locks.begin_source(key(1), extent(2), true, full, IDLE), BeginSource::Granted);
    locks.assert_invariants();
}

#[test]
fn a_cancelled_waiter_lets_writes_through_again() {
    let mut locks = ExtentLocks::new();
    assert_eq!(locks.begin_source(key(1), extent(2), false, full, busy(9)), BeginSource::Wait);
    assert!(locks.cancel(key(1)) && !locks.cancel(key(1)));
    assert!(locks.take_write_wake() && !locks.holds_writes(span(8, 8)));
    locks.assert_invariants();
}

#[test]
fn an_extent_is_clean_when_only_failed_blocks_are_left() {
    let mut locks = ExtentLocks::new();
    assert!(locks.try_begin(extent(2), false, || 10, IDLE));
    assert!(!locks.note_cleared(extent(2), 4, || unreachable!("it is cached")));
    locks.note_set(extent(2), 1);
    locks.note_failed(extent(2), 2);
    assert!(!locks.note_cleared(extent(2), 4, || unreachable!("it is cached")));
    assert!(locks.note_cleared(extent(2), 1, || unreachable!("it is cached")));
    assert!(locks.note_cleared(extent(9), 1, || 0) && !locks.note_cleared(extent(9), 1, || 1));
}

#[test]
fn forgetting_leaves_held_extents_and_reset_leaves_nothing() {
    let mut locks = ExtentLocks::new();
    assert!(locks.try_begin(extent(1), false, || 7, IDLE));
    assert!(locks.try_begin(extent(2), false, || 7, IDLE));
    locks.end(extent(2));
    assert!(!locks.try_begin(extent(3), false, || 7, busy(12)));
    assert!(!locks.forget_idle());
    assert_eq!((locks.held(), locks.slot(extent(2)), locks.slot(extent(3))), (1, None, None));
    assert_eq!(locks.begin_source(key(4), extent(5), false, full, busy(20)), BeginSource::Wait);
    assert!(locks.take_write_wake());
    assert_eq!(locks.reset(), [key(4)]);
    assert!(locks.take_write_wake(), "held writes are let go");
    assert!(locks.forget_idle());
    locks.assert_invariants();
}

#[test]
#[should_panic(expected = "was not begun")]
fn an_end_without_a_begin_is_noticed() {
    ExtentLocks::new().end(extent(1));
}

#[test]
fn extents_beyond_the_largest_device_do_not_exist() {
    assert_eq!(ResyncExtent::of(Sector(32768 * 5 + 32767)), Some(extent(5)));
    assert_eq!(ResyncExtent::of(Sector(u64::MAX)), None);
    assert_eq!(ResyncExtent::of_al(AlExtent(23)), extent(5));
    assert_eq!(extent(5).al_extents().collect::<Vec<_>>(), [20, 21, 22, 23].map(AlExtent));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(u32, u32),
    WriteEnds(usize),
    Target(u32, bool),
    Source(u32, bool),
    ResyncEnds(usize),
    Cancel(u64),
    Forget,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u32..40, 0_u32..6).prop_map(|(first, more)| Op::Write(first, first + more)),
        4 => any::<usize>().prop_map(Op::WriteEnds),
        3 => (0_u32..10, prop::bool::weighted(0.2)).prop_map(|(nr, throttle)| Op::Target(nr, throttle)),
        3 => (0_u32..10, prop::bool::weighted(0.4)).prop_map(|(nr, throttle)| Op::Source(nr, throttle)),
        4 => any::<usize>().prop_map(Op::ResyncEnds),
        1 => (0_u64..30).prop_map(Op::Cancel),
        1 => Just(Op::Forget),
    ]
}

/// Writes that run by AL extent, resync requests that run by extent.
#[derive(Default)]
struct World {
    locks: ExtentLocks,
    writes: Vec<ExtentSpan>,
    aside: Vec<ExtentSpan>,
    resyncs: Vec<ResyncExtent>,
    waiters: BTreeMap<WaiterKey, ResyncExtent>,
    next_key: u64,
}

impl World {
    fn referenced(writes: &[ExtentSpan]) -> impl Fn(AlExtent) -> bool + '_ {
        |extent| writes.iter().any(|span| span.first() <= extent && extent <= span.last())
    }

    fn write(&mut self, span: ExtentSpan) {
        if self.locks.holds_writes(span) { &mut self.aside } else { &mut self.writes }.push(span);
    }

    fn settle(&mut self) {
        if self.locks.take_write_wake() {
            for span in std::mem::take(&mut self.aside) {
                self.write(span);
            }
        }
        for woken in self.locks.wake(full, Self::referenced(&self.writes)) {
            match woken {
                Woken::Granted(key) => self.resyncs.push(self.waiters.remove(&key).expect("waited")),
                Woken::Backoff(key) => {
                    self.waiters.remove(&key).expect("waited");
                }
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write(first, last) => self.write(span(first, last)),
            Op::WriteEnds(pick) if !self.writes.is_empty() => {
                self.writes.swap_remove(pick % self.writes.len());
            }
            Op::ResyncEnds(pick) if !self.resyncs.is_empty() => {
                let extent = self.resyncs.swap_remove(pick % self.resyncs.len());
                self.locks.end(extent);
            }
            Op::WriteEnds(_) | Op::ResyncEnds(_) => {}
            Op::Target(nr, throttle) => {
                if self.locks.try_begin(extent(nr), throttle, || 1, Self::referenced(&self.writes)) {
                    self.resyncs.push(extent(nr));
                }
            }
            Op::Source(nr, throttle) => {
                self.next_key += 1;
                let key = key(self.next_key);
                match self.locks.begin_source(key, extent(nr), throttle, full, Self::referenced(&self.writes)) {
                    BeginSource::Granted => self.resyncs.push(extent(nr)),
                    BeginSource::Wait => {
                        self.waiters.insert(key, extent(nr));
                    }
                }
            }
            Op::Cancel(name) => assert_eq!(self.locks.cancel(key(name)), self.waiters.remove(&key(name)).is_some()),
            Op::Forget => {
                self.locks.forget_idle();
            }
        }
    }

    fn check(&self) {
        self.locks.assert_invariants();
        let referenced = Self::referenced(&self.writes);
        for resync in &self.resyncs {
            assert!(!resync.al_extents().any(&referenced), "{resync:?}: a write runs beside resync");
        }
        assert_eq!(self.locks.waiting(), self.waiters.len());
    }
}

proptest! {
    #[test]
    fn writes_and_resync_never_meet_and_nobody_waits_for_ever(ops in prop::collection::vec(op(), 1..200)) {
        let mut world = World::default();
        for op in ops {
            world.apply(op);
            world.check();
            world.settle();
            world.check();
        }
        for _ in 0..300 {
            world.apply(Op::WriteEnds(0));
            world.apply(Op::ResyncEnds(0));
            world.settle();
            world.check();
        }
        world.apply(Op::Forget);
        world.settle();
        world.apply(Op::WriteEnds(0));
        for _ in 0..300 {
            world.apply(Op::WriteEnds(0));
        }
        prop_assert!(world.waiters.is_empty() && world.aside.is_empty());
        prop_assert_eq!(world.locks.held(), 0);
    }
}
