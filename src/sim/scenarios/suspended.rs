//! Frozen I/O: what the peer had acknowledged when it died or was lost, and helpers that end too late.

use super::super::plan::Order;
use super::super::scenario::{Scenario, Story, regression};
use super::super::world::{A, B};
use super::primary;
use crate::engine::fault::Fault;
use crate::engine::state::Fencing;

/// I/O freezes when the peer is lost; the helper takes so many milliseconds and `broken` percent of its runs say nothing.
fn fencing(scenario: Scenario, helper_ms: u64, broken: u64) -> Scenario {
    scenario.nodes(|n| {
        n.disk.fencing = Fencing::ResourceAndStonith;
        n.helper_ns = helper_ms * 1_000_000;
        n.helper_broken = broken;
    })
}

/// The peer acknowledges a write, loses its power with it in its cache, and comes back in the same generation: the write is sent
/// again.
#[test]
fn what_the_peer_acknowledged_and_lost_is_sent_again() {
    regression(16, &[Fault::AckedNotResent, Fault::ResendForgotten], |k, scenario| {
        // B fences nobody: it calls its disk good when it is back, although nobody knows what its cache has lost.
        let scenario = fencing(scenario, 20, 100).node(B, |n| n.disk.fencing = Fencing::DontCare);
        let mut s = primary(scenario.nodes(|n| n.relaxed = k % 2 == 0));
        s.a().write(0, 8);
        s.wait(100);
        for block in 1..5 {
            s.a().write(block * 8, 8);
        }
        s.events(k / 2);
        s.b().power_cut();
        s.a().becomes("WFConnection");
        s.a().start_write(64, 8);
        s.b().restart();
        s.settle();
        s.same_data();
        assert_eq!(s.bits(A, 0), 0);
    });
}

/// A helper that was started for a loss of the link ends when the peer has been back and is lost again: it says nothing of this loss.
#[test]
fn a_helper_that_ends_too_late_thaws_nothing() {
    regression(8, &[Fault::StaleFenceCounts, Fault::FreezeLiftedEarly], |k, scenario| {
        let mut s = primary(fencing(scenario, 4000, 0));
        s.a().write(0, 8);
        s.cut();
        s.a().becomes("WFConnection");
        s.wait(u64::from(k) * 20);
        s.heal();
        s.a().becomes("Connected");
        s.a().write(8, 8);
        s.cut();
        s.a().becomes("WFConnection");
        s.a().start_write(16, 8);
        s.wait(30_000);
        s.heal();
        s.settle();
        s.same_data();
    });
}

/// Both nodes are Primary and freeze: what the other one had acknowledged is not sent again over what it has written there since.
#[test]
fn s34_two_primaries_that_freeze_send_nothing_over_newer_data() {
    regression(24, &[Fault::AckedResent], |k, scenario| {
        let scenario = fencing(scenario, 20, 100).nodes(|n| {
            n.net.two_primaries = true;
            n.relaxed = k % 2 == 0;
        });
        let mut s: Story = scenario.ready();
        s.a().promote();
        s.b().promote();
        let (first, second) = if k % 4 < 2 { (A, B) } else { (B, A) };
        s.on(first).write(0, 16);
        s.on(second).write(4, 4);
        s.on(first).start_write(64, 8);
        s.on(second).start_write(64, 8);
        s.events(k / 2);
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        s.heal();
        s.settle();
        s.same_data();
        assert_eq!(s.bits(A, 0) + s.bits(B, 0), 0);
        // Nobody waits for anything of the old link.
        s.b().demote();
        s.a().flush();
        s.a().orders(Order::Disconnect { force: false });
    });
}
