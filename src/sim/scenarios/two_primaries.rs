//! Two Primaries: writers on both nodes that meet, and the end of a link under both.

use super::super::plan::{ClientOp, Order};
use super::super::scenario::{Scenario, Story, regression};
use super::super::world::{A, B};
use super::turn;
use crate::engine::fault::Fault;

/// Connected, both nodes Primary.
fn both(k: u32, scenario: Scenario) -> Story {
    let scenario = scenario.nodes(|n| {
        n.net.two_primaries = true;
        n.relaxed = k.is_multiple_of(2);
    });
    let mut s = scenario.ready();
    s.a().promote();
    s.b().promote();
    s
}

/// How two writes may overlap: equal, one inside the other, both ways, and in part.
const OVERLAPS: [[(u64, u64); 2]; 4] = [[(0, 16), (0, 16)], [(0, 16), (4, 4)], [(4, 4), (0, 16)], [(0, 12), (8, 12)]];

/// One writer on each node, one block, every interleaving that the dice give, with the sockets' delays apart and with slow
/// disks: both nodes end with the same, every read on the way fits one history, nothing waits and nothing is marked.
#[test]
fn s34_writers_on_both_nodes_leave_the_same_on_both() {
    let bugs = [Fault::ConflictIgnored, Fault::RetryForgotten];
    regression(96, &bugs, |k, scenario| {
        let slow = turn(k / 4, &[100_000, 5_000_000, 30_000]);
        let scenario = if k % 3 == 0 { scenario.skewed_sockets() } else { scenario };
        let mut s = both(k, scenario.node(B, |n| n.disk_ns = slow));
        let [first, second] = turn(k, &OVERLAPS);
        for round in 0..3 {
            s.a().start_write(first.0, first.1);
            s.events(k / 4 + round);
            s.b().start_write(second.0, second.1);
            s.events(k % 7);
            for node in [A, B] {
                s.on(node).start(ClientOp::Read, 0, 20);
            }
            s.events(k % 11);
            let op =
                turn(k + round, &[ClientOp::Discard, ClientOp::Zeroes { fua: true, unmap: false }, ClientOp::Flush]);
            s.b().start(op, 2, 8);
            s.a().start_write(6, 8);
        }
        s.calm();
        s.settle();
        assert!(!s.trace().contains("ProtocolError"), "the nodes misunderstood each other");
        s.same_data();
        assert_eq!(s.bits(A, 0) + s.bits(B, 0), 0);
        for node in [A, B] {
            s.on(node).read(0, 24);
        }
    });
}

/// The resolver's write is on its way behind much else when it refuses the other node's: that one is not done before it is here, and
/// nothing of the node's own begins over it.
#[test]
fn s34_what_replaces_a_write_is_here_before_that_is_done() {
    regression(32, &[Fault::SupersededEarly], |k, scenario| {
        let mut s = both(k, scenario.slow_link(2));
        let (first, second) = if k % 4 < 2 { (A, B) } else { (B, A) };
        for block in 0..8 {
            s.on(first).start_write(1024 + block * 256, 256);
        }
        s.on(first).start_write(0, 16);
        s.events(k / 8);
        s.on(second).start_write(0, 16);
        s.calm();
        s.settle();
        s.same_data();
        let node = ["A", "B"][second];
        let at = |what: &str| s.trace().lines().position(|line| line.contains(&format!(" {node} {what}")));
        if at("gets Meta vol 0 P_SUPERSEDED").is_some() {
            let begun = at("vol 0 request").and_then(|line| s.trace().lines().nth(line));
            let number = begun.and_then(|line| line.split("request ").nth(1)?.split(':').next()).unwrap_or_default();
            let (here, done) = (at("gets Data vol 0 P_DATA 0+16"), at(&format!("request {number} ends")));
            assert!(here.is_some() && here < done, "done at line {done:?}, replaced at {here:?}");
        }
    });
}

