//! Bugs that other replicators had, as stories: one test for each S-number of docs/scenarios.md that a simulated world can tell.
//!
//! Each plays its story at many moments and under the settings that matter, and again with the seeded bugs that resemble
//! what went wrong, which it must notice ([`regression`](super::scenario::regression)).

mod activity_log;
mod blocks;
mod congestion;
mod found;
mod generations;
mod generations_unseen;
mod known_differences;
mod known_reads;
mod known_states;
mod known_waits;
mod liveness;
mod policies;
mod resync;
mod suspended;
mod two_primaries;
mod writes;

#[cfg(test)]
mod tests;

use super::scenario::{Scenario, Story};
use crate::wire::params::ReplProtocol;

/// Every protocol, the strongest first.
const PROTOCOLS: [ReplProtocol; 3] = [ReplProtocol::C, ReplProtocol::B, ReplProtocol::A];

/// One of a list, round and round.
fn turn<T: Copy>(k: u32, list: &[T]) -> T {
    list[k as usize % list.len()]
}

/// A world with A Primary and everything in order.
fn primary(scenario: Scenario) -> Story {
    let mut s = scenario.ready();
    s.a().promote();
    s
}

/// A is Primary, the link is cut, and A has written `blocks` blocks from the beginning that B does not have.
fn parted(scenario: Scenario, blocks: u64) -> Story {
    let mut s = primary(scenario);
    s.cut();
    s.a().becomes("WFConnection");
    s.b().becomes("WFConnection");
    if blocks > 0 {
        s.a().write(0, blocks * 8);
    }
    s
}

/// The nodes find each other again and A is the source of a resync.
fn resyncing(scenario: Scenario, blocks: u64) -> Story {
    let mut s = parted(scenario, blocks);
    s.heal();
    s.a().becomes("SyncSource");
    s
}
