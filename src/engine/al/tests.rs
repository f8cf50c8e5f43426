use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::units::{Sector, SectorRange, Sectors};

fn layout(al_extents: u32, blocks: u32) -> AlLayout {
    AlLayout::new(al_extents, blocks).expect("valid ring")
}

fn span(first: u32, last: u32) -> ExtentSpan {
    ExtentSpan::new(AlExtent(first), AlExtent(last)).expect("short")
}

fn key(key: u64) -> RequestKey {
    RequestKey(key)
}

fn free(_: ExtentSpan) -> bool {
    false
}

/// Brings a span in, through a transaction if need be.
fn make_hot(log: &mut ActivityLog, name: u64, span: ExtentSpan) -> Option<Transaction> {
    match log.begin(key(name), span, free) {
        Begin::Hot => None,
        Begin::Pending => {
            let transaction = log.next_transaction(free).expect("something to write");
            assert_eq!(log.transaction_done(transaction.tr_number), [key(name)]);
            Some(transaction)
        }
        other => panic!("{other:?}"),
    }
}

/// The ring on disk; a block is a transaction, an unreadable or never written one is `None`.
#[derive(Clone)]
struct Ring(Vec<Option<Transaction>>);

impl Ring {
    fn new(layout: AlLayout) -> Self {
        Self(vec![None; usize::try_from(layout.blocks()).expect("small")])
    }

    fn at(&self, transaction: &Transaction) -> usize {
        usize::try_from(transaction.tr_number).expect("small") % self.0.len()
    }

    fn write(&mut self, transaction: &Transaction) {
        let at = self.at(transaction);
        self.0[at] = Some(transaction.clone());
    }

    fn torn(&self, transaction: &Transaction) -> Self {
        let mut torn = self.clone();
        torn.0[self.at(transaction)] = None;
        torn
    }

    /// What a replay after a crash finds: oldest to newest, contexts before updates (metadata.md 5.3, 5.4).
    fn recover(&self) -> BTreeSet<u32> {
        let mut blocks: Vec<&Transaction> = self.0.iter().flatten().collect();
        if let Some(any) = blocks.first().map(|block| block.tr_number) {
            blocks.sort_by_key(|block| block.tr_number.wrapping_sub(any).cast_signed());
        }
        let mut hot: BTreeMap<u16, u32> = BTreeMap::new();
        for block in blocks {
            for (slot, &extent) in (block.context_start..block.context_size).zip(&block.context) {
                hot.insert(slot, extent);
            }
            hot.extend(block.updates.iter().map(|&(slot, extent)| (slot.0, extent.0)));
        }
        hot.into_values().filter(|&extent| extent != AL_FREE).collect()
    }
}

/// An engine that does nothing but begin and end writes, and its disk.
struct World {
    log: ActivityLog,
    ring: Ring,
    next_key: u64,
    waiting: BTreeMap<RequestKey, ExtentSpan>,
    granted: Vec<ExtentSpan>,
    flight: Option<Transaction>,
    held: Option<u32>,
}

impl World {
    fn new(layout: AlLayout, tr_number: u32) -> Self {
        Self {
            log: ActivityLog::new(layout, tr_number),
            ring: Ring::new(layout),
            next_key: 0,
            waiting: BTreeMap::new(),
            granted: Vec::new(),
            flight: None,
            held: None,
        }
    }

    fn gate(held: Option<u32>) -> impl Fn(ExtentSpan) -> bool {
        move |span| held.is_some_and(|extent| span.iter().any(|e| e.0 == extent))
    }

    fn begin(&mut self, span: ExtentSpan) {
        self.next_key += 1;
        let key = key(self.next_key);
        match self.log.begin(key, span, Self::gate(self.held)) {
            Begin::Hot => self.granted.push(span),
            Begin::Pending | Begin::Blocked => {
                self.waiting.insert(key, span);
            }
            Begin::NotLogged => panic!("not suspended"),
        }
    }

    fn grant(&mut self, keys: Vec<RequestKey>) {
        for key in keys {
            self.granted.push(self.waiting.remove(&key).expect("was waiting"));
        }
    }

    fn pump(&mut self) {
        if let Some(transaction) = self.log.next_transaction(Self::gate(self.held)) {
            assert!(self.flight.is_none(), "one transaction at a time");
            assert!(transaction.updates.len() <= AL_UPDATES_MAX);
            for old in &transaction.evicted {
                assert!(
                    !self.granted.iter().any(|span| span.iter().any(|e| e == *old)),
                    "{old:?} evicted under a write"
                );
            }
            self.flight = Some(transaction);
        }
        let ready = self.log.take_ready();
        self.grant(ready);
    }

