//! The activity log and the superblock's flags: what a crash must find on the medium.

use super::super::plan::{ClientOp, DiskFault, Order};
use super::super::scenario::{EXTENT, MIB, regression};
use super::super::world::{A, B};
use super::{parted, primary, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// Writes to cold extents, a failing metadata write before one of them, and the power fails while the peer misses what
/// the own disk may have: the activity log covers it.
#[test]
fn s04_no_write_reaches_the_disk_before_its_slot_is_durable() {
    let bugs = [Fault::MetaErrorIgnored, Fault::WriteBeforeAl, Fault::AlTransactionSkipped, Fault::AlNotDurable];
    regression(60, &bugs, |k, scenario| {
        let scenario = scenario.volumes(&[[44 * MIB; 2]]);
        let mut s = primary(if k % 2 == 0 { scenario.external_meta() } else { scenario });
        let warm = u64::from(k / 2 % 4);
        for extent in 0..warm {
            s.a().write(extent * EXTENT, 8);
        }
        s.one_way_cut(A);
        if k % 3 == 0 {
            s.a().fail(DiskFault::Meta, 1);
        }
        // Alone if it fails: each transaction repeats some of the slots before it.
        for extent in warm..warm + turn(k, &[1, 3, 3]) {
            s.a().start_write(extent * EXTENT, 8);
        }
        s.a().dies(k, true);
        s.wait(200);
        s.a().power_cut();
        s.heal();
        s.a().restart();
        s.recover();
        s.same_data();
    });
}

/// More extents than the log has slots, alone: the bits of an extent that the log forgets are on the medium before.
#[test]
fn s04_the_bits_of_a_forgotten_extent_are_on_disk() {
    regression(12, &[Fault::EvictionWithoutPages], |k, scenario| {
        let scenario = scenario.volumes(&[[296 * MIB; 2]]).external_meta();
        let mut s = parted(scenario, 0);
        let mut writes = Vec::new();
        for extent in 0..69 + u64::from(k % 4) {
            writes.push(s.a().write_fua(extent * EXTENT + 64, 8));
        }
        s.events(k);
        s.a().power_cut();
        s.a().restart();
        s.heal();
        s.settle();
        s.same_data();
        for write in writes {
            s.both_hold(write);
        }
    });
}

/// A crash at every position of the log's ring, striped or not, with the last transaction torn or lost: all that may be out of
/// sync is found.
#[test]
fn s05_the_log_is_replayed_from_any_position_of_its_ring() {
    regression(40, &[Fault::AlTransactionSkipped], |k, scenario| {
        let stripes = turn(k, &[(1, 8), (2, 4), (4, 8)]);
        let mut s = primary(scenario.volumes(&[[124 * MIB; 2]]).nodes(|n| n.al_stripes = stripes));
        let cold = u64::from(k / 2);
        for extent in 0..cold {
            s.a().write(extent * EXTENT, 8);
        }
        s.one_way_cut(A);
        s.a().start_write(cold * EXTENT, 8);
        s.a().start_write(0, 8);
        s.events(k * 7 % 40);
        s.a().power_cut();
        s.heal();
        s.a().restart();
        s.settle();
        s.same_data();
    });
}

/// A Primary is demoted while the peer still writes what was acknowledged, and the power of both fails: the indicator that makes
/// the next attach apply the log was not cleared too early.
#[test]
fn s06_the_primary_indicator_outlives_the_peers_last_write() {
    let bugs = [Fault::PrimaryIndEarly];
    regression(60, &bugs, |k, scenario| {
        let scenario = scenario.protocol(turn(k, &super::PROTOCOLS));
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.wait(20);
        s.b().stall(40);
        for n in 1..6 {
            s.a().start_write(n * 64, 8);
        }
        if k % 2 == 0 {
            s.a().start_order(Order::Secondary { close: true });
        }
        s.wait(u64::from(k / 2) * 2);
        s.blackout();
        s.a().restart();
        s.b().restart();
        s.settle();
        s.same_data();
    });
}

/// A Primary crashes, comes back without its peer and crashes again, any number of times: its crash is not forgotten before the
/// peer knows.
#[test]
fn s06_a_second_crash_does_not_hide_the_first() {
    let bugs = [Fault::CrashedPrimaryEarly, Fault::CrashedPrimaryNotKept, Fault::CrashRuleIgnored];
    regression(24, &bugs, |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.one_way_cut(A);
        s.a().start_write(64, 8);
        s.wait(u64::from(k) / 4);
        s.a().crash();
        s.cut();
        for n in 0..k % 3 {
            s.a().restart();
            s.wait(50 * u64::from(n));
            s.a().dies(0, k % 2 == 0);
        }
        s.heal();
        s.a().restart();
        s.settle();
        s.same_data();
    });
}

