//! What waits for something that fails, and what comes late.

use super::super::plan::{ClientOp, DiskFault, Order};
use super::super::scenario::{MIB, regression};
use super::super::world::{A, B};
use super::{parted, primary, resyncing};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// The node with the only copy cannot write its primary indicator: the writes that wait for it end.
#[test]
fn a_write_for_the_only_copy_ends_when_that_disk_fails() {
    regression(24, &[], |k, scenario| {
        let mut s = primary(scenario.node(1, |n| n.disk_ns = 2_000_000));
        s.a().write(0, 8);
        s.b().fail(DiskFault::Meta, 9);
        s.a().start_order(Order::Detach { force: true });
        s.until_got(B, "P_STATE");
        s.events(k);
        s.a().try_write(64, 8);
        s.recover();
        s.same_data();
    });
}

/// The superblock with the new generation cannot be written: what the peer missed is not acknowledged, because the disk
/// comes back in the generation that the peer has.
#[test]
fn a_generation_that_cannot_be_written_acknowledges_nothing() {
    regression(24, &[Fault::UnwrittenGenerationCounts], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 8);
        s.a().start_write(64, 8);
        s.events(k / 2);
        s.a().fail(DiskFault::Meta, 3);
        s.reset();
        s.cut();
        s.a().start_write(72, 8);
        s.b().becomes("WFConnection");
        s.wait(200);
        s.a().crash();
        s.b().promote();
        s.b().write(8192, 8);
        if k % 2 == 0 {
            s.b().demote();
        }
        s.a().restart();
        s.heal();
        s.recover();
        s.same_data();
    });
}

/// The source loses its disk and has it back on the same link: its refusals of the first resync's questions come on a
/// slower socket, and are not taken for answers to the second's.
#[test]
fn refusals_of_a_resync_that_was_given_up_refuse_nothing_later() {
    regression(60, &[Fault::OldRefusalsCount], |k, scenario| {
        let scenario = scenario.skewed_sockets().nodes(|n| n.disk_ns = 10_000);
        let mut s = resyncing(if k % 2 == 0 { scenario } else { scenario.rate(8) }, 512);
        s.events(k);
        s.a().start_order(Order::Detach { force: true });
        s.until("A has no disk", |s| s.state(A, 0).contains("Diskless/") && s.has_closed(A, 0));
        s.events(k % 5);
        s.a().start_order(Order::Attach);
        s.settle();
        s.same_data();
    });
}

/// A link that takes less at once comes up while a large write waits for the activity log.
#[test]
fn a_large_write_that_began_without_a_link_is_split_for_it() {
    regression(60, &[], |k, scenario| {
        let mut s = parted(scenario.volumes(&[[32 * MIB; 2]]).version(95 + k % 5).nodes(|n| n.disk_ns = 500_000), 0);
        s.heal();
        s.events(k / 2);
        let writes = [0, 1].map(|n| s.a().start_write(8192 * (2 + n), 2048));
        let zeroes = s.a().start(ClientOp::Zeroes { fua: false, unmap: false }, 8192 * 5, 2048);
        s.settle();
        s.same_data();
        for write in writes.into_iter().chain([zeroes]) {
            s.both_hold(write);
        }
    });
}

/// No good data are left, and more writes wait for the activity log than max-buffers lets in: all of them end.
#[test]
fn writes_that_fail_make_room_for_the_next() {
    regression(8, &[Fault::RoomForgotten], |k, scenario| {
        let mut s = primary(scenario.volumes(&[[48 * MIB; 2]]).nodes(|n| n.net.max_buffers = 32));
        s.a().write(0, 2048);
        s.a().orders(Order::Invalidate);
        s.b().start_order(Order::Detach { force: true });
        s.wait(100);
        for n in 0..100 {
            s.a().start_write(n % (4 + u64::from(k)) * 8192 + n * 8, 8);
        }
        s.calm();
        s.recover();
        s.same_data();
    });
}

/// Writes of one range follow each other on a Primary without a disk, which it attaches while the peer's fails.
#[test]
fn writes_that_wait_for_each_other_go_on_after_an_attach() {
    regression(32, &[], |k, scenario| {
        let mut s = primary(scenario.on_io_error(OnIoError::Detach));
        s.a().write(0, 8);
        s.a().detach();
        for _ in 0..12 {
            s.a().start_write(64, 8);
        }
        s.a().start_order(Order::Attach);
        s.events(k);
        s.b().fail(DiskFault::Meta, 9);
        s.b().fail(DiskFault::Write, 9);
        s.a().start_write(64, 8);
        s.wait(3000);
        s.recover();
        s.same_data();
    });
}

/// The source's disk is slow, the target gives the resync up and begins another: nothing read for the first is sent.
#[test]
fn what_was_read_for_a_resync_that_was_given_up_is_not_sent() {
    regression(24, &[Fault::OldResyncReadsSent], |k, scenario| {
        let scenario = scenario.external_meta().node(0, |n| {
            n.disk_ns = 50_000_000;
            n.meta_ns = Some(10_000);
        });
        let mut s = resyncing(scenario, 512);
        s.packets(k / 4);
        s.b().start_order(Order::Detach { force: true });
        s.until("B has no disk", |s| s.state(B, 0).contains("Diskless/") && s.has_closed(B, 0));
        s.b().start_order(Order::Attach);
        s.settle();
        s.same_data();
    });
}

/// A Primary loses its disk when it has just ordered that the peer be overwritten, and attaches it again: it looks like one that crashed,
/// and a peer without the newer rules refuses it. When the link goes before that, it goes on alone, and begins a generation: the nodes
/// find each other again, and need not refuse each other for ever.
#[test]
fn a_primary_that_goes_on_with_its_disk_beside_a_bad_peer_was_refused_by_it() {
    regression(20, &[Fault::DegradedKeepsUuid], |k, scenario| {
        let older = scenario.version(100).nodes(|n| n.features = 0).on_io_error(OnIoError::Detach);
        let mut s = primary(older);
        let write = s.a().write_fua(0, 64);
        s.a().fail(DiskFault::Meta, 1);
        s.a().start_order(Order::InvalidateRemote);
        s.wait(500);
        s.a().is("Connected Primary/Secondary Diskless/Inconsistent");
        s.a().start_order(Order::Attach);
        s.a().becomes("Connected Primary/Secondary Negotiating/Inconsistent");
        s.events(k % 3);
        s.cut();
        s.a().becomes("WFConnection");
        s.a().is("WFConnection Primary/Unknown UpToDate/Inconsistent");
        let late = s.a().write_fua(9000, 8);
        s.heal();
        s.settle();
        s.same_data();
        s.both_hold(write);
        s.both_hold(late);
    });
}