    fn finish(&mut self, outcome: Outcome) {
        let Some(transaction) = self.flight.take() else { return };
        match outcome {
            Outcome::Done => {
                self.ring.write(&transaction);
                let keys = self.log.transaction_done(transaction.tr_number);
                self.grant(keys);
            }
            Outcome::Failed | Outcome::FailedButWritten | Outcome::FailedAndTorn => {
                match outcome {
                    Outcome::FailedButWritten => self.ring.write(&transaction),
                    Outcome::FailedAndTorn => self.ring = self.ring.torn(&transaction),
                    Outcome::Done | Outcome::Failed => {}
                }
                for key in self.log.transaction_failed(transaction.tr_number) {
                    assert!(self.waiting.remove(&key).is_some());
                }
            }
        }
    }

    /// What a crash at this moment must find: every extent let through, and every extent whose bits may only be in memory
    /// (hot, and not being evicted: the bitmap pages of those are on disk before the block is).
    fn check(&self) {
        let evicted: BTreeSet<u32> = self.flight.iter().flat_map(|t| &t.evicted).map(|e| e.0).collect();
        let hot: BTreeSet<u32> = self.log.hot_extents().map(|(_, e)| e.0).filter(|e| !evicted.contains(e)).collect();
        let granted: BTreeSet<u32> = self.granted.iter().flat_map(|span| span.iter()).map(|e| e.0).collect();
        assert!(granted.is_subset(&hot), "let through but not hot: {:?}", granted.difference(&hot).collect::<Vec<_>>());
        let mut images = vec![self.ring.clone()];
        if let Some(transaction) = &self.flight {
            images.push(self.ring.torn(transaction));
            images.push(self.ring.clone());
            images[2].write(transaction);
        }
        for (image, ring) in images.iter().enumerate() {
            let found = ring.recover();
            let lost: Vec<_> = hot.difference(&found).collect();
            assert!(lost.is_empty(), "image {image} lost {lost:?}");
        }
        let mut references: BTreeSet<u32> = granted;
        let in_flight = self.flight.iter().flat_map(|t| &t.updates).map(|(_, e)| e.0);
        references.extend(in_flight);
        assert!(references.iter().all(|&e| self.log.referenced(AlExtent(e))));
        assert_eq!(self.log.waiting(), self.waiting.len());
    }
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Done,
    Failed,
    FailedButWritten,
    FailedAndTorn,
}

