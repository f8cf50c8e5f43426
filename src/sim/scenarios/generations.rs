//! Generation identifiers: whose data survive, and that nobody's do by accident.

use super::super::plan::Order;
use super::super::scenario::{Scenario, Story, regression};
use super::super::stamp::WriteId;
use super::super::world::{A, B};
use super::{parted, primary, turn};
use crate::engine::fault::Fault;
use crate::wire::state::{ConnState, DiskState};

/// A node connects without its disk, then attaches one that is old: it is judged as at a connect.
#[test]
fn s08_an_old_disk_is_judged_when_it_is_attached() {
    regression(12, &[Fault::DegradedKeepsUuid], |k, scenario| {
        let mut s = parted(scenario, 4);
        s.b().detach();
        s.heal();
        s.b().becomes("Connected Secondary/Primary Diskless/UpToDate");
        let late = s.a().write(1024, 8);
        if k > 0 {
            s.b().start_order(Order::Attach);
            s.events(k * 4);
            s.a().start_write(2048, 8);
        } else {
            s.b().attach();
        }
        s.settle();
        assert!(s.resyncs() > 0);
        s.same_data();
        s.both_hold(late);
    });
}

/// The same with a disk that went on by itself: a split brain, found at the attach and resolved by nobody.
#[test]
fn s08_a_diverged_disk_is_refused_when_it_is_attached() {
    regression(1, &[Fault::SplitBrainIgnored, Fault::PromotionKeepsUuid], |_, scenario| {
        let mut s = parted(scenario, 4);
        s.b().promote();
        let theirs = s.b().write(512, 8);
        s.b().demote();
        s.b().detach();
        s.heal();
        s.b().becomes("Connected Secondary/Primary Diskless/UpToDate");
        s.b().start_order(Order::Attach);
        s.wait(3000);
        assert!(s.split_brains() > 0 || !s.state(B, 0).contains("UpToDate/UpToDate"), "{}", s.state(B, 0));
        s.holds(B, theirs);
        assert_eq!(s.resyncs(), 0);
    });
}

/// A Primary whose own disk is being synced loses the source: it has no good data, so no write is acknowledged, and it may not be
/// promoted again.
#[test]
fn s09_without_good_data_nothing_is_written() {
    regression(24, &[Fault::PromotedInconsistent], |k, scenario| {
        let mut s = primary(scenario.rate(2));
        s.a().write(0, 512);
        s.a().write(14_000, 8);
        s.a().orders(Order::Invalidate);
        s.a().becomes("SyncTarget Primary/Secondary Inconsistent/UpToDate");
        s.packets(k * 2);
        s.cut();
        s.a().becomes("WFConnection Primary/Unknown Inconsistent/DUnknown");
        let (_, answer) = s.a().try_write(0, 8);
        assert_ne!(answer, "ok", "a write without good data");
        assert_ne!(s.a().try_read(14_000, 8), "ok", "a read without good data");
        s.a().demote();
        s.a().is_refused(Order::Primary { force: false });
        s.b().promote();
        let theirs = s.b().write(8, 8);
        s.heal();
        s.settle();
        s.same_data();
        s.both_hold(theirs);
    });
}

/// Both nodes go on alone, in either order: two generations, so it is noticed.
#[test]
fn s09_two_that_went_on_alone_are_a_split_brain() {
    let bugs = [Fault::DegradedKeepsUuid, Fault::PromotionKeepsUuid, Fault::SplitBrainIgnored];
    regression(4, &bugs, |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        if k % 2 == 0 {
            s.a().write(64, 8);
            s.a().demote();
        } else {
            s.a().power_cut();
            s.a().restart();
            s.a().promote();
            s.a().write(64, 8);
            s.a().demote();
        }
        s.b().promote();
        if k / 2 == 0 {
            s.b().write(128, 8);
        }
        s.b().demote();
        s.heal();
        s.wait(5000);
        let expected = if k / 2 == 0 || k % 2 == 1 { 1 } else { 0 };
        assert!(s.split_brains() >= expected, "it was not noticed: A {}, B {}", s.state(A, 0), s.state(B, 0));
        assert_eq!(s.resyncs(), 0);
    });
}

/// Two Inconsistent nodes meet: no bit is forgotten, and what the forced one has goes over whole.
#[test]
fn s16_two_inconsistent_nodes_forget_no_bits() {
    regression(4, &[Fault::PromotedInconsistent], |k, scenario| {
        let mut s = parted(scenario, 4);
        let late = s.a().write(2048, 8);
        s.a().demote();
        for node in [A, B] {
            s.on(node).disconnect();
            s.on(node).orders(Order::Invalidate);
            s.on(node).connect();
        }
        for _ in 0..=k {
            // One generation is newer, but neither can be the source of anything.
            s.heal();
            s.a().becomes("StandAlone Secondary/Unknown Inconsistent/DUnknown");
            s.a().connect();
            s.reset();
        }
        s.a().becomes("StandAlone");
        s.wait(1000);
        for (node, sector) in [(A, 0), (B, 0), (A, 2048), (B, 2048)] {
            assert!(s.bit(node, 0, sector), "a bit is forgotten");
        }
        s.on(turn(k, &[A, B])).is_refused(Order::Primary { force: false });
        s.a().force();
        s.a().connect();
        s.settle();
        s.same_data();
        s.both_hold(late);
    });
}

