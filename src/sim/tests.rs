//! The simulator itself: replays are equal, and what is broken on purpose is noticed.

use super::coverage::Group;
use super::device::Defect;
use super::run::{Rig, rigged, run, seed};
use super::world::Checker;
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