/// A local write fails and the disk is given up, with bits in memory: after the next attach they are still there.
#[test]
fn s07_a_bad_blocks_bit_outlives_the_disk() {
    regression(12, &[Fault::LocalErrorUnmarked], |k, scenario| {
        let scenario = if k % 2 == 0 { scenario.external_meta() } else { scenario };
        let policy = turn(k / 6, &[OnIoError::Detach, OnIoError::PassOn]);
        let mut s = primary(scenario.protocol(turn(k, &super::PROTOCOLS)).on_io_error(policy));
        let good = s.a().write(0, 8);
        s.a().fail(DiskFault::Write, 1);
        let failed = s.a().write(64, 8);
        if policy == OnIoError::Detach {
            s.a().becomes("Connected Primary/Secondary Diskless/UpToDate");
            s.a().attach();
        } else {
            s.a().becomes("Connected Primary/Secondary Inconsistent/UpToDate");
            assert!(s.bit(A, 0, 64));
            s.a().reads(64, 8, failed);
            s.reset();
        }
        s.settle();
        for write in [good, failed] {
            s.both_hold(write);
        }
        s.same_data();
    });
}

/// A disk with bits is detached by force and attached again, also after a crash: they are still there.
#[test]
fn s07_bits_outlive_a_detach() {
    regression(4, &[], |k, scenario| {
        let scenario = if k % 2 == 0 { scenario.external_meta() } else { scenario };
        let mut s = parted(scenario, 3);
        assert_eq!(s.bits(A, 0), 3);
        s.a().demote();
        s.a().detach();
        s.a().becomes("WFConnection Secondary/Unknown Diskless");
        if k / 2 == 0 {
            s.a().attach();
        } else {
            s.a().crash();
            s.a().restart();
        }
        assert_eq!(s.bits(A, 0), 3);
        s.heal();
        s.settle();
        s.same_data();
    });
}

/// What an acknowledged epoch left in the disk's cache is flushed before the disk is given up.
#[test]
fn s07_a_detach_leaves_nothing_in_the_cache() {
    regression(24, &[Fault::DetachWithoutFlush], |k, scenario| {
        let mut s = primary(scenario.external_meta().nodes(|n| n.relaxed = k % 2 == 0));
        for n in 0..6 {
            s.a().start_write(n * 16, 8);
        }
        if k % 3 == 0 {
            s.calm();
        } else {
            s.events(10 + k * 3);
        }
        s.b().start_order(Order::Detach { force: false });
        s.b().becomes("Connected Secondary/Primary Diskless");
        s.a().flush();
        s.b().power_cut();
        s.b().restart();
        s.settle();
        s.same_data();
    });
}

/// More hot extents than slots, a resync at the same time, and the disk with its log goes and comes back: nobody waits for ever
/// and no reference is left.
#[test]
fn s25_slots_are_shared_by_writes_that_wait_and_a_disk_that_goes() {
    let bugs = [Fault::AlWaitersNotWoken, Fault::AlReferencesSurvive];
    regression(8, &bugs, |k, scenario| {
        let mut s = primary(scenario.volumes(&[[296 * MIB; 2]]));
        if k % 2 == 1 {
            s.cut();
            s.a().becomes("WFConnection");
            s.a().write(0, 512);
            s.heal();
            s.a().becomes("SyncSource");
        }
        for round in 0..2 {
            for extent in 0..70 {
                s.a().start_write(extent * EXTENT + round * 64, 8);
            }
        }
        s.b().stall(1500);
        s.events(k * 60);
        if s.state(A, 0).ends_with("UpToDate/UpToDate") {
            // The writes wait for the peer; the disk goes and comes back before it answers.
            s.a().fail(DiskFault::Write, 1);
            s.wait(300);
        }
        if s.state(A, 0).contains("Diskless") {
            s.a().start_order(Order::Attach);
        }
        s.settle();
        for round in 2..4 {
            for extent in 0..72 {
                s.a().start_write(extent * EXTENT + round * 64, 8);
            }
        }
        s.settle();
        s.same_data();
        assert_eq!(s.bits(A, 0) + s.bits(B, 0), 0);
    });
}

/// A Primary's activity log fails under a write, and the node with the only copy loses its power at once: what reached the one disk
/// and not the other is marked, also in extents that were hot there from its own time as Primary.
#[test]
fn the_only_copy_is_marked_before_it_is_written() {
    regression(48, &[], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.a().demote();
        s.b().promote();
        s.b().fail(DiskFault::Meta, 1);
        s.b().start(ClientOp::Write { fua: true }, 8, 8);
        s.events(k);
        s.a().power_cut();
        s.b().crash();
        s.a().restart();
        s.b().restart();
        s.recover();
        s.same_data();
    });
}
