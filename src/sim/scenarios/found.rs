//! What drawn runs have found, shrunk to stories: defects of this engine rather than of other replicators.

use super::super::plan::{DiskFault, Order};
use super::super::scenario::{EXTENT, MIB, regression};
use super::super::world::{A, B};
use super::{PROTOCOLS, parted, primary, resyncing, turn};
use crate::engine::options::OnIoError;

/// A Primary crashes before the epoch of its last writes is closed. The peer holds them in its cache only, takes over and gives them
/// back in the resync of the hot extents, after which no bit and no activity log knows of them; then its power fails, too.
#[test]
fn what_a_source_gave_back_is_durable_on_the_source() {
    regression(24, &[], |k, scenario| {
        let protocol = turn(k, &PROTOCOLS);
        let relaxed = |s: super::Scenario| s.nodes(|n| n.relaxed = k % 2 == 0);
        let scenario = relaxed(scenario.external_meta().protocol(protocol));
        let mut s = primary(scenario.volumes(&[[12 * MIB; 2]]));
        for n in 0..8 {
            s.a().start_write(n * 64 + n % 3 * EXTENT, 8);
        }
        s.events(8 + k * 2);
        s.a().power_cut();
        s.b().becomes("WFConnection");
        s.b().promote();
        s.a().restart();
        s.a().becomes("Connected Secondary/Primary UpToDate/UpToDate");
        s.b().becomes("Connected Primary/Secondary UpToDate/UpToDate");
        s.b().power_cut();
        s.b().restart();
        s.settle();
        s.same_data();
    });
}

/// The application of a resync's source reads a block that the disk cannot read, before or during the resync: only the source
/// marks it, and does not wait for the target to ask for it. A write of it in between reaches the target all the same.
#[test]
fn a_block_that_only_the_source_marked_ended_no_resync() {
    regression(32, &[], |k, scenario| {
        let mut s = parted(scenario.on_io_error(OnIoError::PassOn).rate(1), 64);
        s.heal();
        s.a().becomes("WFBitMapS");
        s.events(k / 2 * 2);
        s.a().fail(DiskFault::Read, 1);
        s.a().try_read(8000, 8);
        let write = (k % 2 == 0).then(|| s.a().start_write(8000, 8));
        s.wait(4000);
        s.a().is("Connected Primary/Secondary UpToDate/UpToDate");
        s.b().is("Connected Secondary/Primary UpToDate/UpToDate");
        if let Some(write) = write {
            s.both_hold(write);
        }
        s.reset();
        s.settle();
        s.same_data();
    });
}

/// A disk goes bad between the two decisions of a handshake, and each node takes the other for the source.
#[test]
fn two_targets_waited_for_each_other() {
    regression(16, &[], |k, scenario| {
        let mut s = parted(scenario.on_io_error(OnIoError::PassOn), 8);
        s.heal();
        s.a().meets();
        s.events(k);
        s.a().fail(DiskFault::Read, 1);
        s.a().try_read(8000, 8);
        s.wait(3000);
        // The latest writes are on the disk that went bad: nobody replaces them unasked.
        s.recover();
        s.same_data();
    });
}

/// A Primary without a disk gets its old one back just when the peer's, which has its newest writes, fails.
#[test]
fn an_old_disk_did_for_the_peers_that_failed_during_the_attach() {
    regression(24, &[], |k, scenario| {
        let mut s = primary(scenario.node(0, |n| n.disk_ns = 100_000));
        s.a().write(0, 8);
        s.a().detach();
        let newer = s.a().write(0, 8);
        s.b().freeze(5);
        s.b().fail(DiskFault::Write, 1);
        s.a().start_write(64, 8);
        s.events(k);
        s.a().start_order(Order::Attach);
        s.wait(100);
        s.a().try_read(0, 8);
        s.recover();
        s.both_hold(newer);
        s.same_data();
    });
}

/// An attach is given up while the peer already answers it: what still comes in for it is no reason to end the connection, on which
/// other volumes depend.
#[test]
fn the_bitmap_for_a_disk_that_is_gone_again_ended_the_connection() {
    regression(20, &[], |k, scenario| {
        let mut s = primary(scenario.node(1, |n| n.disk_ns = 20_000 + u64::from(k) * 20_000));
        s.b().detach();
        s.a().write(0, 64);
        s.b().start_order(Order::Attach);
        s.events(k);
        s.b().fail(DiskFault::Meta, 1);
        for n in 0..5 {
            s.wait(3);
            s.b().start_order(Order::Attach);
            s.a().start_write(256 + n * 8, 8);
        }
        s.wait(100);
        let dropped = s.trace().lines().find(|line| line.contains("dropping the connection"));
        assert_eq!(dropped, None);
        s.recover();
        s.same_data();
    });
}

/// The same, and the disk is back before the answer to its first attach arrives: the target answers the first bitmap, the source takes
/// that for the answer to its second one, and what was written between the two is in the second only.
#[test]
fn a_second_bitmap_for_a_target_that_had_the_first_ended_the_connection() {
    regression(60, &[], |k, scenario| {
        let scenario = scenario.node(0, |n| n.disk_ns = 1_000_000).node(1, |n| n.disk_ns = 20_000);
        let mut s = primary(scenario);
        s.b().detach();
        s.a().write(0, 64);
        s.b().start_order(Order::Attach);
        s.events(k % 15);
        s.b().fail(DiskFault::Meta, 1);
        for n in 0..24 {
            s.a().start_write(256 + n * 8, 8);
            s.events(1 + k / 15);
            s.b().start_order(Order::Attach);
        }
        s.wait(2000);
        let dropped = s.trace().lines().find(|line| line.contains("dropping the connection"));
        assert_eq!(dropped, None);
        s.recover();
        s.same_data();
    });
}

/// A node asks for a full sync, and the source's announcement on the data socket overtakes its consent on the other one.
#[test]
fn an_announcement_before_the_consent_ended_the_connection() {
    regression(16, &[], |k, scenario| {
        let mut s = primary(scenario.skewed_sockets().nodes(|n| n.disk_ns = 5_000));
        let write = s.a().write(0, 64);
        s.on(turn(k, &[A, B])).start_order(Order::Invalidate);
        s.wait(5000);
        let dropped = s.trace().lines().find(|line| line.contains("dropping the connection"));
        assert_eq!(dropped, None);
        s.settle();
        s.both_hold(write);
        s.same_data();
    });
}

/// A source that missed the end of a resync finds that out, corrects its identifiers, and its power fails before the next resync
/// begins: what it marked since is still known to differ.
#[test]
fn the_correction_of_a_missed_end_forgot_the_bits() {
    regression(60, &[], |k, scenario| {
        let mut s = resyncing(scenario.nodes(|n| n.disk_ns = 300_000), 4);
        for n in 0..3 {
            s.a().start_write(800 + n * 8, 8);
        }
        s.until_line("B is done", |line| line.contains(" B vol 0 log: Resync done"));
        s.a().start_write(1600, 8);
        s.events(k % 6);
        s.cut();
        s.a().becomes("WFConnection");
        s.a().demote();
        s.heal();
        s.a().meets();
        s.events(k / 6 * 3);
        s.a().power_cut();
        s.a().restart();
        s.settle();
        s.same_data();
    });
}
