//! What suspends I/O: fencing policies, on-no-data-accessible, and the operator. From streams of their own, so that runs without
//! any of it are as they were.

use super::{MS, SECOND};
use crate::engine::state::Fencing;
use crate::sim::plan::{Happening, Order, Params, Step};
use crate::sim::rng::Rng;
use crate::wire::params::ReplProtocol;

/// Draws the policies of a run.
pub(super) fn draw(params: &mut Params, rng: &mut Rng) {
    let policies = [Fencing::ResourceOnly, Fencing::ResourceAndStonith, Fencing::ResourceAndStonith];
    let both = rng.percent(30).then(|| rng.pick(&policies));
    let patient = rng.percent(20);
    for node in &mut params.nodes {
        let odd = rng.percent(20);
        node.disk.fencing = match both {
            Some(_) if odd => Fencing::DontCare,
            Some(policy) => policy,
            None => Fencing::DontCare,
        };
        if node.disk.fencing == Fencing::ResourceAndStonith && node.net.protocol == ReplProtocol::A {
            node.disk.fencing = Fencing::ResourceOnly;
        }
        node.resource.suspend_without_data = patient && !rng.percent(20);
        node.helper_ns = rng.pick(&[MS, 100 * MS, 2 * SECOND]);
        node.helper_broken = rng.pick(&[0, 20, 60]);
        node.helper_shoots = rng.pick(&[0, 20, 60]);
    }
}

/// Draws the operator's orders of a run.
pub(super) fn orders(params: &Params, rng: &mut Rng, steps: &mut Vec<Step>) {
    let count = if rng.percent(20) { rng.within(1, 6) } else { 0 };
    let fences = params.nodes.iter().any(|n| n.disk.fencing == Fencing::ResourceAndStonith);
    let impatient = if fences && rng.percent(30) { rng.within(1, 3) } else { 0 };
    for i in 0..count + impatient {
        let node = usize::from(rng.coin());
        let mut at = 2 * SECOND + rng.below(params.faults_until - 2 * SECOND);
        if i < count {
            steps.push(Step { at, what: Happening::Order { node, volume: 0, order: Order::SuspendIo } });
            at += rng.around(SECOND);
        }
        steps.push(Step { at, what: Happening::Order { node, volume: 0, order: Order::ResumeIo } });
    }
    if count + impatient > 0 {
        steps.sort_by_key(|step| step.at);
    }
}
