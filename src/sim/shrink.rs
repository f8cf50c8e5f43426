//! Makes a failing schedule small: takes steps out as long as the same checker still finds something.
//!
//! Takes in a plan that fails; gives out one with as few steps as it could find. Delta debugging: large pieces first, then
//! smaller ones, down to single steps, until no step can go. What is left out changes the moments of the rest, so each
//! attempt may be played with a few different dice. Invariant: the plan that is given out fails.

use super::plan::Plan;
use super::run::{Outcome, run};
use super::world::Checker;
use crate::engine::fault::Fault;

/// Dice tried for one attempt with a schedule that is small already.
const DICE: u64 = 3;
/// Steps of such a schedule; larger ones take long to play.
const SMALL: usize = 60;

/// A shrunk plan.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left.
    pub plan: Plan,
    /// How it fails.
    pub outcome: Outcome,
    /// Runs that were played.
    pub runs: u32,
}

struct Search {
    inject: Option<Fault>,
    checker: Checker,
    runs: u32,
    limit: u32,
}

impl Search {
    /// The attempt with the first dice that make it fail as before.
    fn fails(&mut self, plan: &Plan) -> Option<Plan> {
        let dice = if plan.steps.len() <= SMALL { DICE } else { 1 };
        for dice in 0..dice {
            if self.runs >= self.limit {
                return None;
            }
            self.runs += 1;
            let mut plan = plan.clone();
            plan.params.dice = plan.params.dice.wrapping_add(dice * 1_000_003);
            let outcome = run(&plan, self.inject, false);
            if outcome.violation.is_some_and(|v| v.checker == self.checker) {
                return Some(plan);
            }
        }
        None
    }

    /// One pass with pieces of `size` steps.
    fn pass(&mut self, mut plan: Plan, size: usize) -> Plan {
        let mut at = 0;
        while at < plan.steps.len() {
            let mut attempt = plan.clone();
            let end = (at + size).min(attempt.steps.len());
            attempt.steps.drain(at..end);
            match self.fails(&attempt) {
                Some(smaller) => plan = smaller,
                None => at += size,
            }
        }
        plan
    }
}

/// Shrinks a failing plan, with at most `limit` runs. `None` when it does not fail.
#[must_use]
pub fn shrink(plan: &Plan, inject: Option<Fault>, limit: u32) -> Option<Shrunk> {
    let violation = run(plan, inject, false).violation?;
    let mut search = Search { inject, checker: violation.checker, runs: 1, limit };
    let mut best = plan.clone();
    // Steps after the violation had no part in it; without them the rest of the faults' time is idle.
    let mut short = best.clone();
    short.steps.retain(|step| step.at <= violation.at);
    short.params.faults_until = short.params.faults_until.min(violation.at.max(1));
    if let Some(plan) = search.fails(&short) {
        best = plan;
    }
    let mut size = best.steps.len().div_ceil(2).max(1);
    loop {
        let before = best.steps.len();
        best = search.pass(best, size);
        if size == 1 && best.steps.len() == before {
            break;
        }
        size = (size / 2).max(1);
        if search.runs >= limit {
            break;
        }
    }
    let outcome = run(&best, inject, true);
    Some(Shrunk { plan: best, outcome, runs: search.runs })
}
