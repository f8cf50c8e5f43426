//! The simulator itself: replays are equal, and what is broken on purpose is noticed.

use std::panic::catch_unwind;

use super::coverage::Group;
use super::device::Defect;
use super::plan::Order;
use super::run::{Rig, rigged, run, seed};
use super::scenario::{Scenario, Story};
use super::stamp::WriteId;
use super::world::{A, B, Checker};
use super::{draw, shrink};
use crate::engine::fault::Fault;

const BUG: Option<Fault> = Some(Fault::AckedEpochUnmarked);

/// A seed at which the mistake above is found, and the checker that finds it.
fn finding() -> (u64, Checker) {
    let found = (0..50).find_map(|n| seed(n, BUG, false).violation.map(|v| (n, v.checker)));
    found.expect("the mistake is found")
}

#[test]
fn a_failing_run_replays_to_the_same_bytes() {
    let plan = draw::plan(finding().0);
    let (one, two) = (run(&plan, BUG, true), run(&plan, BUG, true));
    assert!(one.violation.is_some());
    assert_eq!(one.digest, two.digest);
    assert!(one.trace == two.trace && one.trace.is_some_and(|trace| trace.contains("VIOLATION")));
    assert_ne!(seed(2, None, false).digest, seed(3, None, false).digest);
}

#[test]
fn a_sound_run_is_sound() {
    let outcome = seed(finding().0, None, false);
    assert_eq!(outcome.violation, None);
    assert!(outcome.stats.operations > 100 && outcome.stats.crashes > 0);
    assert_ne!(outcome.coverage.group(Group::Rule), [], "the engine does not say which rules decided");
}

#[test]
fn a_defect_of_the_disks_is_noticed() {
    for defect in [Defect::LyingFlush, Defect::LostWrite, Defect::Misdirected, Defect::TornSector] {
        let rig = Rig { defect: Some(defect), ..Rig::default() };
        let found = (0..12).any(|seed| rigged(&draw::plan(seed), rig, false).violation.is_some());
        assert!(found, "{defect:?}");
    }
}

#[test]
fn a_checker_that_finds_nothing_is_noticed() {
    let (seed, checker) = finding();
    let deaf = rigged(&draw::plan(seed), Rig { inject: BUG, deaf: Some(checker), ..Rig::default() }, false).violation;
    assert_ne!(deaf.map(|v| v.checker), Some(checker), "what this checker alone sees would be missed");
}

#[test]
fn a_failing_schedule_shrinks() {
    let small = shrink::shrink(&draw::plan(finding().0), BUG, 60).expect("fails");
    assert!(small.plan.steps.len() < 200, "{}", small.plan.steps.len());
    assert!(small.outcome.violation.is_some());
}

/// Both nodes wrote alone, are Secondary and do not see each other. Gives both writes.
fn divided(inject: Option<Fault>) -> (Story, [WriteId; 2]) {
    let mut s = Scenario::new().inject(inject).ready();
    s.cut();
    s.a().becomes("WFConnection");
    s.b().becomes("WFConnection");
    let writes = [A, B].map(|node| {
        s.on(node).promote();
        let write = s.on(node).write_fua(64 * node as u64, 8);
        s.on(node).demote();
        write
    });
    (s, writes)
}

/// The operator names B by `connect --discard-my-data`; an order of the same kind that is refused afterwards does not take that back.
#[test]
fn a_refused_order_takes_nothing_from_what_another_one_named() {
    let (mut s, writes) = divided(None);
    s.b().disconnect();
    s.b().connect_discarding();
    s.a().is_refused(Order::InvalidateRemote);
    s.b().is_refused(Order::Connect { discard: true });
    s.heal();
    s.settle();
    s.same_data();
    s.both_hold(writes[A]);
}

/// Orders that were refused allow nothing: an engine that overwrites one of two branches all the same is found.
#[test]
fn a_refused_order_names_nobody() {
    for order in [Order::InvalidateRemote, Order::Connect { discard: true }] {
        let said = catch_unwind(|| {
            let (mut s, _) = divided(Some(Fault::SplitBrainIgnored));
            for node in [A, B] {
                s.on(node).is_refused(order);
            }
            s.heal();
            s.settle();
        });
        let words = said.expect_err("a branch was discarded").downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(words.starts_with(Checker::Discarded.name()), "{order:?}: {words}");
    }
}