#[derive(Clone, Debug)]
enum Op {
    Begin(u32, u32),
    End(usize),
    Pump,
    Finish(Outcome),
    Hold(Option<u32>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0_u32..150, prop_oneof![4 => Just(0_u32), 1 => 0_u32..6, 1 => 20_u32..64])
            .prop_map(|(first, more)| Op::Begin(first, first + more)),
        6 => any::<usize>().prop_map(Op::End),
        5 => Just(Op::Pump),
        6 => prop_oneof![
            12 => Just(Outcome::Done),
            1 => Just(Outcome::Failed),
            1 => Just(Outcome::FailedButWritten),
            1 => Just(Outcome::FailedAndTorn)
        ].prop_map(Op::Finish),
        1 => prop::option::of(0_u32..150).prop_map(Op::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_crash_at_any_point_recovers_every_extent_that_was_let_through(
        ops in prop::collection::vec(op(), 1..250),
        al_extents in prop_oneof![Just(67_u32), 67_u32..200],
        tr_number in prop_oneof![Just(0_u32), Just(u32::MAX - 5)],
        stripes in prop_oneof![Just(1_u32), Just(2_u32)],
    ) {
        let mut world = World::new(layout(al_extents, 8 * stripes), tr_number);
        for op in ops {
            match op {
                Op::Begin(first, last) => world.begin(span(first, last)),
                Op::End(pick) if !world.granted.is_empty() => {
                    let at = pick % world.granted.len();
                    let span = world.granted.swap_remove(at);
                    world.log.end(span);
                }
                Op::End(_) => {}
                Op::Pump => world.pump(),
                Op::Finish(outcome) => world.finish(outcome),
                Op::Hold(extent) => {
                    world.held = extent;
                    world.log.retry_blocked();
                }
            }
            world.check();
        }
        // Nothing is stuck: with writes ending, everybody gets through.
        world.held = None;
        world.log.retry_blocked();
        for _ in 0..1000 {
            if world.waiting.is_empty() {
                break;
            }
            world.pump();
            world.finish(Outcome::Done);
            for span in std::mem::take(&mut world.granted) {
                world.log.end(span);
            }
        }
        prop_assert!(world.waiting.is_empty());
        prop_assert_eq!(world.log.waiting(), 0);
        world.check();
    }
}

#[test]
fn the_largest_set_that_a_ring_allows_survives_a_torn_block_at_every_transaction() {
    let mut world = World::new(layout(65534, 8), 0);
    assert_eq!(world.log.layout().slots(), 6433);
    let mut place = 1_u32;
    for round in 0..400_u32 {
        place = place.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let first = (place >> 8) % 20_000;
        world.begin(span(first, first + round % 64));
        world.pump();
        if round % 16 == 0 {
            world.check();
        }
        world.finish(Outcome::Done);
        if round % 16 == 0 {
            world.check();
        }
        if world.granted.len() > 90 {
            let span = world.granted.remove(0);
            world.log.end(span);
        }
    }
    assert!(world.log.hot_extents().count() > 6000, "the test is meant to fill the set");
    world.check();
}

#[test]
fn limits_of_al_extents_follow_the_ring() {
    assert_eq!(layout(1237, 8).slots(), 1237);
    assert_eq!(layout(65000, 8).slots(), 6433);
    assert_eq!(layout(1, 8).slots(), 67);
    assert_eq!(layout(65534, 72).slots(), 65249);
    assert_eq!(layout(u32::MAX, 73).slots(), 65534);
    assert_eq!(AlLayout::new(1237, 7), None);
    assert_eq!(AlLayout::new(1237, 0), None);
    assert_eq!(AlLayout::new(1237, u32::MAX), None);
}

#[test]
fn a_span_is_what_a_request_touches_and_at_most_64_extents() {
    let range = |start, count| SectorRange { start: Sector(start), count: Sectors(count) };
    assert_eq!(ExtentSpan::of(range(8191, 2)), Some(span(0, 1)));
    assert_eq!(ExtentSpan::of(range(5, 0)), None);
    assert_eq!(ExtentSpan::of(range(0, 64 * 8192)), Some(span(0, 63)));
    assert_eq!(ExtentSpan::of(range(1, 64 * 8192)), None);
    assert_eq!(ExtentSpan::new(AlExtent(3), AlExtent(2)), None);
    assert_eq!(ExtentSpan::new(AlExtent(AL_FREE), AlExtent(AL_FREE)), None);
}

#[test]
fn the_first_transaction_looks_as_the_kernel_writes_it() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    let first = make_hot(&mut log, 1, span(1, 1)).expect("cold");
    assert_eq!(first.updates, [(AlSlot(66), AlExtent(1))]);
    assert_eq!((first.tr_number, first.context_size, first.context_start), (0, 67, 0));
    assert_eq!(first.context.len(), 919);
    assert!(first.context.iter().all(|&extent| extent == AL_FREE), "the context shows the set before the update");
    let second = make_hot(&mut log, 2, span(5, 5)).expect("cold");
    assert_eq!(second.updates, [(AlSlot(65), AlExtent(5))]);
    assert_eq!((second.context[66], second.context[65]), (1, AL_FREE));
    assert_eq!(make_hot(&mut log, 3, span(1, 1)), None, "hot extents need no transaction");
    assert_eq!(log.written(), 2);
    assert_eq!(log.stats().to_string(), "used:2/67 hits:1 misses:2 starving:0 locked:0 changed:2");
}

#[test]
fn the_context_goes_round_in_steps_of_919() {
    let mut log = ActivityLog::new(layout(1237, 8), 0);
    let starts: Vec<u16> =
        (0..4).map(|i| make_hot(&mut log, u64::from(i), span(i, i)).expect("cold").context_start).collect();
    assert_eq!(starts, [0, 919, 0, 919]);
}

#[test]
fn requests_that_arrive_during_a_transaction_share_the_next_one() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    assert_eq!(log.begin(key(1), span(1, 1), free), Begin::Pending);
    let first = log.next_transaction(free).expect("one update");
    assert_eq!(log.begin(key(2), span(1, 1), free), Begin::Pending, "not committed yet");
    assert_eq!(log.begin(key(3), span(2, 3), free), Begin::Pending);
    assert_eq!(log.begin(key(4), span(3, 3), free), Begin::Pending);
    assert!(log.next_transaction(free).is_none());
    assert_eq!(log.transaction_done(first.tr_number), [key(1)]);
    let second = log.next_transaction(free).expect("two updates");
    assert_eq!(log.take_ready(), [key(2)], "needs no transaction any more");
    assert_eq!(second.updates.len(), 2);
    assert_eq!(log.transaction_done(second.tr_number), [key(3), key(4)]);
    assert_eq!(log.used(), 3);
    assert!(!log.end(span(1, 1)));
    assert!(log.end(span(1, 1)));
}

