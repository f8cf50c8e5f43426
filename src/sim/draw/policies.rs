//! Draws what two nodes do after a split brain, and how their helper programs behave; from a stream of its own, so that what is
//! drawn here changes nothing else of a plan.

use super::super::plan::{Params, Start};
use super::super::rng::Rng;
use super::{MS, SECOND};
use crate::engine::options::RrConflict;
use crate::wire::params::AfterSb;

const ZERO: [AfterSb; 9] = [
    AfterSb::Disconnect,
    AfterSb::DiscardYoungerPrimary,
    AfterSb::DiscardYoungerPrimary,
    AfterSb::DiscardOlderPrimary,
    AfterSb::DiscardZeroChanges,
    AfterSb::DiscardLeastChanges,
    AfterSb::DiscardLeastChanges,
    AfterSb::DiscardLocal,
    AfterSb::DiscardRemote,
];
const ONE: [AfterSb; 6] = [
    AfterSb::Disconnect,
    AfterSb::Consensus,
    AfterSb::ViolentlyAs0p,
    AfterSb::ViolentlyAs0p,
    AfterSb::DiscardSecondary,
    AfterSb::CallPriLostAfterSb,
];
const TWO: [AfterSb; 3] = [AfterSb::Disconnect, AfterSb::ViolentlyAs0p, AfterSb::CallPriLostAfterSb];
const CONFLICT: [RrConflict; 4] =
    [RrConflict::Disconnect, RrConflict::CallPriLost, RrConflict::Violently, RrConflict::Violently];

/// Adds policies to two in five plans, and helpers that take time to as many.
pub(super) fn draw(seed: u64, params: &mut Params) {
    let mut rng = Rng::stream(seed, 23);
    if rng.percent(40) {
        policies(&mut rng, params);
    }
    if rng.percent(40) {
        params.helper_ns = rng.pick(&[MS, 50 * MS, 500 * MS, 3 * SECOND]);
        params.helper_fails = rng.pick(&[0, 0, 5, 30]);
    }
}

/// Whether a plan has policies.
pub(super) fn drawn(params: &Params) -> bool {
    params.nodes[0].net.after_sb_0p != AfterSb::Disconnect
}

fn policies(rng: &mut Rng, params: &mut Params) {
    let (zero, one, two) = (rng.pick(&ZERO), rng.pick(&ONE), rng.pick(&TWO));
    let always = rng.percent(40);
    let conflict = rng.pick(&CONFLICT);
    for (node, zero) in params.nodes.iter_mut().zip([zero, zero.mirrored()]) {
        let net = &mut node.net;
        (net.after_sb_0p, net.after_sb_1p, net.after_sb_2p) = (zero, one, two);
        // Nobody compares these two.
        net.always_asbp = always != rng.percent(5);
        net.rr_conflict = if rng.percent(10) { rng.pick(&CONFLICT) } else { conflict };
    }
    if rng.percent(4) {
        // The nodes refuse each other until somebody mends it.
        params.nodes[1].net.after_sb_0p = rng.pick(&ZERO);
        params.nodes[1].net.after_sb_1p = rng.pick(&ONE);
    }
    if rng.percent(60) {
        params.start = Start::SplitBrain;
    }
}
