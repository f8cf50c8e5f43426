//! One run from plan to outcome: the beginning, the phase with faults, the phase that must converge.

use super::coverage::Coverage;
use super::device::Defect;
use super::draw;
use super::plan::Plan;
use super::world::{Checker, Stats, Violation, World};
use crate::engine::fault::Fault;

/// Virtual time between two looks of the checkers.
const LOOK_NS: u64 = 700_000_000;
/// Virtual time that the cluster has to settle in, nanoseconds.
const SETTLE_NS: u64 = 600_000_000_000;
/// How often the cluster manager looks after it then.
const MANAGE_NS: u64 = 5_000_000_000;

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first thing that was wrong.
    pub violation: Option<Violation>,
    /// Numbers.
    pub stats: Stats,
    /// What was reached.
    pub coverage: Coverage,
    /// Digest of everything that happened.
    pub digest: u64,
    /// What happened, if it was asked for.
    pub trace: Option<String>,
}

/// Plays the plan of a seed.
#[must_use]
pub fn seed(seed: u64, inject: Option<Fault>, lines: bool) -> Outcome {
    run(&draw::plan(seed), inject, lines)
}

/// What is wrong in a run on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rig {
    /// Both engines make this mistake.
    pub inject: Option<Fault>,
    /// The data devices have this defect.
    pub defect: Option<Defect>,
    /// This checker finds nothing.
    pub deaf: Option<Checker>,
}

/// Plays a plan.
#[must_use]
pub fn run(plan: &Plan, inject: Option<Fault>, lines: bool) -> Outcome {
    rigged(plan, Rig { inject, ..Rig::default() }, lines)
}

/// Plays a plan with something wrong.
#[must_use]
pub fn rigged(plan: &Plan, rig: Rig, lines: bool) -> Outcome {
    let mut world = World::new(plan, rig.inject, lines);
    world.deaf = rig.deaf;
    if let Some(defect) = rig.defect {
        world.break_devices(defect);
    }
    world.begin();
    let end = world.params.faults_until;
    while world.now < end && world.violation.is_none() {
        let next = world.now + LOOK_NS;
        world.run_until(next.min(end));
        if world.violation.is_none() {
            world.check();
        }
    }
    converge(&mut world);
    world.stats.virtual_ns = world.now;
    world.outcome()
}

/// The faults are over: the network works, the disks work, the manager does all it can.
fn converge(world: &mut World) {
    if world.violation.is_some() {
        return;
    }
    world.make_peace();
    let end = world.now + SETTLE_NS;
    let mut settled = 0;
    while world.violation.is_none() && world.now < end {
        world.manage(false);
        let next = world.now + MANAGE_NS;
        world.run_until(next);
        if world.violation.is_none() {
            world.check();
        }
        // Twice in a row: what is quiet stays so.
        settled = if world.is_settled() { settled + 1 } else { 0 };
        if settled == 2 {
            break;
        }
    }
    if world.violation.is_none() {
        world.check_settled();
    }
}

impl World {
    fn break_devices(&mut self, defect: Defect) {
        for vol in self.nodes.iter_mut().flat_map(|node| &mut node.volumes) {
            vol.data.break_it(defect);
        }
    }

    /// No more faults.
    pub(super) fn make_peace(&mut self) {
        self.peace = true;
        self.heal();
        for node in &mut self.nodes {
            node.doomed = None;
            for vol in &mut node.volumes {
                vol.failing = super::node::Failing::default();
            }
        }
        self.params.failed_connects = 0;
        // Where pings time out by themselves no resync ever ends.
        self.params.net_ns = self.params.net_ns.min(200_000);
        self.params.link_rate = 0;
        self.params.skewed_sockets = false;
    }

    fn outcome(self) -> Outcome {
        Outcome {
            violation: self.violation,
            stats: self.stats,
            coverage: self.coverage,
            digest: self.trace.digest(),
            trace: self.trace.lines().map(ToOwned::to_owned),
        }
    }
}