#[test]
fn at_most_64_updates_go_into_one_transaction_and_order_is_kept() {
    let mut log = ActivityLog::new(layout(200, 8), 0);
    for i in 0..70 {
        assert_eq!(log.begin(key(u64::from(i)), span(i, i), free), Begin::Pending);
    }
    let first = log.next_transaction(free).expect("full");
    assert_eq!(first.updates.len(), 64);
    assert_eq!(log.transaction_done(first.tr_number), (0..64).map(key).collect::<Vec<_>>());
    let second = log.next_transaction(free).expect("the rest");
    assert_eq!(log.transaction_done(second.tr_number), (64..70).map(key).collect::<Vec<_>>());
}

#[test]
fn the_least_recently_used_idle_extent_is_evicted() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    for i in 0..67 {
        make_hot(&mut log, u64::from(i), span(i, i));
    }
    for i in [5, 3, 9] {
        log.end(span(i, i));
    }
    make_hot(&mut log, 100, span(5, 5));
    log.end(span(5, 5));
    let evicted: Vec<_> =
        [100, 101, 102].iter().map(|&i| make_hot(&mut log, 9, span(i, i)).expect("cold").evicted).collect();
    assert_eq!(evicted, [[AlExtent(3)], [AlExtent(9)], [AlExtent(5)]]);
}

#[test]
fn a_starving_log_stops_the_fast_path_until_a_reference_is_dropped() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    for i in 0..67 {
        make_hot(&mut log, u64::from(i), span(i, i));
    }
    assert_eq!(log.begin(key(100), span(100, 100), free), Begin::Pending);
    assert!(log.next_transaction(free).is_none());
    assert_eq!(log.begin(key(101), span(0, 0), free), Begin::Pending, "no fast path past a starving request");
    assert!(log.next_transaction(free).is_none());
    assert!(log.take_ready().is_empty());
    assert!(log.end(span(7, 7)));
    let transaction = log.next_transaction(free).expect("a slot is free");
    assert_eq!(transaction.evicted, [AlExtent(7)]);
    assert_eq!(log.take_ready(), [key(101)]);
    assert_eq!(log.transaction_done(transaction.tr_number), [key(100)]);
    assert_eq!(log.stats().starving, 1);
    assert_eq!(log.begin(key(102), span(0, 0), free), Begin::Hot, "the fast path is open again");
}

#[test]
fn a_write_held_by_resync_is_set_aside_without_references_and_does_not_stop_others() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    make_hot(&mut log, 1, span(4, 4));
    let held = |span: ExtentSpan| span.iter().any(|extent| extent.0 == 5);
    assert_eq!(log.begin(key(2), span(4, 5), held), Begin::Blocked);
    assert_eq!(log.begin(key(3), span(4, 4), held), Begin::Hot);
    assert!(!log.referenced(AlExtent(5)));
    // Held only after it was queued: found out when it is served.
    assert_eq!(log.begin(key(4), span(5, 5), free), Begin::Pending);
    assert_eq!(log.begin(key(5), span(6, 6), free), Begin::Pending);
    let transaction = log.next_transaction(held).expect("extent 6");
    assert_eq!(transaction.updates, [(AlSlot(65), AlExtent(6))]);
    assert_eq!(log.transaction_done(transaction.tr_number), [key(5)]);
    assert!(log.retry_blocked());
    let transaction = log.next_transaction(free).expect("extent 5");
    assert_eq!(log.transaction_done(transaction.tr_number), [key(2), key(4)]);
}

#[test]
fn an_eviction_says_whether_the_data_was_flushed_since_the_last_write() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    for i in 0..67 {
        let transaction = make_hot(&mut log, u64::from(i), span(i, i)).expect("cold");
        assert!(!transaction.evicts_unflushed, "nothing is evicted");
    }
    log.end(span(0, 0));
    let mark = log.data_flush_started();
    log.end(span(1, 1));
    log.note_data_flush(mark);
    let flushed = make_hot(&mut log, 100, span(100, 100)).expect("cold");
    assert_eq!((flushed.evicted, flushed.evicts_unflushed), (vec![AlExtent(0)], false));
    let unflushed = make_hot(&mut log, 101, span(101, 101)).expect("cold");
    assert_eq!(
        (unflushed.evicted, unflushed.evicts_unflushed),
        (vec![AlExtent(1)], true),
        "it ended after the flush began"
    );
}