/// Nodes fresh from create-md, through any number of reconnects: they stay Inconsistent with every bit set.
#[test]
fn s16_fresh_nodes_stay_inconsistent_until_one_is_forced() {
    let mut s = Scenario::new().fresh();
    let all = s.bits(A, 0);
    assert!(all > 1000);
    for _ in 0..3 {
        s.reset();
        s.wait(1000);
        s.a().is("Connected Secondary/Secondary Inconsistent/Inconsistent");
        assert_eq!((s.bits(A, 0), s.bits(B, 0)), (all, all));
    }
    s.b().force();
    s.settle();
    assert_eq!((s.bits(A, 0), s.bits(B, 0)), (0, 0));
}

/// Both wrote alone. Gives both writes; both nodes are Secondary and stand alone.
fn divided(s: &mut Story, round: u64) -> [WriteId; 2] {
    s.cut();
    s.a().becomes("WFConnection");
    s.b().becomes("WFConnection");
    let writes = [A, B].map(|node| {
        s.on(node).promote();
        let write = s.on(node).write(round * 512 + 64 * node as u64, 8);
        s.on(node).demote();
        write
    });
    s.heal();
    s.wait(3000);
    writes
}

/// A split brain is resolved by hand, in either direction, after crashes and after an attempt that broke off: afterwards the
/// disks are the survivor's, byte for byte.
#[test]
fn s20_a_resolution_leaves_the_survivors_data_on_both() {
    regression(24, &[Fault::SplitBrainIgnored, Fault::BitmapReplaced], |k, scenario| {
        let mut s = primary(scenario.rate(4));
        s.a().write(0, 8);
        s.a().demote();
        let (survivor, victim) = if k % 2 == 0 { (A, B) } else { (B, A) };
        for round in 1..=2 {
            let writes = divided(&mut s, round);
            assert!(s.split_brains() > 0);
            if k / 2 % 3 == 1 {
                // What the victim wrote, it wrote before a crash.
                s.on(victim).crash();
                s.on(victim).restart();
                s.wait(3000);
            }
            for node in [victim, survivor] {
                if s.on(node).conn() != ConnState::StandAlone {
                    s.on(node).disconnect();
                }
            }
            s.on(victim).start_order(Order::Connect { discard: true });
            s.on(survivor).start_order(Order::Connect { discard: false });
            if k / 2 % 3 == 2 {
                s.on(victim).becomes("SyncTarget");
                s.packets(k / 6);
                s.reset();
            }
            s.settle();
            s.same_data();
            s.both_hold(writes[survivor]);
        }
    });
}

/// A Primary without a disk writes over its peer: the generation that the write belongs to is the peer's, and the disk it has
/// given up is old.
#[test]
fn s24_a_diskless_primarys_writes_are_a_generation_that_its_old_disk_lacks() {
    let bugs = [Fault::DegradedKeepsUuid, Fault::PromotionKeepsUuid];
    regression(6, &bugs, |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.a().detach();
        let over = s.a().write_fua(64, 8);
        match k {
            0 => s.a().attach(),
            1 => {
                s.a().crash();
                s.a().restart();
            }
            2 => {
                s.cut();
                s.a().crash();
                s.a().restart();
                s.heal();
            }
            3 => {
                // Only the old disk is there: it does not know better. Its generation has to be another one then.
                s.blackout();
                s.a().restart();
                s.cut();
                s.a().promote();
                s.a().write(128, 8);
                s.b().restart();
                s.heal();
                s.wait(3000);
                assert!(s.split_brains() > 0, "A {}, B {}", s.state(A, 0), s.state(B, 0));
                return s.holds(B, over);
            }
            4 => {
                s.cut();
                s.a().becomes("WFConnection");
                s.a().start_order(Order::Attach);
                s.wait(500);
                assert_ne!(s.a().disk(), DiskState::UpToDate, "the old disk was taken for the new data");
                s.a().crash();
                s.a().restart();
                s.heal();
            }
            _ => {
                s.b().crash();
                s.wait(100);
                s.a().crash();
                s.a().restart();
                s.b().restart();
            }
        }
        s.settle();
        s.same_data();
        s.both_hold(over);
    });
}

/// After a blackout the nodes come back in any order and at any time: the copy that was Primary last survives, or nobody decides.
#[test]
fn s39_the_survivor_is_the_one_with_the_newer_generation() {
    regression(16, &[Fault::CrashRuleIgnored], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write_fua(0, 8);
        let newest = if k % 2 == 0 {
            s.b().power_cut();
            s.a().becomes("WFConnection");
            s.a().write_fua(64, 8)
        } else {
            s.one_way_cut(A);
            s.a().start_write(128, 8);
            s.wait(20);
            s.a().crash();
            s.b().crash();
            s.heal();
            WriteId(1)
        };
        s.blackout();
        let order = if k / 2 % 2 == 0 { [A, B] } else { [B, A] };
        for node in order {
            s.on(node).restart();
            s.wait(u64::from(k / 4) * 300);
        }
        s.settle();
        s.same_data();
        s.both_hold(newest);
    });
}

/// Only the older copy comes back and goes on: when the newer one returns nobody decides which to throw away.
#[test]
fn s39_an_older_copy_that_went_on_is_not_chosen_by_itself() {
    regression(2, &[Fault::SplitBrainIgnored, Fault::PromotionKeepsUuid], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write_fua(0, 8);
        s.b().crash();
        s.a().becomes("WFConnection");
        let newer = s.a().write_fua(64, 8);
        s.a().power_cut();
        s.b().restart();
        s.b().promote();
        let older = s.b().write_fua(128, 8);
        if k == 1 {
            s.b().demote();
        }
        s.a().restart();
        s.wait(5000);
        assert!(s.split_brains() > 0);
        assert_eq!(s.resyncs(), 0);
        s.holds(A, newer);
        s.holds(B, older);
    });
}
