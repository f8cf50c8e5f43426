//! Generation identifiers when one node does not see how a resync ended, or the newest data are not whole.

use super::super::plan::{ClientOp, DiskFault, Order};
use super::super::scenario::regression;
use super::super::world::{A, B};
use super::{primary, resyncing};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;
use crate::wire::state::ConnState;

/// The source dies around the end of a resync and comes back alone, not knowing whether the target has its generation. It is
/// promoted and writes; so may the target: never does one of them take the other's writes for old data.
#[test]
fn a_source_that_missed_the_end_does_not_go_on_in_the_targets_generation() {
    regression(48, &[Fault::PromotionKeepsUuid], |k, scenario| {
        let mut s = resyncing(scenario, 16);
        s.packets(k / 4);
        if k % 2 == 0 {
            s.a().crash();
        } else {
            s.a().power_cut();
        }
        s.cut();
        s.b().becomes("WFConnection");
        s.a().restart();
        s.a().promote();
        let late = s.a().write_fua(4096, 8);
        let target_was_done = s.b().state().contains("UpToDate/");
        let both = k % 4 >= 2 && target_was_done;
        if both {
            s.b().promote();
            s.b().write_fua(8192, 8);
            s.b().demote();
        }
        s.heal();
        if both {
            s.wait(3000);
            assert!(s.split_brains() > 0, "A {}, B {}", s.a().state(), s.b().state());
            return s.holds(A, late);
        }
        s.settle();
        s.same_data();
        s.both_hold(late);
    });
}

/// The same, again and again: the common ancestor does not fall out of the history.
#[test]
fn a_source_that_restarts_often_stays_related() {
    regression(6, &[], |k, scenario| {
        let mut s = resyncing(scenario, 16);
        s.packets(k * 2);
        s.a().crash();
        s.cut();
        s.b().becomes("WFConnection");
        let mut late = None;
        for n in 0..4 {
            s.a().restart();
            s.a().promote();
            late = Some(s.a().write_fua(4096 + n * 8, 8));
            s.a().crash();
        }
        s.a().restart();
        s.heal();
        s.settle();
        s.same_data();
        if let Some(late) = late {
            s.both_hold(late);
        }
    });
}

/// The target loses its disk when the resync is as good as over, under a write or before one: the write belongs to a generation that the
/// target's disk does not have.
#[test]
fn a_write_missed_at_the_end_of_a_resync_is_not_of_the_targets_generation() {
    regression(64, &[], |k, scenario| {
        let mut s = resyncing(scenario.on_io_error(OnIoError::Detach), 16);
        s.packets(k / 4 * 2);
        let late = if k % 4 < 2 {
            s.b().fail(DiskFault::Write, 1);
            s.a().start(ClientOp::Write { fua: true }, 4096, 8)
        } else {
            s.b().start_order(Order::Detach { force: true });
            s.wait(200);
            s.a().start(ClientOp::Write { fua: true }, 4096, 8)
        };
        s.wait(200);
        if k % 2 == 0 {
            s.a().crash();
        } else {
            s.blackout();
            s.b().restart();
        }
        s.cut();
        s.b().becomes("WFConnection");
        // The disk that failed comes back; only if it calls itself good can its node be promoted.
        if s.b().state().contains("Diskless") {
            s.b().start_order(Order::Attach);
            s.wait(500);
        }
        let went_on = s.b().state().contains("UpToDate/");
        if went_on {
            s.b().promote();
            s.b().write_fua(8192, 8);
            s.b().demote();
        }
        s.a().restart();
        s.heal();
        if went_on {
            s.wait(3000);
            return s.holds(A, late);
        }
        s.settle();
        s.same_data();
        s.both_hold(late);
    });
}

/// A Primary without a disk writes over its peer, whose disk then has a read error that is passed on: the newest data are on
/// an Inconsistent disk. The old disk that comes back is complete, and must not replace them unasked.
#[test]
fn old_data_do_not_replace_newer_ones_because_those_are_inconsistent() {
    regression(2, &[], |k, scenario| {
        let mut s = primary(scenario.on_io_error(OnIoError::PassOn));
        s.a().write(0, 64);
        s.a().detach();
        let over = s.a().write_fua(1024, 8);
        s.b().fail(DiskFault::Read, 1);
        let _ = s.a().try_read(0, 8);
        s.b().becomes("Connected Secondary/Primary Inconsistent/Diskless");
        s.a().crash();
        s.a().restart();
        s.b().becomes("StandAlone Secondary/Unknown Inconsistent");
        assert_eq!(s.resyncs(), 0);
        s.holds(B, over);
        if k == 0 {
            s.b().force();
            s.b().connect();
        } else {
            s.b().connect_discarding();
        }
        s.wait(1000);
        if s.a().conn() == ConnState::StandAlone {
            s.a().connect();
        }
        s.settle();
        s.same_data();
        if k == 0 {
            s.both_hold(over);
        }
    });
}

/// A full sync is ordered, by and for either node, and breaks off before its identifier is there: the given up data are not
/// called good because the identifiers are equal.
#[test]
fn an_ordered_full_sync_that_did_not_begin_is_not_forgotten() {
    regression(96, &[], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 64);
        match k % 4 {
            0 => s.b().start_order(Order::Invalidate),
            1 => s.a().start_order(Order::InvalidateRemote),
            2 => s.a().start_order(Order::Invalidate),
            _ => s.b().start_order(Order::InvalidateRemote),
        }
        s.events(k / 4);
        if k % 8 < 4 {
            s.reset();
        } else {
            s.on(if k % 4 < 2 { A } else { B }).crash();
            s.on(if k % 4 < 2 { A } else { B }).restart();
        }
        s.settle();
        s.same_data();
        assert_eq!((s.bits(A, 0), s.bits(B, 0)), (0, 0));
    });
}

/// The target of a full sync dies when it has begun, and then each time when the source has announced the next one and before it
/// has begun there, while the source writes alone: the target holds the first identifier, and the source's history of two has to
/// remember it.
#[test]
fn a_target_that_died_before_every_beginning_was_unrelated_in_the_end() {
    regression(32, &[], |k, scenario| {
        let mut s = primary(scenario.rate(1));
        let first = s.a().write(64, 8);
        s.b().start_order(Order::Invalidate);
        s.b().becomes("SyncTarget");
        s.wait(u64::from(k % 2) * 300);
        for start in 0..4 {
            s.b().crash();
            s.a().becomes("WFConnection");
            if k >> (start + 1) & 1 == 1 {
                s.a().write(4096 + 8 * start, 8);
            }
            s.b().restart();
            s.until_sent(A, "P_SYNC_UUID");
        }
        s.settle();
        s.same_data();
        s.both_hold(first);
    });
}