#[test]
fn after_a_failure_the_next_transaction_repeats_number_block_and_evictions() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    for i in 0..67 {
        make_hot(&mut log, u64::from(i), span(i, i));
    }
    log.end(span(0, 0));
    assert_eq!(log.begin(key(100), span(100, 100), free), Begin::Pending);
    let failed = log.next_transaction(free).expect("cold");
    assert_eq!(log.transaction_failed(failed.tr_number), [key(100)]);
    assert!(!log.referenced(AlExtent(100)));
    assert_eq!(log.begin(key(101), span(0, 0), free), Begin::Pending, "the disk may have forgotten it");
    let again = log.next_transaction(free).expect("cold");
    assert_eq!((again.tr_number, again.context_start), (failed.tr_number, failed.context_start));
    assert_eq!((again.evicted, again.evicts_unflushed), (vec![AlExtent(0)], true));
}

#[test]
fn without_updates_the_set_is_kept_in_memory_and_the_ring_is_rewritten_afterwards() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    log.set_updates(false);
    assert_eq!(log.begin(key(1), span(1, 3), free), Begin::Hot);
    assert!(log.referenced(AlExtent(3)));
    for i in 10..74 {
        assert_eq!(log.begin(key(2), span(i, i), free), Begin::Hot);
    }
    assert_eq!(log.begin(key(3), span(100, 100), free), Begin::Pending, "every slot is in use");
    assert!(log.next_transaction(free).is_none());
    log.end(span(10, 10));
    assert!(log.next_transaction(free).is_none());
    assert_eq!(log.take_ready(), [key(3)]);
    assert_eq!(log.written(), 0);
    log.set_updates(true);
    let mut ring = Ring::new(log.layout());
    while let Some(transaction) = log.next_transaction(free) {
        assert!(transaction.updates.is_empty());
        ring.write(&transaction);
        assert!(log.transaction_done(transaction.tr_number).is_empty());
    }
    assert_eq!(log.written(), 8, "one for each block of the ring");
    assert!(!log.has_work());
    assert_eq!(ring.recover(), log.hot_extents().map(|(_, extent)| extent.0).collect());
}

#[test]
fn while_suspended_requests_go_without_references() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    assert_eq!(log.begin(key(1), span(1, 1), free), Begin::Pending);
    assert_eq!(log.begin(key(2), span(2, 2), |_| true), Begin::Blocked);
    assert_eq!(log.suspend(), [key(2), key(1)]);
    assert_eq!(log.begin(key(3), span(1, 1), free), Begin::NotLogged);
    assert!(log.next_transaction(free).is_none());
    log.resume();
    assert_eq!(log.begin(key(4), span(1, 1), free), Begin::Pending);
}

#[test]
fn a_recovered_set_is_hot_and_what_has_no_slot_is_given_back() {
    let mut log = ActivityLog::new(layout(67, 8), 41);
    let left = log.load_recovered([(AlSlot(3), AlExtent(7)), (AlSlot(900), AlExtent(8)), (AlSlot(4), AlExtent(7))]);
    assert_eq!(left, [AlExtent(8)]);
    assert_eq!(log.begin(key(1), span(7, 7), free), Begin::Hot);
    let transaction = make_hot(&mut log, 2, span(8, 8)).expect("cold");
    assert_eq!((transaction.tr_number, transaction.context[3], transaction.context[4]), (41, 7, AL_FREE));
}

#[test]
fn changing_the_size_needs_an_idle_log_and_forgets_it_only_with_the_bitmap_written() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    make_hot(&mut log, 1, span(1, 2));
    assert_eq!(log.reconfigure(layout(100, 8)), Err(AlBusy));
    log.end(span(1, 2));
    assert_eq!(log.reconfigure(layout(100, 8)), Ok(()));
    assert_eq!(log.hot_extents().count(), 0);
    let transaction = make_hot(&mut log, 2, span(5, 5)).expect("cold");
    assert_eq!((transaction.tr_number, transaction.context_size), (1, 100));
    assert_eq!(transaction.evicted.iter().copied().collect::<BTreeSet<_>>(), [AlExtent(1), AlExtent(2)].into());
    assert!(transaction.evicts_unflushed);
}

#[test]
fn waiting_requests_can_be_taken_out_when_the_disk_is_lost() {
    let mut log = ActivityLog::new(layout(67, 8), 0);
    assert_eq!(log.begin(key(1), span(1, 1), free), Begin::Pending);
    let transaction = log.next_transaction(free).expect("cold");
    assert_eq!(log.begin(key(2), span(2, 2), free), Begin::Pending);
    assert_eq!(log.drain_waiting(), [key(2)]);
    assert_eq!(log.transaction_failed(transaction.tr_number), [key(1)]);
    assert_eq!((log.waiting(), log.used()), (0, 0));
}
