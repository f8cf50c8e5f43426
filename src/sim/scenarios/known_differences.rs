//! Writes that one node alone has, in a generation that the other one may hold as well: defects that drawn runs have found, as stories.

use super::super::plan::{ClientOp, DiskFault, Order};
use super::super::scenario::{Story, regression};
use super::super::world::A;
use super::{primary, resyncing};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// Writes of a Primary that lost its disk wait here for the primary indicator when the link goes: the first one is dropped, and the ones
/// behind it are too. Started, they would reach a disk whose bitmap and activity log do not know of them.
#[test]
fn what_waited_for_the_indicator_does_not_outlive_the_link() {
    regression(48, &[Fault::WaitersOutliveLink], |k, scenario| {
        let mut s = primary(scenario.node(1, |n| n.disk_ns = 2_000_000));
        s.a().write(0, 64);
        s.a().start_order(Order::Detach { force: true });
        for n in 0..8 {
            s.a().start_write(9600 + n * 64, 8);
        }
        s.events(4 + k);
        s.reset();
        s.b().becomes("WFConnection");
        s.b().power_cut();
        s.a().power_cut();
        s.b().restart();
        s.a().restart();
        s.settle();
        s.same_data();
    });
}

/// B is promoted while A is down and the network parted, and writes; then A comes back.
fn b_goes_on_alone(s: &mut Story) {
    s.b().promote();
    s.b().write_fua(8192, 8);
    s.b().demote();
    s.a().restart();
    s.heal();
    s.wait(3000);
}

/// A node asks to be overwritten, the source begins, and nothing of that arrives. The node is good and in the same generation as before:
/// what the source writes alone does not belong to it.
#[test]
fn a_target_that_did_not_begin_holds_the_sources_generation() {
    regression(4, &[], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 64);
        s.one_way_cut(A);
        s.b().start_order(Order::Invalidate);
        s.until_line("A begins", |line| line.contains(" A vol 0 log: Began resync as SyncSource"));
        s.events(8 + k * 8);
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        let late = s.a().write_fua(4096, 8);
        s.a().crash();
        b_goes_on_alone(&mut s);
        assert!(s.split_brains() > 0, "A {}, B {}", s.a().state(), s.b().state());
        s.holds(A, late);
    });
}

/// The peer's disk fails under a write. Before the generation has begun that says so, this node dies, or its own disk does: the write was
/// not promised, because the peer's disk may come back and pass for the newest.
#[test]
fn a_write_that_the_peer_could_not_do_waits_for_its_generation() {
    regression(32, &[], |k, scenario| {
        let mut s = primary(scenario.external_meta().on_io_error(OnIoError::Detach));
        s.a().write(0, 64);
        s.b().fail(DiskFault::Write, 1);
        if k % 2 == 0 {
            s.a().fail(DiskFault::Meta, 8);
        }
        s.a().start(ClientOp::Write { fua: true }, 4096, 8);
        s.until_got(A, "P_NEG_ACK");
        s.events(k / 2);
        if k % 2 == 0 {
            s.wait(100);
        }
        s.cut();
        s.a().crash();
        s.b().becomes("WFConnection Secondary/Unknown Diskless");
        s.wait(100);
        s.b().start_order(Order::Attach);
        s.wait(500);
        b_goes_on_alone(&mut s);
    });
}

/// A disk is Outdated, and good again because the peer, which has the newer data, has no disk at hand. What the peer writes over it is
/// not of a generation that the peer's own disk descends from.
#[test]
fn an_outdated_disk_that_serves_again_begins_a_generation() {
    regression(4, &[], |k, scenario| {
        let mut s = resyncing(scenario, 16 + u64::from(k));
        s.until_line("B is done", |line| line.contains(" B vol 0 log: Resync done"));
        s.b().becomes("Connected Secondary/Primary UpToDate");
        s.a().crash();
        s.cut();
        s.b().becomes("WFConnection");
        s.b().promote();
        s.b().write(8192, 8);
        s.a().restart();
        s.heal();
        s.a().becomes("WFBitMapT");
        s.cut();
        s.a().becomes("WFConnection");
        s.b().becomes("WFConnection");
        s.b().demote();
        s.b().detach();
        s.heal();
        s.a().becomes("Connected Secondary/Secondary UpToDate/Diskless");
        s.b().becomes("Connected Secondary/Secondary Diskless/UpToDate");
        s.b().promote();
        let late = s.b().write_fua(4096, 8);
        s.b().start_order(Order::Attach);
        s.wait(3000);
        s.holds(A, late);
    });
}
