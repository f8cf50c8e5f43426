//! Split brains that policies resolve, and helpers before a resync: the survivor is the one that the rules name, and a helper
//! that fails or hangs keeps the data as they are.

use super::super::plan::Order;
use super::super::scenario::{Story, regression};
use super::super::stamp::WriteId;
use super::super::world::{A, B};
use super::{parted, primary};
use crate::engine::fault::Fault;
use crate::engine::options::RrConflict;
use crate::wire::params::AfterSb;
use crate::wire::state::ConnState;

/// Each was Primary alone, A first; A wrote `blocks[0]` blocks and B `blocks[1]`. The last write of each.
fn parted_ways(s: &mut Story, blocks: [u64; 2]) -> [WriteId; 2] {
    s.cut();
    s.a().becomes("WFConnection");
    s.b().becomes("WFConnection");
    [A, B].map(|node| {
        s.on(node).promote();
        let writes: Vec<WriteId> =
            (0..blocks[node]).map(|block| s.on(node).write(512 * (node as u64 + 1) + block * 8, 8)).collect();
        s.on(node).demote();
        writes.last().copied().unwrap_or(WriteId(1))
    })
}

/// The node that changed more survives, whichever that is, on both nodes, byte for byte; and the same again when the link
/// breaks while the decision is carried out.
#[test]
fn s39_a_policy_gives_up_the_side_that_it_names() {
    regression(8, &[Fault::ChangesSwapped], |k, scenario| {
        let mut s = primary(scenario.rate(4).nodes(|n| n.net.after_sb_0p = AfterSb::DiscardLeastChanges));
        s.a().write(0, 8);
        s.a().demote();
        let (survivor, blocks) = if k % 2 == 0 { (A, [6, 2]) } else { (B, [2, 6]) };
        let writes = parted_ways(&mut s, blocks);
        s.heal();
        if k > 1 {
            s.on(1 - survivor).becomes("SyncTarget");
            s.packets(k);
            s.reset();
        }
        s.settle();
        assert!(s.split_brains() > 0);
        s.same_data();
        s.both_hold(writes[survivor]);
    });
}

/// Nobody changed more: the tie breaker decides, and both nodes know how.
#[test]
fn s39_a_tie_is_broken_alike_on_both_nodes() {
    regression(2, &[Fault::TieBreakerSwapped], |k, scenario| {
        let policy = [AfterSb::DiscardLeastChanges, AfterSb::DiscardYoungerPrimary][k as usize % 2];
        let mut s = primary(scenario.nodes(|n| n.net.after_sb_0p = policy));
        s.a().write(0, 8);
        s.a().demote();
        parted_ways(&mut s, [3, 3]);
        s.heal();
        s.settle();
        assert!(s.split_brains() > 0);
        s.same_data();
    });
}

/// A was Primary when they parted, B was promoted later: each policy gives up the data of the one that it names.
#[test]
fn s39_the_older_primary_and_the_younger_one() {
    regression(4, &[Fault::YoungerForOlder], |k, scenario| {
        let policy = [AfterSb::DiscardYoungerPrimary, AfterSb::DiscardOlderPrimary][k as usize % 2];
        let mut s = primary(scenario.nodes(|n| n.net.after_sb_0p = policy));
        s.a().write(0, 8);
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        let older = s.a().write(512, 8);
        s.a().demote();
        s.b().promote();
        let younger = (0..3).map(|block| s.b().write(1024 + block * 8, 8)).last().unwrap_or(older);
        s.b().demote();
        s.heal();
        s.settle();
        assert!(s.split_brains() > 0);
        s.same_data();
        s.both_hold(if policy == AfterSb::DiscardYoungerPrimary { older } else { younger });
    });
}