/// A client that asked for a durable write is told that it is one, because another node's write replaces it: that one is durable on
/// the node that says so, whatever its disk takes.
#[test]
fn s34_what_replaces_a_durable_write_is_durable() {
    regression(32, &[Fault::SupersededUnwritten], |k, scenario| {
        let (first, second) = if k % 4 < 2 { (A, B) } else { (B, A) };
        let mut s = both(k, scenario.node(first, |n| n.disk_ns = 3_000_000));
        s.on(first).write(0, 8);
        s.on(second).write(0, 8);
        s.on(first).start_write(0, 16);
        s.events(k / 8);
        s.on(second).start(ClientOp::Write { fua: true }, 4, 4);
        let ends = format!(" {} request", ["A", "B"][second]);
        s.until_line("the durable write is done", |line| line.contains(&ends) && line.contains(" ends: "));
        s.on(first).power_cut();
        s.on(second).power_cut();
        s.on(first).restart();
        s.on(first).becomes("WFConnection");
        s.on(first).force();
        let _ = s.on(first).try_read(0, 16);
    });
}

/// A write of the other node waits for a slow disk; an own one of the same blocks does not begin before it is there.
#[test]
fn s34_no_write_begins_over_one_that_came_before() {
    regression(48, &[Fault::OwnWriteOvertakes], |k, scenario| {
        let mut s = both(k, scenario.nodes(|n| n.disk_ns = 2_000_000));
        let (first, second) = if k % 4 < 2 { (A, B) } else { (B, A) };
        // Both extents are hot: nothing but the disk is waited for.
        s.on(first).write(0, 8);
        s.on(second).write(0, 8);
        for _ in 0..3 {
            s.on(second).start_write(0, 16);
            s.until_got(first, "P_DATA");
            s.events(k / 4);
            s.on(first).start_write(4, 16);
            s.calm();
        }
        s.calm();
        s.settle();
        s.same_data();
    });
}

/// Writes meet, both nodes' clients flush, and the power of one node fails: what was flushed is on both, in the order in which the
/// nodes agreed on it.
#[test]
fn s13_an_epoch_is_acknowledged_when_its_conflicts_are_decided() {
    regression(48, &[], |k, scenario| {
        let slow = turn(k / 2, &[100_000, 3_000_000]);
        let mut s = both(k, scenario.node(B, |n| n.disk_ns = slow));
        let [first, second] = turn(k / 2, &OVERLAPS);
        s.a().start_write(first.0, first.1);
        s.events(k / 8);
        s.b().start_write(second.0, second.1);
        s.a().start_write(64, 8);
        s.b().start_write(128, 8);
        s.on(turn(k, &[A, B])).start(ClientOp::Flush, 0, 0);
        s.calm();
        s.a().flush();
        s.b().flush();
        let victim = turn(k / 4, &[A, B]);
        s.on(victim).power_cut();
        s.on(1 - victim).becomes("WFConnection");
        s.on(victim).restart();
        s.recover();
        s.same_data();
    });
}

/// The link breaks at any moment under two writers: each node goes on in a generation of its own, and they do not meet again before
/// somebody names the data that are given up.
#[test]
fn two_primaries_that_lose_each_other_are_a_split_brain() {
    regression(24, &[Fault::DegradedKeepsUuid, Fault::SplitBrainIgnored], |k, scenario| {
        let mut s = both(k, scenario);
        let [first, second] = turn(k, &OVERLAPS);
        s.a().start_write(first.0, first.1);
        s.b().start_write(second.0, second.1);
        s.events(k * 2);
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        s.a().write(64, 8);
        s.b().write(72, 8);
        s.heal();
        s.until("the split brain is found", |s| s.split_brains() > 0);
        s.wait(2000);
        for node in [A, B] {
            assert!(!s.state(node, 0).starts_with("Connected"), "they met although both went on");
            // One of them may only see that the other one is gone, and try again.
            let _ = s.on(node).order(Order::Disconnect { force: true });
        }
        s.b().demote();
        s.b().connect_discarding();
        s.a().connect();
        s.settle();
        s.same_data();
    });
}