/// A began one generation more than its bitmap is for, and both wrote: nothing says that the bitmaps tell what differs. A policy
/// does not decide it, and what is decided by hand copies everything.
#[test]
fn s20_a_split_brain_that_no_bitmap_describes_is_resolved_whole_and_by_hand() {
    regression(4, &[Fault::AmbiguousByPolicy, Fault::ShortResolution], |k, scenario| {
        let mut s = primary(scenario.rate(4).nodes(|n| n.net.after_sb_0p = AfterSb::DiscardLeastChanges));
        s.a().write(0, 8);
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        let one = s.a().write(512, 8);
        s.a().demote();
        s.a().disconnect();
        s.a().orders(Order::NewUuid);
        s.b().promote();
        let other = s.b().write(1024, 8);
        s.b().demote();
        s.a().connect();
        s.heal();
        s.until("the split brain is found", |s| s.split_brains() > 0);
        s.wait(2000);
        assert_eq!(s.resyncs(), 0, "somebody decided");
        s.holds(A, one);
        s.holds(B, other);
        for node in [A, B] {
            // One of them may only see that the other one is gone, and try again.
            let _ = s.on(node).order(Order::Disconnect { force: true });
        }
        let victim = if k % 2 == 0 { A } else { B };
        s.on(victim).connect_discarding();
        s.on(1 - victim).connect();
        s.on(1 - victim).becomes("SyncSource");
        assert!(s.on(1 - victim).bits() > 1000, "only what is marked is copied");
        s.settle();
        s.same_data();
    });
}

/// A Primary loses the vote and takes it: its clients read the survivor's data from then on, and what they write afterwards is on
/// both nodes.
#[test]
fn s20_a_primary_that_becomes_target_violently_reads_the_survivors_data() {
    regression(4, &[Fault::ReadInconsistent], |k, scenario| {
        let scenario = scenario.rate(1).nodes(|n| {
            n.net.after_sb_1p = AfterSb::ViolentlyAs0p;
            n.net.after_sb_0p = AfterSb::DiscardLeastChanges;
            n.net.rr_conflict = RrConflict::Violently;
        });
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.a().demote();
        let writes = parted_ways(&mut s, [2, 200]);
        s.a().promote();
        s.heal();
        s.a().becomes("SyncTarget Primary");
        s.events(k * 20);
        s.a().reads(1024 + 199 * 8, 8, writes[B]);
        let late = s.a().write(4096, 8);
        s.settle();
        s.same_data();
        s.both_hold(writes[B]);
        s.both_hold(late);
    });
}

/// The helper before a resync takes its time or fails: no block moves before it has ended well, also when the link goes
/// meanwhile.
#[test]
fn s30_a_resync_waits_for_its_helper_and_for_nothing_else() {
    regression(6, &[Fault::HelperNotAwaited], |k, scenario| {
        let mut s = parted(scenario.helpers(400, 0), 4);
        s.heal();
        s.b().becomes("WFBitMapT");
        s.wait(u64::from(k) * 40);
        if k % 2 == 1 {
            s.reset();
        }
        s.settle();
        assert!(s.resyncs() > 0);
        s.same_data();
    });
}

/// A helper that fails ends the connection: nothing is asked for, nothing is overwritten.
#[test]
fn s30_a_helper_that_fails_ends_the_connection() {
    regression(1, &[Fault::HelperCodeIgnored], |_, scenario| {
        let mut s = parted(scenario.helpers(0, 100), 4);
        s.heal();
        s.wait(3000);
        assert_eq!(s.resyncs(), 0);
        assert!([A, B].iter().any(|n| s.on(*n).conn() == ConnState::StandAlone));
    });
}

/// Without a decision nobody's data are touched.
#[test]
fn s39_what_no_policy_decides_is_left_alone() {
    regression(1, &[Fault::PrimaryGivesWay], |_, scenario| {
        let scenario = scenario.nodes(|n| {
            n.net.after_sb_1p = AfterSb::CallPriLostAfterSb;
            n.net.after_sb_0p = AfterSb::DiscardLeastChanges;
        });
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.a().demote();
        let writes = parted_ways(&mut s, [1, 3]);
        s.a().promote();
        s.heal();
        s.wait(3000);
        assert!(s.split_brains() > 0);
        assert_eq!(s.resyncs(), 0);
        s.holds(A, writes[A]);
        s.holds(B, writes[B]);
    });
}
